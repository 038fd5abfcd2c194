"""Runs as people see them: plan, start, stop, signal, list. See docs/runs.md for the states and the guarantees."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from bot.hosts import Hosts
from bot.incidents.artifacts import ArtifactStore
from bot.incidents.incidents import Incidents
from bot.runs.approvals import replace_plan
from bot.runs.planning import VERDICT_MAX_AGE_S, Planner, typed_options
from bot.runs.run_engine import ProcessRole, RunEngine
from bot.settings.model import Settings
from bot.store.records import Alert, MonitorNotice, Person, Place, RunRecord, RunStatus, UserError
from bot.store.run_changes import RunChanges
from bot.store.store import HostBusy, Store
from gpu_actions.action import ActionSpec, PlanRefused, Signal
from gpu_actions.models import Frozen
from gpu_actions.plan import Plan

NOT_STARTED = (RunStatus.PLANNING, RunStatus.WAITING, RunStatus.QUEUED)
ID_ATTEMPTS = 50
WORKER_WAIT_S = 10.0
"""A worker that was killed is back within a few seconds."""


class Started(Frozen):
    """A run. `duplicate` is True if an earlier delivery of the same request started it."""

    run: RunRecord
    duplicate: bool


async def _is_new(key: str, alert: Alert) -> bool:
    return True


class Runs:
    """The requests of people. `engine` executes the runs; `hosts` may bring hosts that are built already (tests)."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        artifacts: ArtifactStore,
        actions: Mapping[str, ActionSpec],
        hosts: Hosts | None = None,
        role: ProcessRole = "all",
    ) -> None:
        self._store = store
        self.on_alert: Callable[[Alert], None] = lambda alert: None
        """Called with the alert of a host that monitors itself (a fleet)."""
        self.on_notice: Callable[[MonitorNotice], None] = lambda notice: None
        self.keep_alert: Callable[[str, Alert], Awaitable[bool]] = _is_new
        """Keeps an alert until it is delivered. Returns False if its delivery key is known (a fleet)."""
        self.hosts = hosts or Hosts(settings)
        self._planner = Planner(
            settings,
            actions=actions,
            hosts=self.hosts,
            verdict=lambda host: store.last_verdict(host, max_age_s=VERDICT_MAX_AGE_S),
            clock=store.clock,
        )
        self.engine = RunEngine(
            settings, store=store, artifacts=artifacts, planner=self._planner, hosts=self.hosts, role=role
        )

    async def launch(self) -> None:
        """Start. Interrupted runs continue by themselves. Raise AlreadyRunning if another process has the state folder."""
        await self.engine.launch()

    async def close(self) -> None:
        """End, and leave every run resumable."""
        await self.engine.close()

    async def refresh_hosts(self) -> None:
        """Read anew what is known of the hosts' workers. Here nothing is kept."""

    def brake_states(self) -> list[str]:
        """Return one line a pool of hosts: what may change there. One host has no brake."""
        return []

    async def decided(self, run: RunRecord) -> None:
        """Act on a settled decision. Here the waiting run sees it by itself."""

    async def acknowledge(self, host: str, cause: str, *, by: Person) -> None:
        """Tell the host's own monitors that a person handles a cause. Here they run in this process."""

    async def plan(
        self, *, action: str, host: str | None, options: Mapping[str, str], requester: Person
    ) -> Plan:
        """Make a plan without starting it. Raise UserError for a wrong request, and if preflight refuses the plan."""
        try:
            return await self._planner.plan(action, self.hosts.name(host), options, requester)
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
        run_id: str | None = None,
    ) -> Started:
        """Start a run and return at once. The same `dedupe_key` returns the run that it has already started.

        `run_id` is given where the bot of a fleet has named the run already.

        Raise UserError for a wrong request, and while another run that changes the host is active.
        """
        spec = self._planner.action(action)
        name = self.hosts.name(host)
        typed_options(spec, options)
        if spec.needs_calm and (why := await asyncio.to_thread(self.unrest, name)):
            raise UserError(f"{spec.label} was not started: {why}.")
        if not self.engine.accepts_requests:
            raise UserError("I am just starting or ending: nothing was started. Try again in a few seconds.")
        if not await self._worker_comes(name):
            raise UserError(
                "The worker of this host is not running, so nothing was started: start `gpu-oncall worker`, then ask again. "
                f"From a shell on the host: gpu-oncall {spec.name} --local."
            )
        for _ in range(ID_ATTEMPTS):
            record = RunRecord(
                id=run_id or await asyncio.to_thread(self._store.new_id, spec.prefix),
                action=action,
                host=name,
                status=RunStatus.PLANNING,
                requester=requester,
                place=place,
                options=dict(options),
                incident_id=incident_id,
                created_at=self._store.clock(),
            )
            try:
                run, duplicate = await asyncio.to_thread(
                    self._store.insert_run, record, dedupe_key=dedupe_key, changes_host=spec.changes_host
                )
            except HostBusy as busy:
                raise UserError(self._busy(busy.run_id, action, name)) from None
            except ValueError:
                if run_id is not None:
                    raise UserError(f"This host has another run {run_id} already: ask again.") from None
                continue  # the id is taken
            if not duplicate:
                await self._begin(run)
            return Started(run=run, duplicate=duplicate)
        raise UserError("No free run id was found; the database is very full. Nothing was started.")

    async def _begin(self, run: RunRecord) -> None:
        """Begin a run whose row has just been written."""
        await self.engine.start(run.id)

    async def _worker_comes(self, host: str) -> bool:
        """Return True once a worker executes the runs of this host; one that restarts has WORKER_WAIT_S."""
        deadline = time.monotonic() + WORKER_WAIT_S
        while not await asyncio.to_thread(self.engine.has_worker):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.2)
        return True

    def unrest(self, host: str, *, but: str = "") -> str:
        """Return why a host is not calm: an open incident, or a run other than `but` that changes or loads it. Else ''."""
        if (incident := Incidents(self._store).active(host)) is not None:
            return f"{incident.id} is open on {host}"
        for run in self._store.list(host=host, active_only=True):
            spec = self._planner.action(run.action)
            if run.id != but and (spec.changes_host or spec.disturbs_service):
                return f"{run.action} {run.id} is {run.status.value} on {host}"
        return ""

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
        """Stop a run and return it. Before its first step it just ends; later its step is interrupted and cleanup runs.

        Raise UserError for an unknown run, and for one that is over or already cleaning up.
        """
        who = by.name or by.id
        self._existing(run_id)
        ended = await asyncio.to_thread(
            self._store.move,
            run_id,
            allowed=NOT_STARTED,
            to=RunStatus.CANCELLED,
            actor=by.id,
            text=f"stopped by {who}",
            values={
                "outcome": f"Stopped by {who} before anything was touched.",
                "stop_requested": by.model_dump(),
            },
        )
        if not ended and await asyncio.to_thread(self._request_stop, run_id, by):
            self.engine.interrupt(run_id)
            return self._existing(run_id)
        run = self._existing(run_id)
        if not ended and run.status.final:
            raise UserError(f"{run_id} is over ({run.status.value}); there is nothing to stop.")
        if not ended and run.status is RunStatus.SETTLING:
            raise UserError(f"{run_id} is already cleaning up; its message says what state it leaves.")
        return run

    def _request_stop(self, run_id: str, by: Person) -> bool:
        with self._store.change(run_id) as change:
            change.changed = change.row.status == RunStatus.RUNNING
            if change.changed:
                if change.row.stop_requested is None:
                    change.set(stop_requested=by.model_dump())
                change.record("run.stop", f"{by.name or by.id} asked to stop", actor=by.id)
        return change.changed

    async def signal(self, run_id: str, signal: Signal, *, by: Person) -> RunRecord:
        """Send a signal to a running run. Raise UserError if it is unknown or not running."""
        run = self._existing(run_id)
        if run.status is not RunStatus.RUNNING:
            raise UserError(f"{run_id} is {run.status.value}, not running: {signal} has no effect.")
        await asyncio.to_thread(self._store.add_signal, run_id, signal, by)
        return self._existing(run_id)

    async def replan(self, run_id: str, *, by: Person) -> RunRecord:
        """Plan a waiting run again. If the plan has changed, earlier approvals are void and the deadline starts again.

        Raise UserError if the run is not waiting, or if preflight now refuses the plan.
        """
        run = self._existing(run_id)
        if run.status is not RunStatus.WAITING:
            raise UserError(f"{run_id} is {run.status.value}; only a waiting run can be planned again.")
        options = {name: str(value) for name, value in run.options.items()}
        plan = await self.plan(action=run.action, host=run.host, options=options, requester=run.requester)
        if plan.hash != run.plan_hash and not await asyncio.to_thread(
            replace_plan, self._store, run, plan, by
        ):
            raise UserError(f"{run_id} was decided at this very moment; its plan is unchanged.")
        return self._existing(run_id)

    # -- reading -------------------------------------------------------------------------------------------------

    def get(self, run_id: str) -> RunRecord | None:
        """Return a run, or None."""
        return self._store.get(run_id)

    def list(
        self,
        *,
        action: str | None = None,
        host: str | None = None,
        active_only: bool = False,
        limit: int = 20,
    ) -> Sequence[RunRecord]:
        """Return runs, newest first."""
        return self._store.list(action=action, host=host, active_only=active_only, limit=limit)

    def latest(self, *, action: str, host: str | None = None) -> RunRecord | None:
        """Return the newest run of an action (on a host), or None."""
        return next(iter(self._store.list(action=action, host=host, limit=1)), None)

    def changes(self) -> RunChanges:
        """Return a stream of the ids of runs that change from now on."""
        return self.engine.changes()

    async def wait(self, run_id: str, *, until: Callable[[RunRecord], bool]) -> RunRecord:
        """Return the run once `until` is true of it. Raise UserError for an unknown run."""
        with contextlib.closing(self.engine.changes()) as stream:
            if until(run := self._existing(run_id)):
                return run
            async for changed in stream:
                if changed == run_id and until(run := self._existing(run_id)):
                    return run
        raise UserError(f"I am shutting down; {run_id} continues when I am started again.")

    def _existing(self, run_id: str) -> RunRecord:
        run = self._store.get(run_id)
        if run is None:
            raise UserError(f"I know no run {run_id!r}.")
        return run
