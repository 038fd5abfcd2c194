"""Runs: what people start, stop and look at. One object over the store, the planner, the gate, the host's part and DBOS.

`launch` takes the state folder's lock, starts DBOS, which takes up what was cut, and repairs what DBOS alone cannot find;
`close` leaves every run resumable. See docs/runs.md for the states and the guarantees.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa
import structlog
from dbos import DBOS

from bot.incidents.artifacts import ArtifactStore
from bot.runs.approval_wait import ApprovalWait, exchange_plan
from bot.runs.dbos_engine import close_dbos, open_dbos, quieten_recovery
from bot.runs.host_executor import HostWalker
from bot.runs.planning import VERDICT_MAX_AGE_S, Planner, typed_options
from bot.runs.process_lock import ProcessLock
from bot.runs.stranded import Stranded, find_stranded, take_up
from bot.runs.workflow import Workflows, register_workflows
from bot.settings.model import Settings
from bot.store.audit import append
from bot.store.changes import Changes
from bot.store.notifications import follow_changes
from bot.store.records import Person, Place, RunRecord, RunStatus, UserError
from bot.store.schema import runs
from bot.store.store import HostBusy, Store, new_id
from gpu_actions.action import ActionSpec, PlanRefused, Signal
from gpu_actions.models import Frozen
from gpu_actions.plan import Plan

if TYPE_CHECKING:
    from gpu_actions.host import Host

log = structlog.get_logger()

ProcessRole = Literal["all", "worker", "bot"]
"""`all` accepts requests and executes runs (`gpu-oncall up`), `bot` only accepts requests, `worker` only executes runs."""

UNTOUCHED = (RunStatus.PLANNING, RunStatus.WAITING, RunStatus.QUEUED)
WATCH_PERIOD_S = 60.0
RECOVERY_S = 15.0
YOUNG_S = 10.0
"""A run this young may simply be between its row and its workflow; only at launch nobody else can be starting it."""


class Started(Frozen):
    """A run, and whether this request had started it before."""

    run: RunRecord
    duplicate: bool


class Runs:
    """The runs of this process. `hosts` may bring built hosts (tests); others are built from the settings when first used."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        artifacts: ArtifactStore,
        actions: Mapping[str, ActionSpec],
        hosts: "Mapping[str, Host] | None" = None,
        role: ProcessRole = "all",
    ) -> None:
        self._settings = settings
        self._role = role
        self._store = store
        self._hosts: dict[str, Host] = dict(hosts or {})
        self._planner = Planner(
            settings,
            actions=actions,
            hosts=self.host,
            verdict=lambda host: store.last_verdict(host, max_age_s=VERDICT_MAX_AGE_S),
            clock=store.clock,
        )
        self._approval_wait = ApprovalWait(store, self._planner)
        self._walker = HostWalker(store, artifacts=artifacts, hosts=self.host)
        self._lock = ProcessLock(settings.state_dir)
        self._workflows: Workflows | None = None
        self._takes_requests = False
        self._taken: set[str] = set()
        self._streams: set[Changes] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def host(self, name: str) -> "Host":
        """The built host of a name. Raises UserError for a host that the settings do not have (any more)."""
        if name not in self._hosts:
            from bot.hosts import built_host

            self._hosts[name] = built_host(self._settings, self._planner.host(name))
        return self._hosts[name]

    # -- life ----------------------------------------------------------------------------------------------------

    async def launch(self) -> None:
        """Start. Runs that were cut go on by themselves. Raises AlreadyRunning when another process has the state folder."""
        if self._role == "bot":
            await asyncio.to_thread(self._store.create)
            await self._follow()
            self._takes_requests = True
            return
        self._lock.take()
        try:
            await asyncio.to_thread(self._store.create)
            if self._role == "worker":
                await self._follow()
            open_dbos(self.dbos_url)
            self._workflows = register_workflows(self._approval_wait, self._walker)
            stream = self.changes()
            self._tasks.append(asyncio.create_task(self._wake(stream)))
            DBOS.launch()  # here, in the loop's thread: DBOS then runs every workflow on this loop
            await self.repair(young_s=0)
            self._tasks.append(asyncio.create_task(self._watch()))
            self._takes_requests = True
        except BaseException:
            await self.close()
            raise

    async def _follow(self) -> None:
        """Hear of what the other process writes from now on."""
        since = await asyncio.to_thread(self._store.version)
        self._tasks.append(asyncio.create_task(follow_changes(self._store, self._store.tell, since=since)))

    async def close(self) -> None:
        """End: running steps and their children are cut and stay to be taken up again by the next launch."""
        launched = self._workflows is not None
        self._workflows, self._takes_requests = None, False
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()
        self._approval_wait.close()
        await self._walker.close()
        if launched:
            await close_dbos()
        for stream in tuple(self._streams):
            stream.close()
        self._lock.release()

    @property
    def dbos_url(self) -> str:
        """Where DBOS keeps its own tables: a file beside ours, or its own schema of the same PostgreSQL."""
        url = self._settings.own_database_url
        if not url.startswith("sqlite"):
            return url
        return f"sqlite:///{Path(str(sa.make_url(url).database)).with_name('dbos.sqlite')}"

    async def _wake(self, stream: Changes) -> None:
        async for run_id in stream:
            self._approval_wait.wake(run_id)
            if self._role == "worker":
                try:
                    await self._take_up(run_id)
                except Exception:
                    log.exception("a request of the bot was not taken up; the watchdog will", run=run_id)

    async def _take_up(self, run_id: str) -> None:
        """Act on a row that the bot process wrote: start a new run, or interrupt the step of a stopped one."""
        row = await asyncio.to_thread(self._store.row, run_id)
        if row.stop_requested is not None:
            self._walker.interrupt(run_id)
        if row.status == RunStatus.PLANNING and self._workflows is not None and run_id not in self._taken:
            self._taken.add(run_id)
            await take_up(await find_stranded([row]), store=self._store, start=self._workflows.start)

    async def _watch(self) -> None:
        await asyncio.sleep(RECOVERY_S)
        quieten_recovery()
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            try:
                await self.repair()
            except Exception:
                log.exception("the watch over stranded runs failed; it goes on")

    # -- what people ask for -------------------------------------------------------------------------------------

    async def plan(
        self, *, action: str, host: str | None, options: Mapping[str, str], requester: Person
    ) -> Plan:
        """Make a plan and start nothing. Raises UserError for wrong words, and for what preflight found."""
        spec = self._planner.spec(action)
        name = self._planner.host(host).name
        try:
            return await self._planner.plan(spec, name, options, requester)
        except PlanRefused as refusal:
            raise UserError(" ".join(refusal.problems)) from None

    async def start(
        self,
        *,
        action: str,
        host: str | None,
        options: Mapping[str, str],
        requester: Person,
        place: Place,
        dedupe_key: str,
        incident_id: str | None = None,
    ) -> Started:
        """Start a run and return at once. The same `dedupe_key` again gives the run it started.

        Raises UserError for wrong words, and while another run that changes the host is active.
        """
        spec = self._planner.spec(action)
        name = self._planner.host(host).name
        typed_options(spec, options)
        if not self._takes_requests:
            raise UserError("I am just starting or ending: nothing was started. Try again in a few seconds.")
        if self._role == "bot" and not await asyncio.to_thread(self._lock.held):
            raise UserError(
                "The worker of this host does not run, so nothing was started: start `gpu-oncall worker`, then ask again. "
                f"From a shell on the host: gpu-oncall {spec.name} --local."
            )
        run, duplicate = await self._insert(spec, name, options, requester, place, dedupe_key, incident_id)
        if not duplicate and self._workflows is not None:
            await self._workflows.start(run.id, run.id)
        return Started(run=run, duplicate=duplicate)

    async def _insert(
        self,
        spec: ActionSpec,
        host: str,
        options: Mapping[str, str],
        requester: Person,
        place: Place,
        dedupe_key: str,
        incident_id: str | None,
    ) -> tuple[RunRecord, bool]:
        for _ in range(50):
            record = RunRecord(
                id=new_id(spec.prefix),
                action=spec.name,
                host=host,
                status=RunStatus.PLANNING,
                requester=requester,
                place=place,
                options=dict(options),
                incident_id=incident_id,
                created_at=self._store.clock(),
            )
            try:
                return await asyncio.to_thread(
                    self._store.insert_run, record, dedupe_key=dedupe_key, changes_host=spec.changes_host
                )
            except HostBusy as busy:
                raise UserError(self._busy(busy.run_id, spec.name, host)) from None
            except ValueError:
                continue
        raise UserError("No free run id was found; the database is very full. Nothing was started.")

    def _busy(self, run_id: str, action: str, host: str) -> str:
        other = self._store.get(run_id)
        if other is None:
            return f"{run_id} is changing {host}: {action} was not started."
        state = "waits for approval" if other.status is RunStatus.WAITING else f"is {other.status.value}"
        return (
            f"{other.action} {other.id} by {other.requester.name or other.requester.id} {state} on {host}, and only one run "
            f"may change a host at a time: {action} was not started. Wait for its end, or stop {other.id}."
        )

    async def stop(self, run_id: str, *, by: Person) -> RunRecord:
        """Stop a run: before its first step it just ends; later the step at work is cut and the compensation runs.

        Gives the run as it stands now. Raises UserError for an unknown run and for one that is over or cleaning up.
        """
        who = by.name or by.id
        run = self._must(run_id)
        ended = await asyncio.to_thread(
            self._store.move,
            run_id,
            allowed=UNTOUCHED,
            to=RunStatus.CANCELLED,
            actor=by.id,
            text=f"stopped by {who}",
            values={
                "outcome": f"Stopped by {who} before anything was touched.",
                "stop_requested": by.model_dump(),
            },
        )
        if not ended and await asyncio.to_thread(self._request_stop, run_id, by):
            self._walker.interrupt(run_id)
            return self._must(run_id)
        run = self._must(run_id)
        if not ended and run.status.final:
            raise UserError(f"{run_id} is over ({run.status.value}); there is nothing to stop.")
        if not ended and run.status is RunStatus.SETTLING:
            raise UserError(f"{run_id} is already cleaning up; its message says what state it leaves.")
        return run

    def _request_stop(self, run_id: str, by: Person) -> bool:
        with self._store.change(run_id) as connection:
            row = connection.execute(runs.select().where(runs.c.id == run_id)).one()
            if row.status != RunStatus.RUNNING:
                return False
            if row.stop_requested is None:
                connection.execute(
                    runs.update().where(runs.c.id == run_id).values(stop_requested=by.model_dump())
                )
            append(
                connection,
                at=self._store.clock(),
                host=row.host,
                actor=by.id,
                kind="run.stop",
                text=f"{by.name or by.id} asked to stop",
                run_id=run_id,
                incident_id=row.incident_id,
            )
        return True

    async def signal(self, run_id: str, signal: Signal, *, by: Person) -> RunRecord:
        """Tell a running run something. Raises UserError for one that is unknown or not at work."""
        run = self._must(run_id)
        if run.status is not RunStatus.RUNNING:
            raise UserError(f"{run_id} is {run.status.value}, not running: {signal} has no effect.")
        await asyncio.to_thread(self._store.add_signal, run_id, signal, by)
        return self._must(run_id)

    async def replan(self, run_id: str, *, by: Person) -> RunRecord:
        """Plan a waiting run anew. Where the plan has changed, approvals of the old one count no more and the time begins anew.

        Raises UserError when it does not wait, or when the plan cannot work any more.
        """
        run = self._must(run_id)
        if run.status is not RunStatus.WAITING:
            raise UserError(f"{run_id} is {run.status.value}; only a run that waits can be planned anew.")
        options = {name: str(value) for name, value in run.options.items()}
        made = await self.plan(action=run.action, host=run.host, options=options, requester=run.requester)
        if made.hash != run.plan_hash and not await asyncio.to_thread(
            exchange_plan, self._store, run, made, by
        ):
            raise UserError(f"{run_id} was decided in this moment; its plan stays as it is.")
        return self._must(run_id)

    # -- what people look at -------------------------------------------------------------------------------------

    def get(self, run_id: str) -> RunRecord | None:
        """One run, or None."""
        return self._store.get(run_id)

    def list(
        self,
        *,
        action: str | None = None,
        host: str | None = None,
        active_only: bool = False,
        limit: int = 20,
    ) -> Sequence[RunRecord]:
        """Runs, newest first."""
        return self._store.list(action=action, host=host, active_only=active_only, limit=limit)

    def latest(self, *, action: str, host: str | None = None) -> RunRecord | None:
        """The newest run of an action (on a host), or None."""
        return next(iter(self._store.list(action=action, host=host, limit=1)), None)

    def changes(self) -> Changes:
        """The ids of runs as they change from now on, in this process; `Store.changed_since` is its safe counterpart."""
        stream = Changes(self._store, on_close=self._streams.discard)
        self._streams.add(stream)
        return stream

    async def wait(self, run_id: str, *, until: Callable[[RunRecord], bool]) -> RunRecord:
        """Give the run once `until` holds of it. Raises UserError for an unknown run."""
        stream = self.changes()
        with contextlib.closing(stream):
            if until(run := self._must(run_id)):
                return run
            async for changed in stream:
                if changed == run_id and until(run := self._must(run_id)):
                    return run
        raise UserError(f"I am ending; {run_id} goes on when I am started again.")

    def _must(self, run_id: str) -> RunRecord:
        run = self._store.get(run_id)
        if run is None:
            raise UserError(f"I know no run {run_id!r}.")
        return run

    # -- the watchdog --------------------------------------------------------------------------------------------

    async def stranded(self, *, young_s: float = YOUNG_S) -> Sequence[Stranded]:
        """Runs older than `young_s` whose row is active while no workflow will carry them on."""
        rows = await asyncio.to_thread(self._store.active)
        return await find_stranded([r for r in rows if r.created_at <= self._store.clock() - young_s])

    async def repair(self, *, young_s: float = YOUNG_S) -> Sequence[Stranded]:
        """Start a workflow for each stranded run; it goes on from the rows. Gives what was found."""
        found = await self.stranded(young_s=young_s)
        if self._workflows is not None:
            await take_up(found, store=self._store, start=self._workflows.start)
        return found
