"""The plan as a message: each step with its commands, files, environment and weights, what is lost, and the hash.

The hash is what an approval binds: what was shown is what runs.
"""

from bot.presenter.message import Lines, Message, Part, compose, context, header, section
from bot.presenter.mrkdwn import code, duration, one_line
from bot.presenter.run_message import costs
from bot.presenter.steps import plan_lines
from bot.presenter.view import View, action_name
from gpu_actions.plan import Plan


def plan_message(plan: Plan, view: View) -> Message:
    """What an action would do, before anything is started."""
    title = f"Plan: {action_name(plan.action).lower()} on {plan.host}, {len(plan.steps)} steps"
    takes = f", about {duration(plan.expected_s)}" if plan.expected_s else ""
    start = view.command(plan.action, _start(plan))
    todo = f"Nothing has started{takes}. To run it: {start}."
    parts: list[Part] = [
        header(title),
        section(f"{one_line(plan.title, 300)}\n{todo}"),
        *costs(plan.losses, plan.warnings),
    ]
    if plan.gate is not None:
        gate = plan.gate
        parts.append(
            section(
                f"*Needs {gate.approvals} approval{'' if gate.approvals == 1 else 's'}* from {view.role(gate.approvers)}, "
                f"within {duration(gate.expires_s)}: {one_line(gate.reason, 400)}"
            )
        )
    parts.append(plan_lines(plan))
    if plan.alternatives:
        parts.append(
            Lines(
                tuple(
                    f"If {one_line(group)} fails: {max(0, len(choices) - 1)} more to try"
                    for group, choices in plan.alternatives.items()
                    if len(choices) > 1
                ),
                noun="alternatives",
                small=True,
            )
        )
    parts.append(context(f"plan {code(plan.hash)}"))
    return compose(f"{title}\n{todo}", parts)


def _start(plan: Plan) -> str:
    given = " ".join(f"{key}={value}" for key, value in plan.options.items())
    return f"start {plan.host} {given}".strip()
