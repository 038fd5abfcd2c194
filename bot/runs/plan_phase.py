"""The first phase of a run: make its plan and store it.

It may be entered again after a kill: the plan is stored only once.
"""

import asyncio
from typing import Any, Literal

import structlog

from bot.runs.planning import Planner
from bot.store.records import Person, RunStatus, UserError
from bot.store.store import Store
from gpu_actions.action import PlanRefused

log = structlog.get_logger()

Phase = Literal["gate", "go", "end"]
"""What comes next: the wait for approvals, the host, or nothing. DBOS stores these words."""


def next_phase(status: str) -> Phase:
    """Return what comes next for a run with this status."""
    if status == RunStatus.WAITING:
        return "gate"
    return "end" if RunStatus(status).final else "go"


class PlanPhase:
    """Makes the plan of a run."""

    def __init__(self, store: Store, planner: Planner) -> None:
        self._store = store
        self._planner = planner

    async def make(self, run_id: str) -> Phase:
        """Make the plan and store it with its hash, or end the run as REFUSED if the plan cannot work."""
        row = await asyncio.to_thread(self._store.row, run_id)
        if row.status != RunStatus.PLANNING:
            return next_phase(row.status)
        try:
            requester = Person.model_validate(row.requester, extra="ignore")
            plan = await self._planner.plan(row.action, row.host, row.options, requester, starts=True)
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
        if not stored:  # stopped during planning
            await self._planner.give_back(row.action, row.host)
            return "end"
        return next_phase(status)

    async def _refuse(self, run_id: str, problems: tuple[str, ...]) -> Phase:
        values = {"problems": list(problems), "outcome": "Refused before anything was touched."}
        await self._move(run_id, RunStatus.REFUSED, "; ".join(problems), values)
        return "end"

    async def _move(self, run_id: str, to: RunStatus, text: str, values: dict[str, Any]) -> bool:
        return await asyncio.to_thread(
            self._store.move, run_id, allowed=(RunStatus.PLANNING,), to=to, text=text, values=values
        )
