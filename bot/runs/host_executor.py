"""Executes a run on its host, one step at a time: decide the next step from the run's rows, run it, store how it ended.

`advance` may be called again after any kill: it reads which steps have ended, asks `next_move`, and runs that. A step is
interrupted by `interrupt` (a person's stop) or by `close` (the bot ends). Only a stop stores an outcome, so after a close
the step runs again at the next start.
"""

import asyncio
import json
from collections import defaultdict
from hashlib import sha256
from typing import Any

import structlog
from sqlalchemy.exc import OperationalError

from bot.hosts import Hosts
from bot.incidents.artifacts import ArtifactStore, attempt_folder
from bot.runs.step_progress import StepProgress
from bot.store.records import Person, RunStatus
from bot.store.row_to_record import OTHER_VERSION, plan_problem, stored_plan
from bot.store.step_rows import StepRows
from bot.store.store import Store
from gpu_actions.action import Signal, StepContext
from gpu_actions.models import JsonObject
from gpu_actions.plan import Plan
from gpu_actions.walk import Ended, Outcome, RunStep, StepEnd, next_move, outputs_of, run_step

log = structlog.get_logger()

STOP_GRACE_S = 30.0
"""How long an interrupted step may take to end its children. After that the step's summary says that some may be left."""

AT_WORK = (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.SETTLING)


class HostExecutor:
    """Executes runs on the hosts of this process."""

    def __init__(self, store: Store, *, artifacts: ArtifactStore, hosts: Hosts) -> None:
        self._store = store
        self._rows = StepRows(store)
        self._artifacts = artifacts
        self._hosts = hosts
        self._run_locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._stops: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._working: set[asyncio.Task[StepEnd]] = set()
        self._closing = False

    def interrupt(self, run_id: str) -> None:
        """Interrupt the running step of a run whose row already says that a stop was requested."""
        if run_id in self._stops:
            self._stops[run_id].set()

    async def close(self) -> None:
        """Interrupt every step and its children without storing an outcome, and wait until they have ended."""
        self._closing = True
        for task in self._working:
            task.cancel()
        if self._working:
            await asyncio.wait(self._working, timeout=STOP_GRACE_S)

    async def advance(self, run_id: str) -> JsonObject:
        """Run the next step of a run. Return `{"ended": bool, ...}`.

        Raise OperationalError while the database does not answer, and CancelledError when the bot ends.
        """
        async with self._run_locks[run_id]:
            try:
                result = await self._advance(run_id)
            except OperationalError:
                raise  # nothing is wrong with the run: the workflow tries again
            except Exception as error:
                log.exception("the run engine failed", run=run_id)
                await self._conclude(
                    run_id,
                    RunStatus.FAILED,
                    f"The run engine failed: {type(error).__name__}: {error}. The state of the host is unknown.",
                    "check the host with triage; the bot's log has the traceback",
                )
                result = {"ended": True}
        if result["ended"]:
            self._stops.pop(run_id, None)
            self._run_locks.pop(run_id, None)
        return result

    async def _advance(self, run_id: str) -> JsonObject:
        stop = self._stops[run_id]
        row = await asyncio.to_thread(self._store.row, run_id)
        if row.status not in AT_WORK:
            return {"ended": True}
        plan = stored_plan(row.plan)
        if plan is None or _hash(row.plan) != row.plan_hash:
            await self._conclude(run_id, RunStatus.FAILED, *_unusable(plan_problem(row.plan)))
            return {"ended": True}
        outcomes = await asyncio.to_thread(self._rows.outcomes, run_id)
        move = next_move(plan, outcomes, cancelled=row.stop_requested is not None)
        if isinstance(move, Ended):
            await self._conclude(run_id, RunStatus(move.status), *_ending(plan, move, outcomes, row))
            return {"ended": True, "status": move.status}
        if not await self._set_status(run_id, row, move):
            return {"ended": True}  # stopped at this very moment
        end = await self._run_step(run_id, row.host, move, outcomes, stop)
        for artifact in end.artifacts:
            await self._artifacts.store(run_id, attempt_folder(move.step.id, move.attempt), artifact)
        await asyncio.to_thread(self._rows.end, run_id, end)
        return {"ended": False, "step": move.step.id, "attempt": move.attempt, "status": end.outcome.status}

    async def _set_status(self, run_id: str, row: Any, move: RunStep) -> bool:
        status = RunStatus.SETTLING if move.compensating else RunStatus.RUNNING
        if row.status == status:
            return True
        return await asyncio.to_thread(
            self._store.move,
            run_id,
            allowed=AT_WORK,
            to=status,
            text="cleaning up" if move.compensating else f"at work on {row.host}",
            values={} if row.started_at is not None else {"started_at": self._store.clock()},
        )

    async def _run_step(
        self, run_id: str, host_name: str, move: RunStep, outcomes: list[Outcome], stop: asyncio.Event
    ) -> StepEnd:
        host = self._hosts.get(host_name)
        workdir = host.state_dir / "runs" / run_id
        workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(self._rows.begin, run_id, move)
        progress = StepProgress(lambda text, fraction: self._rows.progress(run_id, move, text, fraction))

        async def signals() -> tuple[Signal, ...]:
            return await asyncio.to_thread(self._store.signals, run_id)

        context = StepContext(
            run_id=run_id,
            host=host,
            step=move.step,
            outputs=outputs_of(outcomes),
            workdir=workdir,
            report=progress,
            signals=signals,
        )
        if self._closing:
            raise asyncio.CancelledError
        work = asyncio.create_task(run_step(move, context), name=f"{run_id}:{move.step.id}")
        self._working.add(work)
        try:
            return await self._until_stopped(work, move, stop)
        finally:
            self._working.discard(work)
            await progress.close()

    async def _until_stopped(
        self, work: asyncio.Task[StepEnd], move: RunStep, stop: asyncio.Event
    ) -> StepEnd:
        """Wait for a step, or interrupt it at a stop. A stop does not interrupt the cleanup."""
        stopped = asyncio.create_task(stop.wait())
        try:
            watched = {work} if move.compensating else {work, stopped}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                if work.cancelled() and not stop.is_set():
                    raise asyncio.CancelledError  # the bot ends; without an outcome the step runs again
                if not work.cancelled():
                    return work.result()
            work.cancel()
            done, _ = await asyncio.wait({work}, timeout=STOP_GRACE_S)
        finally:
            stopped.cancel()
            work.cancel()
        if self._closing:
            raise asyncio.CancelledError
        if done and not work.cancelled():
            return work.result()  # it finished at the same moment
        left = "" if done else f"; it did not end within {STOP_GRACE_S:.0f} s and may still be at work"
        outcome = Outcome(
            step_id=move.step.id,
            attempt=move.attempt,
            status="cancelled",
            summary=f"stopped by a person{left}",
        )
        return StepEnd(outcome=outcome)

    async def _conclude(self, run_id: str, status: RunStatus, outcome: str, next_action: str) -> None:
        await asyncio.to_thread(
            self._store.move,
            run_id,
            allowed=AT_WORK,
            to=status,
            text=outcome,
            values={"outcome": outcome, "next_action": next_action},
        )


