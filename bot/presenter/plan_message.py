"""A plan as a message: each step with its commands, files, environment and weights, what is lost, and the plan's hash.

An approval is bound to that hash: what was shown is what runs.
"""

import json
from collections.abc import Mapping

from bot.presenter.message import Lines, Message, Part, actions, button, compose, footnote, header, section
from bot.presenter.mrkdwn import code, duration, literal, one_line
from bot.presenter.render_context import RenderContext
from bot.presenter.run_message import costs
from bot.presenter.steps import plan_lines
from bot.presenter.vocabulary import action_name, count
from gpu_actions.plan import Plan
from gpu_actions.system.redact import redact


def plan_message(plan: Plan, context: RenderContext) -> Message:
    """Return what an action would do, before anything starts."""
    title = f"Plan: {action_name(plan.action).lower()} on {plan.host}, {count(len(plan.steps), 'step')}"
    takes = f" It takes about {duration(plan.expected_s)}." if plan.expected_s else ""
    todo = f"Nothing has started.{takes} To run it: {_command(plan, context)}."
    parts = [header(title), section(todo), *plan_parts(plan, context), plan_lines(plan)]
    parts.append(footnote(f"plan {code(plan.hash)}"))
    return compose(f"{title}\n{todo}", parts)


def plan_parts(plan: Plan, context: RenderContext) -> list[Part]:
    """Return what a plan is for, what it costs, and who must approve it."""
    parts: list[Part] = [section(one_line(plan.title, 300)), *costs(plan.losses, plan.warnings)]
    if plan.gate is not None:
        gate = plan.gate
        parts.append(
            section(
                f"*Needs {count(gate.approvals, 'approval')}* from {context.role(gate.approvers)} "
                f"within {duration(gate.expires_s)}: {one_line(gate.reason, 400)}"
            )
        )
    alternatives = [
        f"If {one_line(group)} fails: {len(choices) - 1} more to try"
        for group, choices in plan.alternatives.items()
        if len(choices) > 1
    ]
    parts.append(Lines(tuple(alternatives), noun="alternatives", small=True))
    return parts


def _command(plan: Plan, context: RenderContext) -> str:
    """Return the command that starts this plan again, in code type.

    Slack must show each option as it is sent back, so the words are escaped but only a value that is a secret by itself is
    removed: `max_new_tokens=64` reads like one to the rules for log lines.
    """
    return literal(context.typed(plan.action, _start(plan)))


START_PROPOSED = "start_proposed"


def proposal(plan: Plan, options: Mapping[str, str], reason: str, context: RenderContext) -> Message:
    """Return a plan that an assistant proposes: who presses the button starts it, with their own rights."""
    first = f"PROPOSED: {action_name(plan.action).lower()} on {plan.host}"
    details = context.command(plan.action, f"plan {plan.host}")
    todo = f"*Next:* press *Start* if you agree. Nothing has started. To see it all: {details}."
    value = json.dumps({"action": plan.action, "host": plan.host, "options": dict(options)})
    parts: list[Part] = [
        header(first),
        section(f"An assistant says: {one_line(reason, 300)}\n{todo}"),
        actions(button("Start", START_PROPOSED, value)),
        *costs(plan.losses, plan.warnings),
        plan_lines(plan),
        footnote(f"plan {code(plan.hash)}"),
    ]
    return compose(f"{first}: {one_line(reason, 300)}", parts)


def _start(plan: Plan) -> str:
    """Return the words that start this plan again. An option without a value was not given."""
    given = [f"{key}={_typed(value)}" for key, value in plan.options.items() if value not in (None, "")]
    return " ".join(("start", plan.host, *given))


def _typed(value: object) -> str:
    """Return an option's value as a person types it: quoted if it has spaces or quotes, each secret in it removed."""
    text = str(value).lower() if isinstance(value, bool) else redact(str(value)).text
    if not any(c.isspace() or c in "\"'" for c in text):
        return text
    return f"'{text}'" if '"' in text and "'" not in text else '"' + text.replace('"', "'") + '"'
