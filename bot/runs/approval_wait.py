"""The phases of a run before it changes its host: making and storing the plan, and waiting for approvals.

Both may be entered again after a kill. The plan is stored once, and the wait reads its deadline and the decisions from the
database, so that a restart changes nothing about what was agreed.
"""

import asyncio
from collections import defaultdict
from typing import Any, Literal

import structlog

from bot.runs.planning import Planner
from bot.store.records import Person, RunStatus, UserError
from bot.store.store import Store
from gpu_actions.action import PlanRefused

log = structlog.get_logger()

Phase = Literal["gate", "go", "end"]
"""What comes next: the wait for approvals, the host, or nothing. DBOS stores these words."""

RECHECK_S = 30.0
"""Every change in this process wakes a waiting run; this only limits how late it notices a change by another process."""


class PlanPhase:
    """Makes the plan of a run."""

    def __init__(self, store: Store, planner: Planner) -> None:
        self._store = store
        self._planner = planner

    async def make(self, run_id: str) -> Phase:
        """Make the plan and store it with its hash, or end the run as REFUSED if the plan cannot work."""
        row = await asyncio.to_thread(self._store.row, run_id)
        if row.status != RunStatus.PLANNING:
            return _next_phase(row.status)
        try:
            requester = Person.model_validate(row.requester)
            plan = await self._planner.plan(row.action, row.host, row.options, requester)
        except PlanRefused as refusal:
            return await self._refuse(run_id, refusal.problems)
        except UserError as error:
            return await self._refuse(run_id, (str(error),))
        except Exception as error:
            log.exception("planning failed", run=run_id, action=row.action)
            problem = f"planning {row.action} failed with {type(error).__name__}: {error}; the bot's log has the traceback"
            return await self._refuse(run_id, (problem,))
        values: dict[str, Any] = {"plan": plan.model_dump(mode="json"), "plan_hash": plan.hash}
        status = RunStatus.QUEUED
        if plan.gate is not None:
            values["gate_expires_at"] = self._store.clock() + plan.gate.expires_s
            status = RunStatus.WAITING
        text = f"plan {plan.hash} with {len(plan.steps)} steps"
        stored = await self._move(run_id, status, text, values)
        return _next_phase(status) if stored else "end"  # not stored: stopped during planning

    async def _refuse(self, run_id: str, problems: tuple[str, ...]) -> Phase:
        values = {"problems": list(problems), "outcome": "Refused before anything was touched."}
        await self._move(run_id, RunStatus.REFUSED, "; ".join(problems), values)
        return "end"

    async def _move(self, run_id: str, to: RunStatus, text: str, values: dict[str, Any]) -> bool:
        return await asyncio.to_thread(
            self._store.move, run_id, allowed=(RunStatus.PLANNING,), to=to, text=text, values=values
        )


class ApprovalWait:
    """Waits until enough people have approved a run, or until it ends otherwise."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._wakes: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._closing = False

    def wake(self, run_id: str) -> None:
        """Have a waiting run read its row again."""
        if run_id in self._wakes:
            self._wakes[run_id].set()

    def close(self) -> None:
        """End all waits without an outcome. They continue at the next start."""
        self._closing = True
        for wake in self._wakes.values():
            wake.set()

    async def wait(self, run_id: str) -> Phase:
        """Wait until the run has left WAITING. At its deadline it becomes EXPIRED."""
        wake = self._wakes[run_id]
        try:
            while True:
                wake.clear()
                if self._closing:
                    raise asyncio.CancelledError
                row = await asyncio.to_thread(self._store.row, run_id)
                if row.status != RunStatus.WAITING:
                    return _next_phase(row.status)
                left_s = row.gate_expires_at - self._store.clock()
                if left_s <= 0:
                    await self._expire(run_id)
                    continue
                try:
                    async with asyncio.timeout(min(left_s, RECHECK_S)):
                        await wake.wait()
                except TimeoutError:
                    continue
        finally:
            self._wakes.pop(run_id, None)

    async def _expire(self, run_id: str) -> None:
        await asyncio.to_thread(
            self._store.move,
            run_id,
            allowed=(RunStatus.WAITING,),
            to=RunStatus.EXPIRED,
            text="no decision before the deadline",
            values={"outcome": "Nobody decided in time. Nothing was touched."},
        )


def _next_phase(status: str) -> Phase:
    if status == RunStatus.WAITING:
        return "gate"
    return "end" if RunStatus(status).final else "go"