def _hash(stored: Any) -> str:
    """Return the hash of a stored plan: of the JSON itself, so that it is the same under a newer version's model."""
    canonical = json.dumps(stored, sort_keys=True, separators=(",", ":"))
    return sha256(canonical.encode()).hexdigest()[:12]


def _unusable(problem: str) -> tuple[str, str]:
    if problem:
        return (
            f"{OTHER_VERSION}: {problem}.",
            "check the host with triage, then start the action again",
        )
    return (
        "The stored plan is not the one that was approved: its hash differs. It was not carried out.",
        "the database was changed from outside: find out by whom, then start the action again",
    )


def _ending(plan: Plan, ended: Ended, outcomes: list[Outcome], row: Any) -> tuple[str, str]:
    """Return one line that says how a run ended and what state it left, and the next action."""
    cleanup = {step.id for step in plan.compensation}
    last = _last_word(plan, outcomes)
    left = last.summary if last is not None and last.step_id in cleanup else ""
    if ended.status == "succeeded":
        return (last.summary if last is not None else "There was nothing to do."), ""
    if ended.status == "cancelled":
        by = Person.model_validate(row.stop_requested, extra="ignore") if row.stop_requested else None
        who = f" by {by.name or by.id}" if by is not None else ""
        return f"Stopped{who}. {left or 'There was nothing to undo.'}", (last.next_action if last else "")
    failed = next(o for o in reversed(outcomes) if o.step_id == ended.failed_step)
    return f"{failed.summary} {left}".strip(), failed.next_action or (last.next_action if last else "")


def _last_word(plan: Plan, outcomes: list[Outcome]) -> Outcome | None:
    """Return the outcome that says how the run ended: the last one, but for optional readings after the work is done."""
    optional = {step.id for step in plan.steps if step.on_failure == "continue" and not step.mutates}
    said = [outcome for outcome in outcomes if outcome.step_id not in optional]
    return said[-1] if said else outcomes[-1] if outcomes else None
