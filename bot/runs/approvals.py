"""Decisions on a waiting run: one compare-and-set in the database, and one clear line for the person.

The row decides, first writer wins (engine.md, trap 11); the waiting workflow only reads it, so a decision given while the bot
was down counts. Who holds the role is the caller's to check (`bot.slack.access`).
"""

import asyncio
from typing import Any

import sqlalchemy as sa

from bot.store.audit import append
from bot.store.records import Decision, Person, RunRecord, RunStatus
from bot.store.rows import decision_record, plan_of
from bot.store.schema import decisions, host_locks, runs
from bot.store.store import Store
from gpu_actions.models import Frozen
from gpu_actions.plan import Gate

VERBS = {"approve": "approved", "deny": "denied", "override": "overridden"}


class DecisionAnswer(Frozen):
    """What became of a decision. `message` is one line for the person; `run` as it stands now."""

    accepted: bool
    message: str
    run: RunRecord | None


class Approvals:
    """The gate's rows."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def decide(
        self, *, run_id: str, user: Person, decision: str, plan_hash: str, reason: str = ""
    ) -> DecisionAnswer:
        """Take a person's word on a run: `approve`, `deny`, or `override` (the emergency role's, with a reason).

        Never raises for a decision that comes too late or is not theirs to give: the message says so.
        """
        accepted, message = await asyncio.to_thread(
            self._decide, run_id, user, decision, plan_hash, reason.strip()
        )
        run = await asyncio.to_thread(self._store.get, run_id)
        return DecisionAnswer(accepted=accepted, message=message, run=run)

    def _decide(
        self, run_id: str, user: Person, decision: str, plan_hash: str, reason: str
    ) -> tuple[bool, str]:
        if decision not in VERBS:
            return False, f"{decision!r} is no decision; there are: {', '.join(VERBS)}."
        if decision == "override" and not reason:
            return False, "An override needs a reason, which stays in the record."
        if self._store.get(run_id) is None:
            return False, f"There is no run {run_id}; see the active ones with the status command."
        now = self._store.clock()
        with self._store.change(run_id) as connection:
            row = connection.execute(runs.select().where(runs.c.id == run_id)).one()
            given = [
                decision_record(found)
                for found in connection.execute(
                    decisions.select().where(decisions.c.run_id == run_id).order_by(decisions.c.id)
                )
            ]
            plan = plan_of(row.plan)
            gate = plan.gate if plan is not None else None
            refusal = _refusal(row, gate, given, user, decision, plan_hash, now)
            if refusal:
                self._append(connection, row, user, "decision.refused", f"{decision}: {refusal}")
                return False, refusal
            connection.execute(
                decisions.insert().values(
                    run_id=run_id,
                    user_id=user.id,
                    user=user.model_dump(),
                    decision=decision,
                    plan_hash=plan_hash,
                    reason=reason,
                    at=now,
                )
            )
            self._append(connection, row, user, f"decision.{decision}", f"{VERBS[decision]} {reason}".strip())
            missing = (gate.approvals if gate else 0) - len(
                {d.user.id for d in given if d.decision == "approve" and d.plan_hash == plan_hash} | {user.id}
            )
            return True, self._settle(connection, row, user, decision, reason, missing)

    def _settle(
        self, connection: sa.Connection, row: Any, user: Person, decision: str, reason: str, missing: int
    ) -> str:
        by = user.name or user.id
        if decision == "deny":
            self._set(
                connection,
                row,
                RunStatus.DENIED,
                ended_at=self._store.clock(),
                outcome=f"Denied by {by}{f': {reason}' if reason else ''}. Nothing was touched.",
            )
            connection.execute(host_locks.delete().where(host_locks.c.run_id == row.id))
            return f"{row.id} is denied. Nothing was touched."
        if decision == "override":
            self._set(connection, row, RunStatus.QUEUED)
            return f"{row.id} goes on without the missing approvals, on your override; the reason is in the record."
        if missing > 0:
            return (
                f"Your approval of {row.id} counts; {missing} more {'is' if missing == 1 else 'are'} needed."
            )
        self._set(connection, row, RunStatus.QUEUED)
        return f"{row.id} is approved and starts now."

    @staticmethod
    def _set(connection: sa.Connection, row: Any, status: RunStatus, **values: Any) -> None:
        connection.execute(runs.update().where(runs.c.id == row.id).values(status=status.value, **values))

    def _append(self, connection: sa.Connection, row: Any, user: Person, kind: str, text: str) -> None:
        append(
            connection,
            at=self._store.clock(),
            host=row.host,
            actor=user.id,
            kind=kind,
            text=text,
            run_id=row.id,
            incident_id=row.incident_id,
        )


def _refusal(
    row: Any,
    gate: Gate | None,
    given: list[Decision],
    user: Person,
    decision: str,
    plan_hash: str,
    now: float,
) -> str:
    """Why this word does not count, or an empty string. Runs inside the transaction that would take it."""
    status = RunStatus(row.status)
    if status is not RunStatus.WAITING:
        return _too_late(row, status, given)
    if gate is None:
        return f"{row.id} needs no approval."
    if row.gate_expires_at is not None and now >= row.gate_expires_at:
        return f"The time to decide on {row.id} is over; make a new request."
    if plan_hash != row.plan_hash:
        return f"The plan of {row.id} has changed since you saw it (now {row.plan_hash}): read it again, then decide."
    earlier = next((d for d in given if d.user.id == user.id and d.plan_hash == plan_hash), None)
    if earlier is not None:
        return f"You have already {VERBS[earlier.decision]} {row.id}; another person must decide."
    if decision == "approve" and row.requester.get("id") == user.id:
        return f"You asked for {row.id} yourself: somebody else must approve it. You can stop it."
    return ""


def _too_late(row: Any, status: RunStatus, given: list[Decision]) -> str:
    if status is RunStatus.EXPIRED:
        return f"The time to decide on {row.id} is over; make a new request."
    if status is RunStatus.PLANNING:
        return f"{row.id} is still being planned; decide when its plan is shown."
    last = given[-1] if given else None
    if status in (RunStatus.DENIED, RunStatus.QUEUED, RunStatus.RUNNING) and last is not None:
        return f"{row.id} was already {VERBS[last.decision]} by {last.user.name or last.user.id}."
    return f"{row.id} does not wait for a decision: it is {status.value}."
