"""The host's part of a run: one move of its plan at a time, decided from its rows, carried out, and written down.

`advance` may be called again after any kill: it reads what ended, asks `next_move`, and runs that. What it started is cut
by `interrupt` (a person's stop) or by `close` (the bot ends); only a stop leaves an outcome, so the other goes on later.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy.exc import OperationalError

from bot.incidents.artifacts import ArtifactStore, attempt_folder
from bot.runs.step_report import StepReport
from bot.runs.step_rows import StepRows
from bot.store.records import Person, RunStatus
from bot.store.rows import plan_of
from bot.store.store import Store
from gpu_actions.action import Signal, StepContext
from gpu_actions.models import JsonObject
from gpu_actions.plan import Plan
from gpu_actions.walk import Ended, Outcome, RunStep, StepEnd, next_move, outputs_of, run_step

if TYPE_CHECKING:
    from gpu_actions.host import Host

log = structlog.get_logger()

STOP_GRACE_S = 30.0
"""How long a cut step may take to end its children; what is left after it is named in the step's summary."""

ENDINGS = {
    "succeeded": RunStatus.SUCCEEDED,
    "failed": RunStatus.FAILED,
    "cancelled": RunStatus.CANCELLED,
}
AT_WORK = (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.SETTLING)


class HostWalker:
    """Carries runs out on the hosts of this process."""

    def __init__(self, store: Store, *, artifacts: ArtifactStore, hosts: "Callable[[str], Host]") -> None:
        self._store = store
        self._rows = StepRows(store)
        self._artifacts = artifacts
        self._hosts = hosts
        self._one_at_a_time: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._stops: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._working: set[asyncio.Task[StepEnd]] = set()
        self._closing = False

    def interrupt(self, run_id: str) -> None:
        """Cut the step that a run has at work; its row already says that a stop was asked for."""
        if run_id in self._stops:
            self._stops[run_id].set()

    async def close(self) -> None:
        """Cut every step without an outcome, its children with it, and wait for their end."""
        self._closing = True
        for task in self._working:
            task.cancel()
        if self._working:
            await asyncio.wait(self._working, timeout=STOP_GRACE_S)

    async def advance(self, run_id: str) -> JsonObject:
        """Make one move of a run. Gives `{"ended": bool, ...}`.

        Raises OperationalError while the database is away, and CancelledError when the bot ends.
        """
        async with self._one_at_a_time[run_id]:
            try:
                made = await self._advance(run_id)
            except OperationalError:
                raise  # the workflow tries again: nothing is known to be wrong with the run
            except Exception as error:
                log.exception("run broke in the engine", run=run_id)
                await self._conclude(
                    run_id,
                    RunStatus.FAILED,
                    f"The run engine broke: {type(error).__name__}: {error}. What the host is doing now is not known.",
                    "look at the host with triage; the bot's log has the traceback",
                )
                made = {"ended": True}
        if made["ended"]:
            self._stops.pop(run_id, None)
            self._one_at_a_time.pop(run_id, None)
        return made

    async def _advance(self, run_id: str) -> JsonObject:
        stop = self._stops[run_id]
        row = await asyncio.to_thread(self._store.row, run_id)
        if row.status not in AT_WORK:
            return {"ended": True}
        plan = plan_of(row.plan)
        if plan is None or hash_of(row.plan) != row.plan_hash:
            await self._conclude(run_id, RunStatus.FAILED, *_unusable(plan))
            return {"ended": True}
        outcomes = await asyncio.to_thread(self._rows.outcomes, run_id)
        move = next_move(plan, outcomes, cancelled=row.stop_requested is not None)
        if isinstance(move, Ended):
            await self._conclude(run_id, ENDINGS[move.status], *_ending(plan, move, outcomes, row))
            return {"ended": True, "status": move.status}
        if not await self._enter(run_id, row, move):
            return {"ended": True}
        end = await self._carry_out(run_id, row.host, move, outcomes, stop)
        for artifact in end.artifacts:
            await self._artifacts.store(run_id, attempt_folder(move.step.id, move.attempt), artifact)
        await asyncio.to_thread(self._rows.end, run_id, end)
        return {"ended": False, "step": move.step.id, "attempt": move.attempt, "status": end.outcome.status}

    async def _enter(self, run_id: str, row: Any, move: RunStep) -> bool:
        """Set the run's status for this move. False when a person stopped it in this very moment."""
        wanted = RunStatus.SETTLING if move.compensating else RunStatus.RUNNING
        if row.status == wanted:
            return True
        values = {} if row.started_at is not None else {"started_at": self._store.clock()}
        return await asyncio.to_thread(
            self._store.move,
            run_id,
            allowed=AT_WORK,
            to=wanted,
            actor="bot",
            text="cleaning up" if move.compensating else f"at work on {row.host}",
            values=values,
        )

    async def _carry_out(
        self, run_id: str, host_name: str, move: RunStep, outcomes: list[Outcome], stop: asyncio.Event
    ) -> StepEnd:
        host = self._hosts(host_name)
        workdir = run_folder(host, run_id)
        await asyncio.to_thread(self._rows.begin, run_id, move)
        report = StepReport(lambda text, done: self._rows.progress(run_id, move, text, done))

        async def signals() -> tuple[Signal, ...]:
            return await asyncio.to_thread(self._store.signals, run_id)

        context = StepContext(
            run_id=run_id,
            host=host,
            step=move.step,
            outputs=outputs_of(outcomes),
            workdir=workdir,
            report=report,
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
            await report.close()

    async def _until_stopped(
        self, work: asyncio.Task[StepEnd], move: RunStep, stop: asyncio.Event
    ) -> StepEnd:
        """Wait for a step, or cut it at a stop. The clean-up's own steps go to their end."""
        waiting = asyncio.create_task(stop.wait())
        try:
            watched = {work} if move.compensating else {work, waiting}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                if work.cancelled() and not stop.is_set():
                    raise asyncio.CancelledError  # the bot ends; no outcome, so the step is taken up again
                if not work.cancelled():
                    return work.result()
            work.cancel()
            done, _ = await asyncio.wait({work}, timeout=STOP_GRACE_S)
        finally:
            waiting.cancel()
            work.cancel()
        if self._closing:
            raise asyncio.CancelledError
        if done and not work.cancelled():
            return work.result()  # it finished in the same moment
        left = "" if done else f"; it did not end within {STOP_GRACE_S:.0f} s and may still be at work"
        return StepEnd(
            outcome=Outcome(
                step_id=move.step.id,
                attempt=move.attempt,
                status="cancelled",
                summary=f"stopped by a person{left}",
            )
        )

    async def _conclude(self, run_id: str, status: RunStatus, outcome: str, next_action: str) -> None:
        await asyncio.to_thread(
            self._store.move,
            run_id,
            allowed=AT_WORK,
            to=status,
            actor="bot",
            text=outcome,
            values={"outcome": outcome, "next_action": next_action},
        )


def run_folder(host: "Host", run_id: str) -> Path:
    """The run's own folder on the host (mode 0700, made where it is missing)."""
    folder = host.state_dir / "runs" / run_id
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def hash_of(stored: Any) -> str:
    """The hash of a plan as it was stored: of the row's own JSON, so that a newer version's model gives the same."""
    canonical = json.dumps(stored, sort_keys=True, separators=(",", ":"))
    return sha256(canonical.encode()).hexdigest()[:12]


def _unusable(plan: Plan | None) -> tuple[str, str]:
    if plan is None:
        return (
            "The plan was made by another version of gpu-oncall and cannot be read by this one. It was not carried on.",
            "look at the host with triage, then start the action anew",
        )
    return (
        "The stored plan is not the one that was approved: its hash differs. It was not carried out.",
        "somebody changed the database: find out who, then start the action anew",
    )


def _ending(plan: Plan, ended: Ended, outcomes: list[Outcome], row: Any) -> tuple[str, str]:
    """The one line that says how a run ended and what state it left, and what to do next."""
    cleaning = {step.id for step in plan.compensation}
    last = outcomes[-1] if outcomes else None
    settled = last.summary if last is not None and last.step_id in cleaning else ""
    if ended.status == "succeeded":
        return (last.summary if last is not None else "There was nothing to do."), ""
    if ended.status == "cancelled":
        by = Person.model_validate(row.stop_requested) if row.stop_requested else None
        who = f" by {by.name or by.id}" if by is not None else ""
        return f"Stopped{who}. {settled or 'There was nothing to undo.'}", (last.next_action if last else "")
    failed = next(o for o in reversed(outcomes) if o.step_id == ended.failed_step)
    return f"{failed.summary} {settled}".strip(), failed.next_action or (last.next_action if last else "")
