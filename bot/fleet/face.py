"""The bot's side of a fleet: the enrolled hosts, and runs that are ordered from their workers.

`FleetRuns` answers the same requests as `Runs`; its copy of each run follows what the host reports. A person's request waits
for the database a few seconds at most and is then refused in words; nothing is started in silence later.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import structlog

from bot.fleet.brake import SICK_WITHIN_S, HostNow, refusal, states
from bot.fleet.hosts import FleetHosts
from bot.fleet.mirror import apply_report
from bot.fleet.orders import (
    LIFE_S,
    Acknowledge,
    Decide,
    MakePlan,
    Order,
    OrderRefused,
    SignalRun,
    Signer,
    StartRun,
    StopRun,
    issue,
    read_order,
)
from bot.fleet.postbox import BOT_CHANNEL, Away, BotEnd, Report, keep_trying
from bot.fleet.received_files import receive_file
from bot.hosts import AWAY_AFTER_S
from bot.incidents.artifacts import ArtifactStore
from bot.runs.planning import typed_options
from bot.runs.runs import Runs, Started
from bot.settings.model import Settings
from bot.store.records import Alert, MonitorNotice, Person, RunRecord, RunStatus, UserError
from bot.store.store import Store
from gpu_actions.action import ActionSpec, Signal
from gpu_actions.models import JsonObject, VerdictKind
from gpu_actions.plan import Plan
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

LOOK_S = 5.0
PLAN_S = 60.0
UNTAKEN_S = LIFE_S - 10.0
"""An order that no worker took is withdrawn before it expires, so an expired one means that a clock is wrong."""
RESEND_S = 15.0
AUTOMATIC = "monitor"
"""The id of the monitors as a requester (`bot.watch.alerts`)."""

NO_DATABASE = (
    "The fleet's database does not answer, so {what}. On the host itself, with its worker stopped: "
    "gpu-oncall {command} --local."
)


class FleetRuns(Runs):
    """The requests of people, as signed orders to the hosts' workers."""

    hosts: FleetHosts

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        artifacts: ArtifactStore,
        actions: Mapping[str, ActionSpec],
    ) -> None:
        hosts = FleetHosts(settings)
        super().__init__(settings, store=store, artifacts=artifacts, actions=actions, hosts=hosts, role="bot")
        assert settings.fleet.signing_key is not None  # noqa: S101  (this is what makes it the bot of a fleet)
        self._signer = Signer.load(settings.fleet.signing_key)
        self._box = BotEnd(settings.fleet.url)
        self._artifacts = artifacts
        self._files = settings.state_dir / "hosts"
        self._answers: dict[int, asyncio.Future[JsonObject]] = {}
        self._decided_at: dict[str, float] = {}
        self._pools = settings.fleet.pools
        self._starting = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def launch(self) -> None:
        """Connect, and keep following what the hosts report."""
        await super().launch()
        try:
            self.hosts.learn(await self._box.hosts())
        except Away as error:
            log.warning(
                "the fleet's database does not answer, retrying", error=redacted_head(str(error), 200)
            )
        for name, loop in (("reports", self._follow), ("hosts", self._look)):
            self._tasks.append(asyncio.create_task(keep_trying(name, loop)))

    async def refresh_hosts(self) -> None:
        """Read the workers' signs of life anew; while the database is away, keep what is known."""
        with contextlib.suppress(Away):
            self.hosts.learn(await self._box.hosts())

    async def close(self) -> None:
        """End. What the hosts report meanwhile is read by the next start."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        await self._box.close()
        await super().close()

    # -- requests ------------------------------------------------------------------------------------------------

    async def plan(
        self, *, action: str, host: str | None, options: Mapping[str, str], requester: Person
    ) -> Plan:
        """Have the host's worker make a plan. Raise UserError if it refuses, or does not answer."""
        name = self.hosts.name(host)
        spec = self._planner.action(action)
        typed_options(spec, options)
        if not await self._worker_comes(name):
            raise UserError(
                f"The worker of {name} does not answer, so there is no plan. {self._last_sign(name)}"
            )
        order = self._order(MakePlan, name, action=spec.name, arguments=dict(options), requester=requester)
        answer = await self._ask(order, what="there is no plan", command=f"{spec.name} plan")
        return Plan.model_validate(answer.get("plan"))

    async def start(self, *, action: str, host: str | None, requester: Person, **request: Any) -> Started:
        """Start a run on its host, unless the brake forbids it: see `bot.fleet.brake`."""
        async with self._starting:  # two starts must not each count the other as not there
            name = self.hosts.name(host)
            if self._planner.action(action).changes_host:
                is_automatic = requester.id == AUTOMATIC
                if why := await asyncio.to_thread(self._brake, name, is_automatic=is_automatic):
                    raise UserError(f"{action} was not started on {name}: {why}.")
            return await super().start(action=action, host=name, requester=requester, **request)

    def _brake(self, name: str, *, is_automatic: bool) -> str:
        # A run of the host itself is refused with better words.
        return refusal(name, self._hosts_now(besides=name), self._pools, is_automatic=is_automatic)

    def brake_states(self) -> list[str]:
        return states(self._hosts_now(), self._pools)

    def _hosts_now(self, *, besides: str = "") -> list[HostNow]:
        changing = {row.host: row.id for row in self._store.active() if row.changes_host}
        changing.pop(besides, None)
        return [self._now(one, changing.get(one, "")) for one in self.hosts.names()]

    def _now(self, name: str, changed_by: str) -> HostNow:
        sign = self.hosts.sign(name)
        is_alive = sign.age_s is not None and sign.age_s <= AWAY_AFTER_S
        verdict, age_s = self._store.last_verdict(name, max_age_s=SICK_WITHIN_S) or (None, 0.0)
        is_sick = verdict is not None and verdict.verdict is VerdictKind.FALL_BACK
        return HostNow(
            name=name,
            labels=sign.labels,
            is_serving=is_alive and bool(sign.body.get("tier")),
            changed_by=changed_by,
            sick_s=age_s if is_sick else None,
            cause=verdict.cause if verdict is not None and is_sick else "",
        )

    async def stop(self, run_id: str, *, by: Person) -> RunRecord:
        """Ask the host to stop a run. What it had touched, the host says at the end."""
        run = self._existing(run_id)
        if run.status.final:
            raise UserError(f"{run_id} is over ({run.status.value}); there is nothing to stop.")
        if run.status is RunStatus.SETTLING:
            raise UserError(f"{run_id} is already cleaning up; its message says what state it leaves.")
        order = self._order(StopRun, run.host, run_id=run_id, by=by)
        await self._send(order, what=f"{run_id} goes on", command=f"{run.action} stop")
        await asyncio.to_thread(self._note_stop, run_id, by)
        return self._existing(run_id)

    def _note_stop(self, run_id: str, by: Person) -> None:
        with self._store.change(run_id) as change:
            if change.row.stop_requested is None:
                change.set(stop_requested=by.model_dump())
            change.record("run.stop", f"{by.name or by.id} asked to stop", actor=by.id)

    async def signal(self, run_id: str, signal: Signal, *, by: Person) -> RunRecord:
        """Send a signal to a running run. Raise UserError if it is unknown or not running, or the host refuses."""
        run = self._existing(run_id)
        if run.status is not RunStatus.RUNNING:
            raise UserError(f"{run_id} is {run.status.value}, not running: {signal} has no effect.")
        order = self._order(SignalRun, run.host, run_id=run_id, signal=signal, by=by)
        await self._send(order, what=f"{signal} was not sent", command=f"{run.action} status")
        await asyncio.to_thread(self._store.add_signal, run_id, signal, by)
        return self._existing(run_id)

    async def replan(self, run_id: str, *, by: Person) -> RunRecord:
        """Refuse: the plan is the host's, and its hash is what people approve."""
        run = self._existing(run_id)
        raise UserError(f"{run_id} was planned on {run.host}: stop it and start {run.action} again.")

    async def decided(self, run: RunRecord) -> None:
        """Tell the host what people decided on its plan. Repeated until the host acts on it (see `_look`)."""
        self._decided_at[run.id] = time.monotonic()
        decisions = tuple(one for one in run.decisions if one.plan_hash == run.plan_hash)
        arguments = {name: str(value) for name, value in run.options.items()}
        order = self._order(
            Decide,
            run.host,
            run_id=run.id,
            action=run.action,
            arguments=arguments,
            plan_hash=run.plan_hash,
            decisions=decisions,
        )
        with contextlib.suppress(UserError):
            await self._send(order, what="the decision waits", command=f"{run.action} start")

    async def _begin(self, run: RunRecord) -> None:
        order = self._order(
            StartRun,
            run.host,
            run_id=run.id,
            action=run.action,
            arguments={name: str(value) for name, value in run.options.items()},
            requester=run.requester,
            place=run.place,
            incident_id=run.incident_id,
        )
        try:
            await self._send(order, what="nothing was started", command=f"{run.action} start")
        except UserError as error:
            await self._never_started(run.id, str(error))

    async def acknowledge(self, host: str, cause: str, *, by: Person) -> None:
        """Tell the host's own monitors to keep quiet. Raise UserError if the database does not answer."""
        order = self._order(Acknowledge, self.hosts.name(host), cause=cause, by=by)
        await self._send(order, what=f"{host} does not know of it yet", command="triage")

    async def _worker_comes(self, host: str) -> bool:
        """Return True if the host's worker is alive; one that restarts has a few seconds."""
        deadline = time.monotonic() + LOOK_S
        while (age_s := self.hosts.sign(host).age_s) is None or age_s > AWAY_AFTER_S:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.2)
            await self.refresh_hosts()
        return True

    def _last_sign(self, host: str) -> str:
        age_s = self.hosts.sign(host).age_s
        return (
            "It never gave a sign of life." if age_s is None else f"Its last sign of life: {age_s:.0f} s ago."
        )

    # -- orders --------------------------------------------------------------------------------------------------

    def _order(self, kind: type[Any], host: str, **values: Any) -> Any:
        return issue(kind, host=host, clock=self._store.clock, **values)

    async def _send(self, order: Order, *, what: str, command: str) -> int:
        try:
            order_id = await self._box.send(order.host, self._signer.sign(order))
        except Away as error:
            log.warning("an order could not be sent", verb=order.verb, error=redacted_head(str(error), 200))
            raise UserError(NO_DATABASE.format(what=what, command=command)) from None
        return order_id

    async def _ask(self, order: Order, *, what: str, command: str) -> JsonObject:
        """Send an order and return its answer. Raise UserError if the worker refuses it."""
        order_id = await self._send(order, what=what, command=command)
        answer = self._answers.setdefault(order_id, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(PLAN_S):
                given = await answer
        except TimeoutError:
            raise UserError(f"{order.host} did not answer within {PLAN_S:.0f} s, so {what}.") from None
        finally:
            self._answers.pop(order_id, None)
        if "refused" in given:
            raise UserError(str(given["refused"]))
        return given

    async def _never_started(self, run_id: str, why: str) -> None:
        await asyncio.to_thread(
            self._store.move,
            run_id,
            allowed=[status for status in RunStatus if not status.final],
            to=RunStatus.FAILED,
            text=why,
            values={"outcome": f"{why} Nothing was touched.", "next_action": ""},
        )

    # -- what the hosts say --------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        async with contextlib.aclosing(self._box.listen(BOT_CHANNEL, every_s=LOOK_S)) as rings:
            async for _ in rings:
                for order_id, envelope, answer in await self._box.answers():
                    try:
                        await self._answered(order_id, read_order(envelope), answer)
                    except OrderRefused as error:
                        log.error(
                            "someone else wrote an order into the database", order=order_id, why=str(error)
                        )
                    await self._box.forget(order_id)
                while found := await self._box.reports():
                    for report in found:
                        await self._receive(report)
                        await self._box.read(report)

    async def _answered(self, order_id: int, order: Order, answer: JsonObject) -> None:
        waiting = self._answers.get(order_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
            return
        if "refused" not in answer:
            return
        why = str(answer["refused"])
        log.warning("a host refused an order", host=order.host, verb=order.verb, reason=why)
        if isinstance(order, StartRun):
            await self._never_started(order.run_id, f"{order.host} did not start it: {why}.")
        elif isinstance(order, Decide) and "withdrawn" not in answer:  # a withdrawn one is sent again
            await self._decision_refused(order, why)

    async def _decision_refused(self, order: Decide, why: str) -> None:
        run = self.get(order.run_id)
        if run is None or run.status is not RunStatus.QUEUED or run.started_at is not None:
            return
        await self._never_started(order.run_id, f"{order.host} refused the approval: {why}.")
        stop = self._order(StopRun, order.host, run_id=order.run_id, by=Person(id="bot", name="bot"))
        with contextlib.suppress(UserError):
            await self._send(stop, what="it waits there", command=f"{order.action} status")

    async def _receive(self, report: Report) -> None:
        """Take a report. One that makes no sense is logged and dropped: a host cannot stop the others' reports."""
        try:
            problem = await self._take(report)
        except Away:
            raise
        except Exception as error:
            log.exception("a report failed", host=report.host, kind=report.kind, key=report.key)
            problem = repr(error)
        if problem:
            log.warning(
                "a report was dropped", host=report.host, kind=report.kind, key=report.key, why=problem
            )

    async def _take(self, report: Report) -> str:
        match report.kind:
            case "run":
                return await asyncio.to_thread(
                    apply_report,
                    self._store,
                    host=report.host,
                    run_id=report.key,
                    body=report.body,
                    link=self._artifacts.link,
                )
            case "file":
                content = await self._box.content(report)
                return await receive_file(self._store, self._artifacts, self._files, report, content)
            case "alert":
                kind = MonitorNotice if "notice" in report.body else Alert
                told = kind.model_validate(report.body)
                if told.host != report.host:
                    return f"the alert is about {told.host}"
                if isinstance(told, MonitorNotice):
                    self.on_notice(told)
                # Kept before the report is marked as read, so that a kill loses none.
                elif await self.keep_alert(f"alert:{report.host}:{told.id}", told):
                    self.on_alert(told)
                return ""
        return f"this version does not know reports of the kind {report.kind!r}"

    async def _look(self) -> None:
        while True:
            self.hosts.learn(await self._box.hosts())
            await self._box.withdraw(older_than_s=UNTAKEN_S)
            await self._repeat_decisions()
            await asyncio.sleep(LOOK_S)

    async def _repeat_decisions(self) -> None:
        """Send decisions again that the host has not acted on: this process or the database may have been away."""
        for row in await asyncio.to_thread(self._store.active):
            if row.status != RunStatus.QUEUED or row.started_at is not None:
                continue
            run = self.get(row.id)
            due = time.monotonic() - self._decided_at.get(row.id, -RESEND_S) >= RESEND_S
            if due and run is not None and run.decisions:
                await self.decided(run)
