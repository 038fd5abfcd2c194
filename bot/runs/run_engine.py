"""Executes runs on DBOS: start-up, wake-ups, a watchdog for runs that DBOS alone cannot find, and an orderly end.

`launch` takes the lock of the state folder and starts DBOS, which resumes interrupted runs; `close` leaves every run
resumable. docs/runs.md has the states and the guarantees. DBOS (20 MB) is imported only by the process that executes runs.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa
import structlog

from bot.hosts import Hosts
from bot.incidents.artifacts import ArtifactStore
from bot.runs.approval_wait import ApprovalWait
from bot.runs.host_executor import HostExecutor
from bot.runs.plan_phase import PlanPhase
from bot.runs.planning import Planner
from bot.runs.process_lock import ProcessLock
from bot.settings.model import Settings
from bot.store.records import RunStatus
from bot.store.retention import sweep_run_folders
from bot.store.run_changes import RunChanges, poll_changes
from bot.store.store import Store

if TYPE_CHECKING:
    from bot.runs.stranded_runs import StrandedRun
    from bot.runs.workflow import StartWorkflow

log = structlog.get_logger()

ProcessRole = Literal["all", "worker", "bot"]
"""`all` accepts requests and executes runs (`up --single`), `bot` only accepts requests, `worker` only executes runs."""

WATCH_PERIOD_S = 60.0
RECOVERY_S = 15.0
SWEEP_PERIOD_S = 3600.0
DELIVER_PERIOD_S = 15.0
MIN_AGE_S = 10.0
"""A younger run may be between its row and its workflow. At launch nothing else can be starting it, so its age is ignored."""


class RunEngine:
    """The execution of runs in this process. With the role `bot` it only watches what the worker does."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        artifacts: ArtifactStore,
        planner: Planner,
        hosts: Hosts,
        role: ProcessRole = "all",
    ) -> None:
        self._settings = settings
        self._role = role
        self._store = store
        self._plan_phase = PlanPhase(store, planner)
        self._approval_wait = ApprovalWait(store, planner)
        self._artifacts = artifacts
        self._executor = HostExecutor(store, artifacts=artifacts, hosts=hosts)
        self._lock = ProcessLock(settings.state_dir)
        self._start: StartWorkflow | None = None
        self._resumed: set[str] = set()
        self._streams: set[RunChanges] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self.accepts_requests = False

    async def launch(self) -> None:
        """Start. Interrupted runs continue by themselves. Raise AlreadyRunning if another process has the state folder."""
        if self._role == "bot":
            await asyncio.to_thread(self._store.create)
            await self._poll_other_process()
            self.accepts_requests = True
            return
        from dbos import DBOS

        from bot.runs.dbos_config import open_dbos
        from bot.runs.workflow import register_workflows

        self._lock.take()
        try:
            await asyncio.to_thread(self._store.create)
            if self._role == "worker":
                await self._poll_other_process()
            open_dbos(self.dbos_url)
            self._start = register_workflows(self._plan_phase, self._approval_wait, self._executor)
            stream = self.changes()
            self._tasks.append(asyncio.create_task(self._wake_runs(stream)))
            DBOS.launch()  # in the thread of this loop, so that DBOS runs every workflow on it
            await self.repair(min_age_s=0)
            self._tasks.append(asyncio.create_task(self._watch()))
            self._tasks.append(asyncio.create_task(self._deliver()))
            self.accepts_requests = True
        except BaseException:
            await self.close()
            raise

    async def _poll_other_process(self) -> None:
        since = await asyncio.to_thread(self._store.version)
        self._tasks.append(asyncio.create_task(poll_changes(self._store, since=since)))

    async def close(self) -> None:
        """End. Running steps and their children are interrupted and resumed by the next launch."""
        launched = self._start is not None
        self._start, self.accepts_requests = None, False
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()
        self._approval_wait.close()
        await self._executor.close()
        if launched:
            from bot.runs.dbos_config import close_dbos

            await close_dbos()
        for stream in tuple(self._streams):
            stream.close()
        self._lock.release()

    @property
    def dbos_url(self) -> str:
        """The database of DBOS: a file beside ours, or its own schema in the same PostgreSQL database."""
        url = self._settings.own_database_url
        if not url.startswith("sqlite"):
            return url
        return f"sqlite:///{Path(str(sa.make_url(url).database)).with_name('dbos.sqlite')}"

    def has_worker(self) -> bool:
        """Return True if some process executes the runs of this host. Reads a lock file."""
        return self._role != "bot" or self._lock.is_held()

    async def start(self, run_id: str) -> None:
        """Start the workflow of a new run. In the role `bot` the worker finds the row and does it."""
        if self._start is not None:
            await self._start(run_id, run_id)

    def interrupt(self, run_id: str) -> None:
        """Interrupt the step that a run executes in this process."""
        self._executor.interrupt(run_id)

    def changes(self) -> RunChanges:
        """Return a stream of the ids of runs that change from now on. `close` ends it."""
        stream = RunChanges(self._store, on_close=self._streams.discard)
        self._streams.add(stream)
        return stream

    async def _wake_runs(self, stream: RunChanges) -> None:
        async for run_id in stream:
            self._approval_wait.wake(run_id)
            if self._role == "worker":
                try:
                    await self._act_on_request(run_id)
                except Exception:
                    log.exception("a request of the bot process failed; the watchdog will retry", run=run_id)

    async def _act_on_request(self, run_id: str) -> None:
        """Act on a row that the bot process wrote: start a new run, or interrupt the step of a stopped one."""
        row = await asyncio.to_thread(self._store.row, run_id)
        if row.stop_requested is not None:
            self._executor.interrupt(run_id)
        if row.status == RunStatus.PLANNING and self._start is not None and run_id not in self._resumed:
            from bot.runs.stranded_runs import find_stranded_runs, resume_runs

            self._resumed.add(run_id)
            await resume_runs(await find_stranded_runs([row]), store=self._store, start=self._start)

    # -- the watchdog --------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        from bot.runs.dbos_config import quieten_recovery

        await asyncio.sleep(RECOVERY_S)
        quieten_recovery()
        swept_at = time.monotonic() - SWEEP_PERIOD_S
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            try:
                await self.repair()
                if time.monotonic() - swept_at >= SWEEP_PERIOD_S:
                    swept_at = time.monotonic()
                    await self.sweep()
            except Exception:
                log.exception("the watchdog over stranded runs failed; it will try again")

    async def _deliver(self) -> None:
        """Bring the files of this host to the artifact store, beside the runs."""
        while True:
            await asyncio.sleep(DELIVER_PERIOD_S)
            try:
                await asyncio.to_thread(self._artifacts.deliver)
            except Exception:
                log.exception("delivering artifacts failed; it will be tried again")

    async def sweep(self) -> None:
        """Remove what ended runs leave on this host: the engine's rows of them, and their folders."""
        from bot.runs.dbos_config import sweep_workflows

        retention = self._settings.retention
        await sweep_workflows(older_than_s=retention.engine_days * 86_400)
        folders = [self._settings.host_dir(host.name) / "runs" for host in self._settings.hosts]
        older_than_s = self._settings.artifacts.retention_days * 86_400
        await asyncio.to_thread(sweep_run_folders, self._store, folders, older_than_s=older_than_s)

    async def stranded(self, *, min_age_s: float = MIN_AGE_S) -> "Sequence[StrandedRun]":
        """Return the active runs that no workflow will continue."""
        from bot.runs.stranded_runs import find_stranded_runs

        rows = await asyncio.to_thread(self._store.active)
        oldest = self._store.clock() - min_age_s
        return await find_stranded_runs([row for row in rows if row.created_at <= oldest])

    async def repair(self, *, min_age_s: float = MIN_AGE_S) -> None:
        """Start a workflow for each stranded run; it continues from the run's rows."""
        from bot.runs.stranded_runs import resume_runs

        found = await self.stranded(min_age_s=min_age_s)
        if self._start is not None:
            await resume_runs(found, store=self._store, start=self._start)
