"""The worker's link to its bot: carries out signed orders with this host's own run engine, and reports what its runs do.

Nothing on the host waits for the link. While PostgreSQL or the bot is away, runs go on from this host's own database, and what
they did is reported when the link is back.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import structlog

from bot.fleet.mirror import export_run, remember_sent, sent_version
from bot.fleet.orders import (
    Acknowledge,
    Decide,
    MakePlan,
    Order,
    OrderRefused,
    SignalRun,
    StartRun,
    StopRun,
    Verifier,
)
from bot.fleet.postbox import HOST_CHANNEL, Away, HostEnd, PendingOrder, keep_trying
from bot.runs.approvals import Approvals
from bot.runs.runs import Runs
from bot.settings.model import Settings
from bot.store.records import Person, RunRecord, RunStatus, UserError
from bot.store.run_changes import RunChanges
from bot.store.store import Store
from gpu_actions.models import JsonObject
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

BEAT_S = 5.0
LOOK_S = 15.0
"""A notification brings an order at once; this only limits how late a lost notification is noticed."""
REPORT_PAUSE_S = 0.2
MIB = 1024 * 1024


class NotEnrolled(Exception):
    """The database does not know this host's role. The message says what to do."""


def product_version() -> str:
    """Return the version of gpu-oncall."""
    try:
        return version("gpu-oncall")
    except PackageNotFoundError:
        return "unpackaged"


