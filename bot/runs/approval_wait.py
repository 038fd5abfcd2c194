"""The wait of a run for its approvals.

It may be entered again after a kill: the deadline and the decisions are in the database, so a restart changes neither.
"""

import asyncio
from collections import defaultdict

from bot.runs.plan_phase import Phase, next_phase
from bot.runs.planning import Planner
from bot.store.records import RunStatus
from bot.store.row_to_record import OTHER_VERSION, plan_problem
from bot.store.store import Store

RECHECK_S = 30.0
"""Every change in this process wakes a waiting run; this only limits how late it notices a change by another process."""


class ApprovalWait:
    """Waits until enough people have approved a run, or until it ends otherwise."""

    def __init__(self, store: Store, planner: Planner) -> None:
        self._store = store
        self._planner = planner
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
                    phase = next_phase(row.status)
                    if phase == "end":
                        await self._planner.give_back(row.action, row.host)
                    return phase
                if problem := plan_problem(row.plan):
                    await self._refuse(run_id, problem)
                    continue
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

    async def _refuse(self, run_id: str, problem: str) -> None:
        outcome = f"{OTHER_VERSION}: {problem}. Nothing was touched."
        values = {"outcome": outcome, "next_action": "start the action again"}
        await asyncio.to_thread(
            self._store.move,
            run_id,
            allowed=(RunStatus.WAITING,),
            to=RunStatus.FAILED,
            text=outcome,
            values=values,
        )

    async def _expire(self, run_id: str) -> None:
        await asyncio.to_thread(
            self._store.move,
            run_id,
            allowed=(RunStatus.WAITING,),
            to=RunStatus.EXPIRED,
            text="no decision before the deadline",
            values={"outcome": "Nobody decided in time. Nothing was touched."},
        )
