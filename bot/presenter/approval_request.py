"""The approval part of a run's message: who is asked for what, who decided what and when, and the buttons.

It is built from the record at every edit, so an edit never loses a decision.
"""

from bot.presenter.message import Block, actions, button, section
from bot.presenter.mrkdwn import clock, code, duration, one_line, user
from bot.presenter.render_context import RenderContext
from bot.store.records import Decision, RunRecord, RunStatus

APPROVE = "approve"
DENY = "deny"


def approval_value(run: RunRecord) -> str:
    """Return the value of an approval button: the run's id and the hash of the plan it shows."""
    return f"{run.id}:{run.plan_hash}"


def split_approval_value(value: str) -> tuple[str, str]:
    """Return the run id and plan hash of a button's value; the hash is empty if the value has none."""
    run_id, _, plan_hash = value.partition(":")
    return run_id, plan_hash


def approval_blocks(run: RunRecord, context: RenderContext) -> list[Block]:
    """Return the request, the decisions and the buttons; nothing for a run without an approval."""
    gate = run.plan.gate if run.plan is not None else None
    waiting = gate is not None and run.status is RunStatus.WAITING
    lines: list[str] = []
    if gate is not None and waiting:
        lines.append(f"{user(run.requester)} asked for this run, so another person must approve it.")
        lines.append(one_line(gate.reason, 400))
        until = ""
        if run.gate_expires_at is not None:
            left = (
                duration(run.gate_expires_at - context.now)
                if run.gate_expires_at > context.now
                else "no time"
            )
            until = f" Expires at {clock(run.gate_expires_at)} ({left} left)."
        lines.append(f"The approval is for plan {code(run.plan_hash)}.{until}")
    lines += [_decision_line(decision, run) for decision in run.decisions]
    blocks = [section("\n".join(lines))] if lines else []
    if waiting:
        value = approval_value(run)
        blocks.append(
            actions(
                button("Approve", APPROVE, value, style="primary"),
                button("Deny", DENY, value, style="danger"),
            )
        )
    return blocks


def _decision_line(decision: Decision, run: RunRecord) -> str:
    sign, verb = {
        "approve": (":white_check_mark:", "Approved"),
        "deny": (":no_entry_sign:", "Denied"),
        "override": (":rotating_light:", "EMERGENCY OVERRIDE"),
    }[decision.decision]
    void = ""
    if run.plan_hash and decision.plan_hash != run.plan_hash and decision.decision != "deny":
        void = " No longer valid: the plan has changed."
    reason = f" Reason: {one_line(decision.reason, 400)}" if decision.reason else ""
    return f"{sign} {verb} by {user(decision.user)} at {clock(decision.at)}, plan {code(decision.plan_hash)}.{void}{reason}"
