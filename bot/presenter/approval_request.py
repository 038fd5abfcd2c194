"""A request for approval: a reply of its own, with what is asked, what it costs and the buttons; and who decided what.

It is built from the record at every edit, so an edit never loses a decision. A decided request keeps one line.
"""

from bot.presenter.message import Message, Part, actions, button, compose, footnote, section
from bot.presenter.mrkdwn import ago, capitalized, code, duration, gist, one_line, until, user
from bot.presenter.render_context import RenderContext
from bot.presenter.vocabulary import action_name, count
from bot.store.records import Decision, RunRecord, RunStatus
from gpu_actions.plan import Gate, Plan

APPROVE = "approve"
DENY = "deny"
SHOW_PLAN = "show_plan"
MAX_DECISIONS = 2
ENDED = {
    RunStatus.EXPIRED: ":alarm_clock: Nobody approved it in time.",
    RunStatus.CANCELLED: ":octagonal_sign: It was stopped before anyone decided.",
}


def approval_value(run: RunRecord) -> str:
    """Return the value of an approval button: the run's id and the hash of the plan it shows."""
    return f"{run.id}:{run.plan_hash}"


def split_approval_value(value: str) -> tuple[str, str]:
    """Return the run id and plan hash of a button's value; the hash is empty if the value has none."""
    run_id, _, plan_hash = value.partition(":")
    return run_id, plan_hash


def approval_request(run: RunRecord, context: RenderContext) -> Message:
    """Return the request while the run waits, else who decided. Raises ValueError for a run without a plan."""
    if run.plan is None or run.plan.gate is None:
        raise ValueError(f"{run.id} asks for no approval")
    if run.status is RunStatus.WAITING:
        return _request(run, run.plan, run.plan.gate, context)
    return _decided(run)


def reminder(run: RunRecord, gate: Gate, due_at: float, expires_at: float, context: RenderContext) -> Message:
    """Return the reminder that is posted `due_at`, near the end of a request, with the same buttons."""
    asked = f"*{one_line(action_name(run.action).lower())}* on {one_line(run.host)}"
    left, missing = duration(expires_at - due_at), count(run.short_of_approvals, "approval")
    first = f":alarm_clock: {context.role(gate.approvers)}: {left} left to decide on {asked}. {missing} still needed."
    return compose(first, [section(first), _buttons(run), _ids(run)])


def outdated_request(run: RunRecord) -> Message:
    """Return what a request says once its plan was replaced."""
    text = f":no_entry: The plan of {code(run.id)} has changed: decide on the newest request."
    return compose(text, [section(text)])


def decision_lines(run: RunRecord) -> list[str]:
    """Return one short line for each of the latest decisions; Details has all."""
    return [decision_line(decision, run, words=12) for decision in run.decisions[-MAX_DECISIONS:]]


def decision_line(decision: Decision, run: RunRecord, *, words: int = 200) -> str:
    """Return who decided, how long ago, and why; a decision on another plan is marked as void."""
    sign, verb = {
        "approve": (":white_check_mark:", "Approved"),
        "deny": (":no_entry_sign:", "Denied"),
        "override": (":rotating_light:", "EMERGENCY OVERRIDE"),
    }[decision.decision]
    void = ""
    if run.plan_hash and decision.plan_hash != run.plan_hash and decision.decision != "deny":
        void = f" on plan {code(decision.plan_hash)}. No longer valid: the plan has changed"
    reason = f" {capitalized(gist(decision.reason, words))}" if decision.reason else ""
    return f"{sign} {verb} by {user(decision.user)} {ago(decision.at)}{void}.{reason}"


def _request(run: RunRecord, plan: Plan, gate: Gate, context: RenderContext) -> Message:
    what = f"*{one_line(action_name(run.action).lower())}* on {one_line(run.host)}"
    first = f":raised_hand: {context.role(gate.approvers)}: approve {what}?"
    lines = [first, capitalized(gist(plan.title, 12))]
    if plan.losses:
        lines.append(f"*Costs:* {gist(plan.losses, 14)}")
    if plan.warnings:
        more = f" (+{len(plan.warnings) - 1} in the plan)" if len(plan.warnings) > 1 else ""
        lines.append(f":warning: {capitalized(gist(plan.warnings[0], 10))}{more}")
    given = gate.approvals - run.short_of_approvals
    open_for = "" if run.gate_expires_at is None else f" Open until {until(run.gate_expires_at)}."
    asked = f"Asked by {user(run.requester)} {ago(run.created_at)}.{open_for}"
    lines.append(asked + (f" {given} of {gate.approvals} approved." if given else ""))
    parts: list[Part] = [section("\n".join(lines)), _buttons(run), _ids(run)]
    return compose(first, parts)


def _buttons(run: RunRecord) -> dict[str, object]:
    value = approval_value(run)
    question = f"{action_name(run.action)} on {run.host} starts at once, as plan {run.plan_hash} says."
    return actions(
        button("Approve", APPROVE, value, style="primary", confirm=question),
        button("Deny", DENY, value, style="danger"),
        button("Show plan", SHOW_PLAN, value),
    )


def _ids(run: RunRecord) -> dict[str, object]:
    return footnote(f"plan {code(run.plan_hash)} · {code(run.id)}")


def _decided(run: RunRecord) -> Message:
    lines = decision_lines(run) or [ENDED.get(run.status, ":fast_forward: No decision is needed any more.")]
    return compose(lines[0], [section("\n".join(lines)), _ids(run)])