class WorkerLink:
    """Connects one host's runs to the post box of its fleet."""

    def __init__(
        self,
        settings: Settings,
        *,
        runs: Runs,
        store: Store,
        state: Callable[[], Awaitable[JsonObject]],
        send_alerts: Callable[[HostEnd], Coroutine[Any, Any, None]] | None = None,
        acknowledge: Callable[[str, str, Person], None] = lambda host, cause, by: None,
    ) -> None:
        self._send_alerts, self._acknowledge = send_alerts, acknowledge
        self._settings = settings.fleet
        self._has_shared_store = bool(settings.artifacts.url)
        self._runs = runs
        self._store = store
        self._state = state
        self.host = settings.default_host.name
        self._end = HostEnd(self._settings.url, host=self.host)
        self._verifier = Verifier(self._settings.bot_keys, host=self.host, clock=store.clock)
        self._approvals = Approvals(store)
        self._busy: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start. Raise NotEnrolled if the database answers and does not know this host; while it is away, keep trying."""
        try:
            if (name := await self._end.enrolled_as()) != self.host:
                whose = f"belongs to {name}" if name else "belongs to no enrolled host"
                raise NotEnrolled(
                    f"the database role in fleet.url {whose}, and this host is {self.host}: on the bot's machine run "
                    f"`gpu-oncall fleet add {self.host}` and copy its files here"
                )
            await self._beat()
        except Away as error:
            log.warning("the fleet's database does not answer, retrying", error=_short(error))
        for name, loop in (("orders", self._orders), ("reports", self._reports), ("signs", self._signs)):
            self._spawn(keep_trying(name, loop))
        if (send := self._send_alerts) is not None:
            self._spawn(keep_trying("alerts", lambda: send(self._end)))

    async def close(self) -> None:
        """End the link. Orders in progress are taken up again by the next start."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        await self._end.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- orders --------------------------------------------------------------------------------------------------

    async def _orders(self) -> None:
        async with contextlib.aclosing(self._end.listen(HOST_CHANNEL + self.host, every_s=LOOK_S)) as rings:
            async for _ in rings:
                for pending in await self._end.pending():
                    if pending.id not in self._busy:
                        self._busy.add(pending.id)
                        self._spawn(self._carry_out(pending))

    async def _carry_out(self, pending: PendingOrder) -> None:
        """Verify an order, carry it out and answer it. Never raises."""
        try:
            if not await self._end.take(pending.id):
                return  # withdrawn at this very moment
            try:
                answer = await self.obey(pending)
            except (OrderRefused, UserError) as refusal:
                log.warning("an order was refused", order=pending.id, reason=str(refusal))
                answer = {"refused": redacted_head(str(refusal), 1000)}
            await self._end.answer(pending.id, answer)
        except Away as error:
            log.warning("an order could not be answered yet", order=pending.id, error=_short(error))
        except Exception as error:
            log.exception("an order failed", order=pending.id)
            with contextlib.suppress(Away):
                text = f"the worker failed: {type(error).__name__}; its log has the traceback"
                await self._end.answer(pending.id, {"refused": text})
        finally:
            self._busy.discard(pending.id)

    async def obey(self, pending: PendingOrder) -> JsonObject:
        """Carry out an order and return the answer. Raise OrderRefused or UserError."""
        order = self._verifier.verify(pending.signed)
        self._check_policy(order)
        key = f"order:{order.nonce}"
        if await asyncio.to_thread(self._store.deliveries.seen, key):
            raise OrderRefused("the order was carried out before: it is a repeat")
        if isinstance(order, SignalRun):  # a signal may count each time, so it is never given twice
            await asyncio.to_thread(self._store.deliveries.first_time, key)
            return await self._act(order)
        answer = await self._act(order)  # the others have no effect a second time: see the run's own rows
        if not await asyncio.to_thread(self._store.deliveries.first_time, key):
            raise OrderRefused("the order was carried out before: it is a repeat")
        return answer

    def _check_policy(self, order: Order) -> None:
        """Raise OrderRefused if this host's own settings do not allow it."""
        if isinstance(order, StopRun | SignalRun | Acknowledge):
            return
        allowed = self._settings.actions
        if allowed is not None and order.action not in allowed:
            raise OrderRefused(
                f"fleet.actions in the settings of {self.host} does not allow {order.action}; it allows: "
                f"{', '.join(allowed) or 'nothing'}"
            )

    async def _act(self, order: Order) -> JsonObject:
        match order:
            case StartRun():
                return await self._start_run(order)
            case Decide():
                return await self._decide(order)
            case StopRun():
                await self._runs.stop(self._run(order.run_id).id, by=order.by)
            case SignalRun():
                await self._runs.signal(self._run(order.run_id).id, order.signal, by=order.by)
            case Acknowledge():
                await asyncio.to_thread(self._acknowledge, self.host, order.cause, order.by)
            case MakePlan():
                plan = await self._runs.plan(
                    action=order.action, host=self.host, options=order.arguments, requester=order.requester
                )
                return {"plan": plan.model_dump(mode="json")}
        return {"done": True}

    async def _start_run(self, order: StartRun) -> JsonObject:
        await self._runs.start(
            action=order.action,
            host=self.host,
            options=order.arguments,
            requester=order.requester,
            place=order.place,
            dedupe_key=f"order:{order.nonce}",
            incident_id=order.incident_id,
            run_id=order.run_id,
        )
        return {"started": order.run_id}

    async def _decide(self, order: Decide) -> JsonObject:
        """Take the decisions as if they were made here: the same rules, on the plan that this host made."""
        run = self._run(order.run_id)
        if run.action != order.action or {k: str(v) for k, v in run.options.items()} != order.arguments:
            raise OrderRefused(f"{run.id} is {run.action} with other arguments than those that were approved")
        if any(one.plan_hash != order.plan_hash for one in order.decisions):
            raise OrderRefused(f"a decision on {run.id} is about another plan than the order")
        message = ""
        for one in order.decisions:
            answer = await self._approvals.decide(
                run_id=run.id,
                user=one.user,
                decision=one.decision,
                plan_hash=one.plan_hash,
                reason=one.reason,
            )
            message = answer.message
        run = self._run(order.run_id)
        if run.status is RunStatus.WAITING:
            raise OrderRefused(f"{run.id} still waits on {self.host}: {message}")
        return {"decided": run.status.value}

    def _run(self, run_id: str) -> RunRecord:
        run = self._runs.get(run_id)
        if run is None:
            raise OrderRefused(f"{self.host} has no run {run_id}")
        return run

    # -- reports -------------------------------------------------------------------------------------------------

    async def _reports(self) -> None:
        """Report every change of a run, in the order of the changes; after a pause of the link, what changed meanwhile."""
        changed = asyncio.Event()

        async def watch(stream: RunChanges) -> None:
            async for _ in stream:
                changed.set()

        with contextlib.closing(self._runs.changes()) as stream:
            watching = asyncio.create_task(watch(stream))
            try:
                sent = await asyncio.to_thread(sent_version, self._store)
                while True:
                    changed.clear()
                    for run_id, number in await asyncio.to_thread(self._store.changed_since, sent):
                        await self._send(run_id)
                        sent = number
                        await asyncio.to_thread(remember_sent, self._store, sent)
                    await changed.wait()
                    await asyncio.sleep(REPORT_PAUSE_S)
            finally:
                watching.cancel()

    async def _send(self, run_id: str) -> None:
        record = await asyncio.to_thread(self._store.get, run_id)
        if record is None:
            return
        await self._send_files(record)
        report = await asyncio.to_thread(
            export_run, self._store, run_id, has_shared_store=self._has_shared_store
        )
        if report is not None:
            await self._end.report("run", run_id, report.model_dump(mode="json"))

    async def _send_files(self, record: RunRecord) -> None:
        """Send the files of a run that are not in a shared store, up to the cap; larger ones stay on the host."""
        if self._has_shared_store:
            return
        for one in record.artifacts:
            key = f"file:{record.id}/{one.step_id}/{one.artifact.name}:{one.artifact.sha256[:16]}"
            if not one.url or one.artifact.size_bytes > self._settings.max_file_mib * MIB:
                continue
            if await asyncio.to_thread(self._store.deliveries.seen, key):
                continue
            try:
                content = await asyncio.to_thread(one.artifact.path.read_bytes)
            except OSError as error:
                log.warning("a file cannot be sent to the bot", name=one.artifact.name, error=str(error))
                continue
            body = {
                "run_id": record.id,
                "step_id": one.step_id,
                "artifact": one.artifact.model_dump(mode="json"),
            }
            await self._end.report("file", f"{record.id}/{one.step_id}/{one.artifact.name}", body, content)
            await asyncio.to_thread(self._store.deliveries.first_time, key)

    # -- signs of life -------------------------------------------------------------------------------------------

    async def _signs(self) -> None:
        swept = 0.0
        while True:
            await self._beat()
            if time.monotonic() - swept > 3600:
                swept = time.monotonic()
                await asyncio.to_thread(self._store.deliveries.sweep)
            await asyncio.sleep(BEAT_S)

    async def _beat(self) -> None:
        difference = await self._end.clock_difference_s()
        body = {
            **await self._state(),
            "version": product_version(),
            "clock_difference_s": round(difference, 3),
        }
        await self._end.beat(body)


def _short(error: Exception) -> str:
    return redacted_head(str(error), 200)
