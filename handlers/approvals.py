"""Decisions on a waiting run: the buttons Approve and Deny, and `@bot approve RUN`, `deny RUN why`, `override RUN why`.

Everything but the run id and the hash of the plan that was shown is read again here. Whoever may not decide, comes too late or
presses twice is told so.
"""

from bot.presenter import answers
from bot.presenter.gate import split_gate_value
from bot.presenter.mrkdwn import code, one_line
from bot.settings.model import Role
from bot.store.records import RunStatus, UserError
from handlers.arguments import run_id_of, split
from handlers.call import Call

DECISIONS = ("approve", "deny", "override")


async def press(call: Call, decision: str, value: str) -> None:
    """A press of Approve or Deny; `value` is the button's."""
    run_id, plan_hash = split_gate_value(value)
    await decide(call, decision, run_id, plan_hash=plan_hash)


async def mention(call: Call, decision: str, rest: str) -> None:
    """`@bot approve RUN`: the words behind the decision. Raises UserError when the run or a needed reason is missing."""
    words = split(rest)
    if not words:
        waiting = [
            run.id for run in call.services.runs.list(active_only=True) if run.status is RunStatus.WAITING
        ]
        ids = f" Waiting now: {', '.join(waiting)}." if waiting else " No run waits for an approval now."
        raise UserError(f"Say which run: {decision} RUN{' why' if decision != 'approve' else ''}.{ids}")
    await decide(call, decision, run_id_of(words[0]), reason=" ".join(words[1:]))


async def decide(call: Call, decision: str, run_id: str, *, plan_hash: str = "", reason: str = "") -> None:
    """Check and pass on one decision, and say what came of it.

    A decision by mention carries no hash: it is on the plan as the message shows it now.
    """
    services = call.services
    run = services.runs.get(run_id)
    if run is None:
        waiting = [r for r in services.runs.list(active_only=True) if r.status is RunStatus.WAITING]
        await call.answer(answers.unknown_run(run_id, waiting))
        return
    if closed := answers.gate_closed(run, call.view):
        await call.answer(answers.plain(f":no_entry: {closed}"))
        return
    gate = run.plan.gate if run.plan is not None else None
    role: Role = "override" if decision == "override" else "approver"
    if gate is not None and decision != "override":
        role = _role(gate.approvers)
    await services.access.require(call.person, role, f"{decision} {run.action} on {run.host}")
    if decision == "override" and not reason.strip():
        raise UserError(f"An override needs its reason, for the record: override {run.id} WHY.")
    answer = await services.approvals.decide(
        run_id=run.id,
        user=call.person,
        decision=decision,
        plan_hash=plan_hash or run.plan_hash,
        reason=reason,
    )
    sign = ":white_check_mark:" if answer.accepted else ":no_entry:"
    await call.answer(answers.plain(f"{sign} {one_line(answer.message, 800)} ({code(run.id)})"))


def _role(name: str) -> Role:
    """The gate's role as one of ours; a name that an older plan carries and we do not know is the strictest."""
    match name:
        case "responder" | "approver" | "override":
            return name
        case _:
            return "override"
