"""The approval part of a run's message: who is asked for what, who said what and when, and the buttons.

It is rebuilt from the record at every edit, so "approved by" can never be lost by a later one.
"""

from bot.presenter.message import Block, actions, button, section
from bot.presenter.mrkdwn import clock, code, duration, one_line, user
from bot.presenter.view import View
from bot.store.records import Decision, RunRecord, RunStatus

APPROVE = "approve"
DENY = "deny"


def gate_value(run: RunRecord) -> str:
    """What an approval button carries: the run's id and the hash of the plan that was shown."""
    return f"{run.id}:{run.plan_hash}"


def split_gate_value(value: str) -> tuple[str, str]:
    """Run id and plan hash of a button's value; the hash is empty where the value holds none."""
    run_id, _, plan_hash = value.partition(":")
    return run_id, plan_hash


def gate_blocks(run: RunRecord, view: View) -> list[Block]:
    """The gate as blocks; nothing for a run without a gate and without decisions."""
    gate = run.plan.gate if run.plan is not None else None
    if gate is None and not run.decisions:
        return []
    lines: list[str] = []
    blocks: list[Block] = []
    waiting = run.status is RunStatus.WAITING
    if gate is not None and waiting:
        missing = run.short_of_approvals
        lines.append(
            f"*Approval needed:* {missing} of {gate.approvals} still missing, from {view.role(gate.approvers)}, "
            f"not from {user(run.requester)} who asked."
        )
        lines.append(one_line(gate.reason, 400))
        until = ""
        if run.gate_expires_at is not None:
            left = duration(run.gate_expires_at - view.now) if run.gate_expires_at > view.now else "no time"
            until = f" Open until {clock(run.gate_expires_at)} ({left} left)."
        lines.append(f"Approves plan {code(run.plan_hash)}.{until}")
    lines.extend(decision_line(decision, run) for decision in run.decisions)
    if run.status is RunStatus.EXPIRED and gate is not None:
        lines.append(f":alarm_clock: Nobody approved plan {code(run.plan_hash)} in time.")
    if lines:
        blocks.append(section("\n".join(lines)))
    if gate is not None and waiting:
        blocks.append(
            actions(
                button("Approve", APPROVE, gate_value(run), style="primary"),
                button("Deny", DENY, gate_value(run), style="danger"),
            )
        )
    return blocks


def decision_line(decision: Decision, run: RunRecord) -> str:
    """Who, what, when, on which plan, and why."""
    sign, verb = {
        "approve": (":white_check_mark:", "Approved"),
        "deny": (":no_entry_sign:", "Denied"),
        "override": (":rotating_light:", "EMERGENCY OVERRIDE"),
    }[decision.decision]
    void = ""
    if run.plan_hash and decision.plan_hash != run.plan_hash and decision.decision != "deny":
        void = " Void: the plan changed since."
    reason = f" Reason: {one_line(decision.reason, 400)}" if decision.reason else ""
    return f"{sign} {verb} by {user(decision.user)} at {clock(decision.at)}, plan {code(decision.plan_hash)}.{void}{reason}"
