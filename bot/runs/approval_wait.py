"""Before the host's part: making and storing the plan, and the wait for approvals.

Both are steps that may be entered again after a kill: the plan is stored once, and the wait reads its deadline and its
decisions from the rows, so neither a restart nor a long night changes what was agreed.
"""

import asyncio
from collections import defaultdict
from typing import Any, Literal

import sqlalchemy as sa
import structlog

from bot.runs.planning import Planner
from bot.store.audit import append
from bot.store.records import Person, RunRecord, RunStatus, UserError
from bot.store.schema import decisions, runs
from bot.store.store import Store
from gpu_actions.action import PlanRefused
from gpu_actions.plan import Plan

log = structlog.get_logger()

Phase = Literal["gate", "go", "end"]
LOOK_AGAIN_S = 30.0
"""A waiting run is woken by every change in this process; this only bounds a change made by another one."""


class ApprovalWait:
    """The phases of a run before its host works: planning, and the wait for approvals."""

    def __init__(self, store: Store, planner: Planner) -> None:
        self._store = store
        self._planner = planner
        self._news: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._closing = False

    def wake(self, run_id: str) -> None:
        """Have the waiting run look at its row again."""
        if run_id in self._news:
            self._news[run_id].set()

    def close(self) -> None:
        """End all waits without an outcome; they go on at the next start."""
        self._closing = True
        for news in self._news.values():
            news.set()

    async def plan(self, run_id: str) -> Phase:
        """Make the plan and store it with its hash; REFUSED when it cannot work."""
        row = await asyncio.to_thread(self._store.row, run_id)
        if row.status != RunStatus.PLANNING:
            return self._phase(RunStatus(row.status))
        try:
            spec = self._planner.spec(row.action)
            made = await self._planner.plan(spec, row.host, row.options, Person.model_validate(row.requester))
        except (PlanRefused, UserError) as refusal:
            problems = refusal.problems if isinstance(refusal, PlanRefused) else (str(refusal),)
            await self._refuse(run_id, list(problems))
            return "end"
        except Exception as error:
            log.exception("planning broke", run=run_id, action=row.action)
            await self._refuse(
                run_id,
                [
                    f"planning {row.action} broke with {type(error).__name__}: {error}; the bot's log has the traceback"
                ],
            )
            return "end"
        return await self._keep(run_id, made)

    async def _keep(self, run_id: str, plan: Plan) -> Phase:
        waits = plan.gate is not None
        values: dict[str, Any] = {"plan": plan.model_dump(mode="json"), "plan_hash": plan.hash}
        if plan.gate is not None:
            values["gate_expires_at"] = self._store.clock() + plan.gate.expires_s
        kept = await asyncio.to_thread(
            self._store.move,
            run_id,
            allowed=(RunStatus.PLANNING,),
            to=RunStatus.WAITING if waits else RunStatus.QUEUED,
            actor="bot",
            text=f"plan {plan.hash} with {len(plan.steps)} steps",
            values=values,
        )
        if not kept:  # stopped while it was being planned
            return "end"
        return "gate" if waits else "go"

    async def _refuse(self, run_id: str, problems: list[str]) -> None:
        await asyncio.to_thread(
            self._store.move,
            run_id,
            allowed=(RunStatus.PLANNING,),
            to=RunStatus.REFUSED,
            actor="bot",
            text="; ".join(problems),
            values={"problems": problems, "outcome": "Refused before anything was touched."},
        )

    async def wait(self, run_id: str) -> Phase:
        """Wait until the row says that it goes on or has ended; EXPIRED at its deadline."""
        news = self._news[run_id]
        try:
            while True:
                news.clear()
                if self._closing:
                    raise asyncio.CancelledError
                row = await asyncio.to_thread(self._store.row, run_id)
                if row.status != RunStatus.WAITING:
                    return self._phase(RunStatus(row.status))
                left_s = row.gate_expires_at - self._store.clock()
                if left_s <= 0:
                    await self._expire(run_id)
                    continue
                try:
                    async with asyncio.timeout(min(left_s, LOOK_AGAIN_S)):
                        await news.wait()
                except TimeoutError:
                    continue
        finally:
            self._news.pop(run_id, None)

    async def _expire(self, run_id: str) -> None:
        await asyncio.to_thread(
            self._store.move,
            run_id,
            allowed=(RunStatus.WAITING,),
            to=RunStatus.EXPIRED,
            actor="bot",
            text="nobody decided in time",
            values={"outcome": "Nobody decided in time. Nothing was touched."},
        )

    @staticmethod
    def _phase(status: RunStatus) -> Phase:
        if status is RunStatus.WAITING:
            return "gate"
        return "end" if status.final else "go"


def exchange_plan(store: Store, run: RunRecord, plan: Plan, by: Person) -> bool:
    """Put a new plan in the place of the one a run waits with. False when it was decided meanwhile; blocks."""
    now = store.clock()
    expires_s = plan.gate.expires_s if plan.gate is not None else 0.0
    with store.change(run.id) as connection:
        done = connection.execute(
            runs.update()
            .where(
                runs.c.id == run.id,
                runs.c.status == RunStatus.WAITING.value,
                runs.c.plan_hash == run.plan_hash,
            )
            .values(
                plan=plan.model_dump(mode="json"),
                plan_hash=plan.hash,
                gate_expires_at=now + expires_s,
            )
        )
        if done.rowcount == 0:
            return False
        voided = connection.execute(
            sa.select(sa.func.count())
            .select_from(decisions)
            .where(decisions.c.run_id == run.id, decisions.c.plan_hash == run.plan_hash)
        ).scalar_one()
        append(
            connection,
            at=now,
            host=run.host,
            actor=by.id,
            kind="run.replanned",
            text=f"plan {run.plan_hash} became {plan.hash}; {voided} decisions on the old one count no more",
            run_id=run.id,
            incident_id=run.incident_id,
        )
    return True
