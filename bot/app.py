"""Builds the bot from its settings, in one place, and runs it until it is stopped.

`serve` is `gpu-oncall bot`; with the role `all` it is also the worker of this host (`gpu-oncall up --single`). Nothing is
created at import.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial

import structlog
from aiohttp import web
from slack_bolt.async_app import AsyncApp
from slack_bolt.authorization import AuthorizeResult
from slack_sdk.web.async_client import AsyncWebClient

from bot.incidents.artifacts import ArtifactStore
from bot.incidents.incidents import Incidents
from bot.runs.approvals import Approvals
from bot.runs.process_lock import AlreadyRunning, ProcessLock
from bot.runs.run_engine import ProcessRole
from bot.runs.runs import Runs
from bot.services import Services
from bot.settings.model import Settings
from bot.slack.access import Access
from bot.slack.connection import connected
from bot.slack.identity import Identity
from bot.slack.incident_rooms import IncidentRooms
from bot.slack.live_messages import LiveMessages
from bot.slack.reports import Reports
from bot.slack.self_event import SelfEvent
from bot.slack.tokens import CannotStart, check_tokens
from bot.store.records import Alert
from bot.store.retention import sweep_rows
from bot.store.store import Store
from bot.store.upgrade import DatabaseTooNew
from bot.watch.alertmanager import Webhook
from bot.watch.alerts import Alerts
from bot.watch.drills import Drills
from bot.watch.monitor_memory import MonitorMemory
from bot.watch.monitors import Monitors
from bot.watch.page_cache_keeper import PageCacheKeeper
from bot.watch.pages import Pages
from bot.watch.scheduler import Schedule
from bot.watch.standby_keeper import StandbyKeeper
from bot.web.server import web_app
from bot.web.service_notify import CANNOT_START, keep_alive, notify
from bot.worker import prepare, storage, until
from gpu_actions.action import ActionSpec
from gpu_actions.registry import actions
from handlers import register, stamp_arrival

log = structlog.get_logger()

SWEEP_S = 6 * 3600.0
ALERT_RETRY_S = 60.0
FOLLOW_DRILLS_S = 5.0
TASK_END_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Bot:
    """The built bot. Nothing runs yet."""

    settings: Settings
    store: Store
    artifacts: ArtifactStore
    runs: Runs
    services: Services
    alerts: Alerts
    monitors: Monitors
    client: AsyncWebClient
    app: AsyncApp


async def serve(
    settings: Settings, *, role: ProcessRole = "bot", tell: Callable[[str], None] = notify
) -> int:
    """Run the bot until SIGTERM or SIGINT. Return the exit code: 0, or 1 if it cannot start (the log says why)."""
    stop = prepare(settings, process=role if role != "all" else "")
    try:
        async with _standing_by(settings, stop, tell) as is_first:
            if is_first:
                async with running(settings, stop=stop, role=role):
                    await until(stop, tell)
    except (CannotStart, AlreadyRunning, DatabaseTooNew) as error:
        log.error(str(error))
        return CANNOT_START
    return 0


@contextlib.asynccontextmanager
async def _standing_by(
    settings: Settings, stop: asyncio.Event, tell: Callable[[str], None]
) -> AsyncIterator[bool]:
    """Wait until no other bot serves this database. Report meanwhile that this process lives. Yield False if it is to stop.

    With SQLite there is one machine, and its process lock.
    """
    if not (settings.fleet.is_bot and settings.own_database_url.startswith("postgresql")):
        yield True
        return
    from bot.fleet.standby import first_bot

    alive = asyncio.create_task(keep_alive(tell))
    try:
        async with first_bot(settings, stop) as is_first:
            alive.cancel()
            yield is_first
    finally:
        alive.cancel()


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    *,
    stop: asyncio.Event | None = None,
    role: ProcessRole = "all",
    specs: Mapping[str, ActionSpec] | None = None,
) -> AsyncIterator[Bot]:
    """Run the bot during the block, with all actions or only `specs`. Raise CannotStart or AlreadyRunning."""
    lock = ProcessLock(settings.state_dir, "slack.lock")
    lock.take()
    try:
        if settings.fleet.url and not settings.fleet.is_bot:
            raise CannotStart(
                "these are the settings of a fleet's worker (fleet.url without fleet.signing_key): start `gpu-oncall worker` "
                "here; the bot runs elsewhere"
            )
        check_tokens(settings)
        async with _started(build(settings, role=role, specs=specs), stop, role) as bot:
            yield bot
    finally:
        lock.release()


def build(
    settings: Settings, *, role: ProcessRole = "all", specs: Mapping[str, ActionSpec] | None = None
) -> Bot:
    """Build all services and the Bolt app. Creates the state folder; starts nothing and sends nothing to Slack."""
    store, artifacts = storage(settings)
    token = settings.slack.bot_token.get_secret_value()
    # No retry handler: the SDK's own would send chat.postMessage again after a lost answer.
    client = AsyncWebClient(token=token, base_url=settings.slack.api_url, timeout=15, retry_handlers=[])
    identity = Identity(
        token=token, api_url=settings.slack.api_url, rooms=settings.slack.incident_place == "channel"
    )
    specs = actions() if specs is None else specs
    runs = _runs(settings, store, artifacts, specs, role)
    incidents, access = Incidents(store), Access(settings.access, client, home_team=lambda: identity.team_id)
    memory = MonitorMemory(store, settings.monitors)
    alerts = Alerts(
        client,
        runs=runs,
        store=store,
        incidents=incidents,
        settings=settings.monitors,
        channel=settings.slack.incident_channel,
        render_context=lambda: services.render_context(),  # noqa: PLW0108  (services are built below)
        acknowledged=memory.acknowledged,
        pages=Pages(settings.paging, store),
    )
    monitors = Monitors(settings.monitors, store=store, hosts=runs.hosts.get, alerts=alerts, memory=memory)

    async def keep_alert(key: str, alert: Alert) -> bool:
        return bool(await alerts.keep_new([(key, alert)]))

    runs.on_alert, runs.on_notice, runs.keep_alert = alerts.report, alerts.notice, keep_alert
    services = Services(
        settings=settings,
        runs=runs,
        approvals=Approvals(store, settled=runs.decided),
        incidents=incidents,
        store=store,
        access=access,
        monitors=monitors,
        alerts=alerts,
        reports=Reports(
            client=client,
            store=store,
            artifacts=artifacts,
            incidents=incidents,
            folder=settings.state_dir / "reports",
            identity=identity,
        ),
        actions=specs,
        identity=identity,
    )

    async def authorize() -> AuthorizeResult:  # a function: Bolt reads its parameters, and takes no method
        return identity.authorized()

    app = AsyncApp(
        client=AsyncWebClient(base_url=settings.slack.api_url, timeout=15, retry_handlers=[]),
        authorize=authorize,
        signing_secret=settings.slack.signing_secret.get_secret_value() or None,
        request_verification_enabled=settings.slack.mode == "http",
        before_authorize=stamp_arrival,
        ignoring_self_events_enabled=True,
        logger=logging.getLogger("slack_bolt"),
    )
    register(app, services)
    return Bot(
        settings=settings,
        store=store,
        artifacts=artifacts,
        runs=runs,
        services=services,
        alerts=alerts,
        monitors=monitors,
        client=client,
        app=app,
    )


def _runs(
    settings: Settings,
    store: Store,
    artifacts: ArtifactStore,
    specs: Mapping[str, ActionSpec],
    role: ProcessRole,
) -> Runs:
    if not settings.fleet.is_bot:
        return Runs(settings, store=store, artifacts=artifacts, actions=specs, role=role)
    from bot.fleet.face import FleetRuns

    return FleetRuns(settings, store=store, artifacts=artifacts, actions=specs)


@contextlib.asynccontextmanager
async def _started(bot: Bot, stop: asyncio.Event | None, role: ProcessRole) -> AsyncIterator[Bot]:
    """Start the parts of a built bot in order, and end them in reverse order."""
    settings, services = bot.settings, bot.services
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(bot.store.close)
        # The host's work first: no half-done run waits for Slack.
        await bot.runs.launch()
        stack.push_async_callback(bot.runs.close)
        live = LiveMessages(
            bot.client,
            runs=bot.runs,
            store=bot.store,
            incidents=services.incidents,
            settings=settings.slack,
            render_context=services.render_context,
            place_of=bot.alerts.place_of,
        )
        stack.push_async_callback(_end_task, asyncio.create_task(_show_live(live, stop)))
        if settings.slack.incident_place == "channel":
            rooms = IncidentRooms(
                bot.client,
                store=bot.store,
                incidents=services.incidents,
                access=services.access,
                settings=settings.slack,
                render_context=services.render_context,
                spend_edit=live.spend_edit,
            )
            stack.push_async_callback(_end_task, asyncio.create_task(rooms.run()))
        give_up = stop.set if stop is not None and role == "bot" else _stay
        connection = await stack.enter_async_context(
            connected(
                bot.app,
                settings,
                services.identity,
                give_up=give_up,
                self_event=SelfEvent(bot.client, bot.store),
            )
        )
        stack.push_async_callback(bot.alerts.close)
        stack.push_async_callback(_end_task, asyncio.create_task(_warm(bot)))
        schedule = _schedule(bot)
        webhook = Webhook(settings.web, hosts=lambda: services.hosts, alerts=bot.alerts, store=bot.store)
        application = web_app(
            store=bot.store,
            artifacts=bot.artifacts,
            slack=connection,
            warnings=lambda: [bot.alerts.pages.problem] if bot.alerts.pages.problem else [],
            receive_alerts=webhook.receive,
            collectors=(bot.monitors, schedule),
        )
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, settings.web.host, settings.web.port).start()
        except OSError as error:
            raise CannotStart(
                f"web.port {settings.web.port} on {settings.web.host} cannot be opened ({error.strerror}): "
                "another bot may be running; set web.port"
            ) from None
        schedule.start()
        stack.callback(schedule.close)
        log.info("the bot is up", hosts=services.hosts, web=settings.public_url)
        yield bot
        log.info("the bot is stopping; its runs continue at the next start")


def _schedule(bot: Bot) -> Schedule:
    """Return the periodic work: monitors, delivery of undelivered alerts, and removal of old files and keys."""
    schedule = Schedule()
    schedule.every(ALERT_RETRY_S, "undelivered alerts", bot.alerts.retry)
    drills = Drills(
        client=bot.client,
        runs=bot.runs,
        incidents=bot.services.incidents,
        reports=bot.services.reports,
        settings=bot.settings,
    )
    schedule.every(FOLLOW_DRILLS_S, "drills", drills.follow)
    if cron := bot.settings.drills.cron:
        schedule.cron(cron, "drill", drills.start, clock_speed=bot.settings.drills.clock_speed)
    if bot.settings.monitors.enabled:
        bot.monitors.schedule(schedule, bot.settings.hosts)
        keeper = StandbyKeeper(
            bot.settings.monitors,
            bot.runs,
            bot.store,
            bot.services.incidents,
            bot.alerts,
            bot.runs.hosts.get,
        )
        keeper.schedule(schedule, bot.settings.hosts)
        PageCacheKeeper(bot.settings.monitors, keeper.is_quiet).schedule(schedule, bot.settings.hosts)
    for name, sweep, first_after_s in (
        ("artifacts", bot.artifacts.sweep, 60.0),
        ("deliveries", bot.store.deliveries.sweep, 90.0),
        ("rows", partial(sweep_rows, bot.store, older_than_s=bot.settings.retention.days * 86_400), 120.0),
    ):
        run = partial(asyncio.to_thread, sweep)
        schedule.every(SWEEP_S, f"sweep {name}", run, first_after_s=first_after_s)
    return schedule


async def _warm(bot: Bot) -> None:
    """Look groups and the incident channel up once Slack answers, so that the first command needs no lookup."""
    await bot.services.identity.known.wait()
    await bot.services.access.warm()
    await bot.alerts.warm()


def _stay() -> None:
    """Keep a process that also executes runs: the host's work is worth more than the connection."""


async def _show_live(live: LiveMessages, stop: asyncio.Event | None) -> None:
    try:
        await live.run()
    except Exception:
        log.exception("live messages failed; the bot stops, so that its supervisor restarts it")
        if stop is not None:
            stop.set()
        raise


async def _end_task(task: "asyncio.Task[None]") -> None:
    """Cancel a task until it has ended: a library may swallow the first cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=TASK_END_S)
