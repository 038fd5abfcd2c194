"""Decisions on a waiting run: the buttons Approve and Deny, and `@bot approve RUN`, `deny RUN why`, `override RUN why`.

Only the run id and the hash of the plan come from the message; everything else is read again. A decision that is not
allowed, too late or repeated is answered with the reason.
"""

from bot.presenter import private_answers
from bot.presenter.approval_request import split_approval_value
from bot.presenter.mrkdwn import code, one_line
from bot.settings.model import Role
from bot.store.records import RunRecord, RunStatus, UserError
from handlers.arguments import run_id_of, split
from handlers.call import Call

DECISIONS = ("approve", "deny", "override")


async def press(call: Call, decision: str, value: str) -> None:
    """Decide by button; `value` is the button's."""
    run_id, plan_hash = split_approval_value(value)
    await _decide(call, decision, run_id, plan_hash=plan_hash)


async def mention(call: Call, decision: str, rest: str) -> None:
    """Decide by `@bot approve RUN`. Raises UserError if the run or a required reason is missing."""
    words = split(rest)
    if not words:
        why = " why" if decision != "approve" else ""
        raise UserError(f"Say which run: {decision} RUN{why}. {private_answers.waiting_runs(_waiting(call))}")
    await _decide(call, decision, run_id_of(words[0]), reason=" ".join(words[1:]))


async def _decide(call: Call, decision: str, run_id: str, *, plan_hash: str = "", reason: str = "") -> None:
    """Check one decision and pass it on. A mention carries no hash: it decides on the plan that the message shows now."""
    services = call.services
    run = services.runs.get(run_id)
    if run is None:
        await call.answer(private_answers.unknown_run(run_id, _waiting(call)))
        return
    if closed := private_answers.approval_closed(run):
        await call.answer(private_answers.plain(f":no_entry: {closed}"))
        return
    gate = run.plan.gate if run.plan is not None else None
    role: Role = "override" if decision == "override" else "approver"
    if gate is not None and decision != "override":
        role = _role(gate.approvers)
    await services.access.require(call.person, role, f"{decision} {run.action} on {run.host}")
    if decision == "override" and not reason.strip():
        raise UserError(f"An override needs a reason for the record: override {run.id} WHY.")
    answer = await services.approvals.decide(
        run_id=run.id,
        user=call.person,
        decision=decision,
        plan_hash=plan_hash or run.plan_hash,
        reason=reason,
    )
    sign = ":white_check_mark:" if answer.accepted else ":no_entry:"
    await call.answer(private_answers.plain(f"{sign} {one_line(answer.message, 800)} ({code(run.id)})"))


def _waiting(call: Call) -> list[RunRecord]:
    return [run for run in call.services.runs.list(active_only=True) if run.status is RunStatus.WAITING]


def _role(name: str) -> Role:
    """Return the role that may approve. An older plan's role that no longer exists becomes the strictest one."""
    match name:
        case "responder" | "approver" | "override":
            return name
        case _:
            return "override"
