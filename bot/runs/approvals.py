"""Decisions on a waiting run: a compare-and-set in the database, and one clear line for the person.

The database decides, and the first writer wins. The waiting workflow only reads the row, so a decision that was made while
the bot was down counts. The caller checks that the person has the role (`bot.slack.access`).
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy as sa

from bot.store.records import Decision, Person, RunRecord, RunStatus
from bot.store.row_to_record import OTHER_VERSION, decision_record, plan_problem, stored_plan
from bot.store.schema import decisions
from bot.store.store import RunChange, Store
from gpu_actions.models import Frozen
from gpu_actions.plan import Gate, Plan

VERBS = {"approve": "approved", "deny": "denied", "override": "overridden"}


class DecisionAnswer(Frozen):
    """The result of a decision. `message` is one line for the person; `run` is the run after it."""

    accepted: bool
    message: str
    run: RunRecord | None


class Approvals:
    """Takes decisions on waiting runs. `settled` is called with a run that no longer waits for one."""

    def __init__(
        self, store: Store, *, settled: Callable[[RunRecord], Awaitable[None]] | None = None
    ) -> None:
        self._store = store
        self._settled = settled

    async def decide(
        self, *, run_id: str, user: Person, decision: str, plan_hash: str, reason: str = ""
    ) -> DecisionAnswer:
        """Take a person's decision: `approve`, `deny`, or `override` (for the emergency role, with a reason).

        Never raises for a decision that is too late or not allowed: the message says so.
        """
        accepted, message = await asyncio.to_thread(
            self._decide, run_id, user, decision, plan_hash, reason.strip()
        )
        run = await asyncio.to_thread(self._store.get, run_id)
        if self._settled is not None and accepted and run is not None and run.status is not RunStatus.WAITING:
            await self._settled(run)
        return DecisionAnswer(accepted=accepted, message=message, run=run)

    def _decide(
        self, run_id: str, user: Person, decision: str, plan_hash: str, reason: str
    ) -> tuple[bool, str]:
        if decision not in VERBS:
            return False, f"{decision!r} is not a decision. Use one of: {', '.join(VERBS)}."
        if decision == "override" and not reason:
            return False, "An override needs a reason; it is kept in the record."
        if self._store.get(run_id) is None:
            return False, f"There is no run {run_id}; see the active ones with the status command."
        with self._store.change(run_id) as change:
            query = decisions.select().where(decisions.c.run_id == run_id).order_by(decisions.c.id)
            earlier = [decision_record(row) for row in change.connection.execute(query)]
            plan = stored_plan(change.row.plan)
            gate = plan.gate if plan is not None else None
            refusal = _refusal(change, gate, earlier, user, decision, plan_hash)
            if refusal:
                change.record("decision.refused", f"{decision}: {refusal}", actor=user.id)
                return False, refusal
            change.connection.execute(
                decisions.insert().values(
                    run_id=run_id,
                    user_id=user.id,
                    user=user.model_dump(),
                    decision=decision,
                    plan_hash=plan_hash,
                    reason=reason,
                    at=change.at,
                )
            )
            change.record(f"decision.{decision}", f"{VERBS[decision]} {reason}".strip(), actor=user.id)
            approvers = {d.user.id for d in earlier if d.decision == "approve" and d.plan_hash == plan_hash}
            missing = (gate.approvals if gate else 0) - len(approvers | {user.id})
            return True, _settle(change, user, decision, reason, missing)


def _settle(change: RunChange, user: Person, decision: str, reason: str, missing: int) -> str:
    """Carry out an accepted decision. Return the line for the person."""
    run_id = change.row.id
    if decision == "deny":
        because = f": {reason}" if reason else ""
        outcome = f"Denied by {user.name or user.id}{because}. Nothing was touched."
        change.set_status(RunStatus.DENIED, outcome=outcome)
        return f"{run_id} is denied. Nothing was touched."
    if decision == "approve" and missing > 0:
        return f"Your approval of {run_id} counts; {missing} more {'is' if missing == 1 else 'are'} needed."
    change.set_status(RunStatus.QUEUED)
    if decision == "override":
        return f"{run_id} continues without the missing approvals, on your override. The reason is in the record."
    return f"{run_id} is approved and starts now."


def _refusal(
    change: RunChange, gate: Gate | None, earlier: list[Decision], user: Person, decision: str, plan_hash: str
) -> str:
    """Return why a decision does not count, or an empty string. Runs in the transaction that would take it."""
    row: Any = change.row
    status = RunStatus(row.status)
    if status is not RunStatus.WAITING:
        return _too_late(row.id, status, earlier)
    if problem := plan_problem(row.plan):
        return f"{OTHER_VERSION}: {problem}. Start the action again."
    if gate is None:
        return f"{row.id} needs no approval."
    if row.gate_expires_at is not None and change.at >= row.gate_expires_at:
        return _too_late(row.id, RunStatus.EXPIRED, earlier)
    if not plan_hash:
        return f"The decision on {row.id} names no plan, so it does not count: use the newest request."
    if plan_hash != row.plan_hash:
        return f"The plan of {row.id} has changed since you saw it (now {row.plan_hash}): read it again, then decide."
    own = next((d for d in earlier if d.user.id == user.id and d.plan_hash == plan_hash), None)
    if own is not None:
        return f"You have already {VERBS[own.decision]} {row.id}; another person must decide."
    if decision != "deny" and row.requester.get("id") == user.id:
        return f"You asked for {row.id} yourself, so another person must {decision} it. You can stop it."
    return ""


def _too_late(run_id: str, status: RunStatus, earlier: list[Decision]) -> str:
    if status is RunStatus.EXPIRED:
        return f"The time to decide on {run_id} is over; make a new request."
    if status is RunStatus.PLANNING:
        return f"{run_id} is still being planned; decide when its plan is shown."
    if status in (RunStatus.DENIED, RunStatus.QUEUED, RunStatus.RUNNING) and earlier:
        last = earlier[-1]
        return f"{run_id} was already {VERBS[last.decision]} by {last.user.name or last.user.id}."
    return f"{run_id} is not waiting for a decision: it is {status.value}."


def replace_plan(store: Store, run: RunRecord, plan: Plan, by: Person) -> bool:
    """Replace the plan of a waiting run, which voids its approvals. Return False if it was decided meanwhile."""
    with store.change(run.id) as change:
        row = change.row
        change.changed = row.status == RunStatus.WAITING and row.plan_hash == run.plan_hash
        if not change.changed:
            return False
        expires_s = plan.gate.expires_s if plan.gate is not None else 0.0
        change.set(
            plan=plan.model_dump(mode="json"), plan_hash=plan.hash, gate_expires_at=change.at + expires_s
        )
        old = sa.and_(decisions.c.run_id == run.id, decisions.c.plan_hash == run.plan_hash)
        count = sa.select(sa.func.count()).select_from(decisions).where(old)
        voided = change.connection.execute(count).scalar_one()
        text = (
            f"plan {run.plan_hash} was replaced by {plan.hash}; decisions on the old plan, now void: {voided}"
        )
        change.record("run.replanned", text, actor=by.id)
    return True
