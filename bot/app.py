"""Builds the bot from its settings, in one place, and runs it until it is told to end.

`serve` is `gpu-oncall up`, the bot and the worker of this host in one process, or `gpu-oncall bot`, without the worker;
`serve_worker` is `gpu-oncall worker`. Nothing is created at import.
"""

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import structlog
from aiohttp import ClientError, web
from slack_bolt.adapter.socket_mode.aiohttp import AsyncSocketModeHandler
from slack_bolt.async_app import AsyncApp
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.http_retry.builtin_async_handlers import AsyncConnectionErrorRetryHandler
from slack_sdk.socket_mode.aiohttp import SocketModeClient
from slack_sdk.web.async_client import AsyncWebClient

from bot.incidents.artifacts import ArtifactStore
from bot.incidents.incidents import Incidents
from bot.runs.approvals import Approvals
from bot.runs.process_lock import AlreadyRunning, ProcessLock
from bot.runs.runs import ProcessRole, Runs
from bot.services import Services, make_view
from bot.settings.model import Settings
from bot.slack.access import Access
from bot.slack.live_messages import LiveMessages
from bot.store.store import Store
from bot.watch.alertmanager import Webhook
from bot.watch.alerts import Alerts
from bot.watch.monitors import MonitorMemory, Monitors
from bot.watch.scheduler import Schedule
from bot.web.server import web_app
from gpu_actions.action import ActionSpec
from gpu_actions.registry import actions
from handlers import register, stamp_arrival

log = structlog.get_logger()

CONNECT_RETRY_S = 2.0
CONNECT_RETRY_MAX_S = 30.0
SWEEP_S = 6 * 3600.0
SLACK_CLOSE_S = 10.0
TASK_END_S = 2.0
RETRY_S = 60.0


class CannotStart(Exception):
    """The bot cannot start. The message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Bot:
    """The built bot: everything is there, nothing runs yet."""

    settings: Settings
    store: Store
    artifacts: ArtifactStore
    runs: Runs
    services: Services
    alerts: Alerts
    monitors: Monitors
    client: AsyncWebClient
    app: AsyncApp


def configure_logging(settings: Settings) -> None:
    """Structured logs on stderr; the libraries only speak up for warnings."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    renderer = (
        structlog.processors.JSONRenderer()
        if settings.log_json
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    logging.basicConfig(level=max(level, logging.WARNING))


def build(
    settings: Settings,
    *,
    bot_user_id: str = "",
    role: ProcessRole = "all",
    specs: Mapping[str, ActionSpec] | None = None,
) -> Bot:
    """Build all services and the Bolt app. Creates the state folder; starts nothing and asks Slack nothing."""
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    client = AsyncWebClient(
        token=settings.slack.bot_token.get_secret_value(),
        base_url=settings.slack.api_url,
        timeout=15,
        retry_handlers=[AsyncConnectionErrorRetryHandler(max_retry_count=1)],
    )
    store = Store(settings.own_database_url)
    store.create()
    artifacts = ArtifactStore(settings, store)
    specs = actions() if specs is None else specs
    runs = Runs(settings, store=store, artifacts=artifacts, actions=specs, role=role)
    incidents, access = Incidents(store), Access(settings.access, client)
    memory = MonitorMemory(store, settings.monitors)
    alerts = Alerts(
        client,
        runs=runs,
        store=store,
        incidents=incidents,
        settings=settings.monitors,
        channel=settings.slack.incident_channel,
        view=lambda: make_view(settings, access, now=store.clock(), bot_user_id=bot_user_id),
        acknowledged=memory.acknowledged,
    )
    monitors = Monitors(settings.monitors, store=store, hosts=runs.host, alerts=alerts, memory=memory)
    services = Services(
        settings=settings,
        runs=runs,
        approvals=Approvals(store),
        incidents=incidents,
        store=store,
        access=access,
        monitors=monitors if settings.monitors.enabled else None,
        actions=specs,
        bot_user_id=bot_user_id,
    )
    app = AsyncApp(
        client=client,
        token=settings.slack.bot_token.get_secret_value(),
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


async def serve(settings: Settings, *, role: ProcessRole = "all") -> int:
    """Run the bot until SIGTERM or SIGINT. Exit 0; 1 when it cannot start (said on stderr)."""
    stop = _prepare(settings)
    try:
        async with running(settings, stop=stop, role=role):
            await stop.wait()
    except (CannotStart, AlreadyRunning) as error:
        log.error(str(error))
        return 1
    return 0


async def serve_worker(settings: Settings) -> int:
    """Carry the runs of this host until SIGTERM or SIGINT, without Slack. Exit 0; 1 when another process does that already."""
    stop = _prepare(settings)
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = Store(settings.own_database_url)
    store.create()
    artifacts = ArtifactStore(settings, store)
    runs = Runs(settings, store=store, artifacts=artifacts, actions=actions(), role="worker")
    try:
        await runs.launch()
        log.info("the worker is up", hosts=[host.name for host in settings.hosts])
        await stop.wait()
        log.info("the worker ends; runs at work go on at its next start")
    except AlreadyRunning as error:
        log.error(str(error))
        return 1
    finally:
        await runs.close()
        store.close()
    return 0


def _prepare(settings: Settings) -> asyncio.Event:
    """Set up the log and the signals; gives the event that SIGTERM and SIGINT set."""
    configure_logging(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    *,
    stop: asyncio.Event | None = None,
    role: ProcessRole = "all",
    specs: Mapping[str, ActionSpec] | None = None,
) -> AsyncIterator[Bot]:
    """The bot at work for the length of the block, with all actions or `specs`. Raises CannotStart and AlreadyRunning."""
    lock = ProcessLock(settings.state_dir, "slack.lock")
    lock.take()
    try:
        user_id = await _who_am_i(settings, stop or asyncio.Event())
        async with _at_work(build(settings, bot_user_id=user_id, role=role, specs=specs), stop) as bot:
            yield bot
    finally:
        lock.release()


@contextlib.asynccontextmanager
async def _at_work(bot: Bot, stop: asyncio.Event | None) -> AsyncIterator[Bot]:
    """Everything of a built bot, started in its order, ended in the reverse one."""
    settings, user_id = bot.settings, bot.services.bot_user_id
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(bot.store.close)
        await bot.services.access.warm()
        await bot.runs.launch()
        stack.push_async_callback(bot.runs.close)
        live = LiveMessages(
            bot.client,
            runs=bot.runs,
            store=bot.store,
            incidents=bot.services.incidents,
            settings=settings.slack,
            view=lambda: make_view(settings, bot.services.access, now=bot.store.clock(), bot_user_id=user_id),
        )
        stack.push_async_callback(_end_task, asyncio.create_task(_watched(live, stop)))
        slack_age_s = await stack.enter_async_context(_slack(bot))
        stack.push_async_callback(bot.alerts.close)
        await bot.alerts.warm()
        schedule = _schedule(bot)
        webhook = Webhook(settings.web, hosts=bot.services.hosts, alerts=bot.alerts, store=bot.store)
        application = web_app(
            store=bot.store,
            artifacts=bot.artifacts,
            slack_age_s=slack_age_s,
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
        log.info("the bot is up", hosts=[host.name for host in settings.hosts], web=settings.public_url)
        yield bot
        log.info("the bot ends; runs at work go on at its next start")


def _schedule(bot: Bot) -> Schedule:
    """What happens by itself: the monitors' looks, alarms not told yet, the sweeps of old files and of old delivery keys."""
    schedule = Schedule()
    schedule.every(RETRY_S, "untold alarms", bot.alerts.retry)
    if bot.settings.monitors.enabled:
        bot.monitors.schedule(schedule, bot.settings.hosts)
    schedule.every(
        SWEEP_S, "sweep artifacts", lambda: asyncio.to_thread(bot.artifacts.sweep), first_after_s=60
    )
    schedule.every(
        SWEEP_S,
        "sweep deliveries",
        lambda: asyncio.to_thread(bot.store.deliveries.sweep),
        first_after_s=90,
    )
    return schedule


async def _watched(live: LiveMessages, stop: asyncio.Event | None) -> None:
    try:
        await live.run()
    except Exception:
        log.exception("live messages ended; the bot ends with them, so that its supervisor starts both again")
        if stop is not None:
            stop.set()
        raise


async def _end_task(task: "asyncio.Task[None]") -> None:
    """Cancel a task until it has ended: a library below may lose the first cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=TASK_END_S)


async def _who_am_i(settings: Settings, stop: asyncio.Event) -> str:
    """Ask Slack who we are; wait for a Slack that is away. Raises CannotStart for a token that it refuses."""
    if not settings.slack.bot_token.get_secret_value():
        raise CannotStart("slack.bot_token is not set: set GPU_ONCALL_SLACK__BOT_TOKEN (xoxb-...)")
    client = AsyncWebClient(
        token=settings.slack.bot_token.get_secret_value(), base_url=settings.slack.api_url, timeout=10
    )
    pause_s = CONNECT_RETRY_S
    while True:
        try:
            return str((await client.auth_test())["user_id"])
        except SlackApiError as error:
            if error.response.status_code != 429:
                raise CannotStart(
                    f"Slack refuses the bot token: {error.response.get('error')}; copy it again from the app's page"
                ) from None
        except (SlackClientError, ClientError, OSError, TimeoutError) as error:
            log.warning(
                "Slack does not answer, trying again", url=settings.slack.api_url, error=repr(error)[:200]
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause_s)
            raise CannotStart("ended before Slack answered")
        pause_s = min(pause_s * 2, CONNECT_RETRY_MAX_S)


@contextlib.asynccontextmanager
async def _slack(bot: Bot) -> AsyncIterator["SilenceClock"]:
    """The connection to Slack. Gives a function that says how long Slack has been silent."""
    settings = bot.settings.slack
    if settings.mode == "http":
        server = bot.app.server(port=bot.settings.web.port + 1, path="/slack/events")
        runner = web.AppRunner(server.web_app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, bot.settings.web.host, bot.settings.web.port + 1).start()
        try:
            yield SilenceClock(None)
        finally:
            await runner.cleanup()
        return
    if not settings.app_token.get_secret_value():
        raise CannotStart(
            "slack.app_token is not set: Socket Mode needs GPU_ONCALL_SLACK__APP_TOKEN (xapp-...)"
        )
    handler = AsyncSocketModeHandler(
        bot.app,
        app_token=settings.app_token.get_secret_value(),
        web_client=AsyncWebClient(base_url=settings.api_url, timeout=10),
    )
    try:
        await handler.connect_async()  # type: ignore[no-untyped-call]
    except SlackApiError as error:
        raise CannotStart(
            f"Slack refuses the app token: {error.response.get('error')}; make one with connections:write"
        ) from None
    try:
        yield SilenceClock(handler.client)
    finally:
        try:
            async with asyncio.timeout(SLACK_CLOSE_S):
                await handler.close_async()  # type: ignore[no-untyped-call]
        except TimeoutError:
            log.warning("the connection to Slack did not close in time and is left")


class SilenceClock:
    """Called, it says how many seconds ago Slack gave a sign of life; None before the first one and in HTTP mode."""

    def __init__(self, client: SocketModeClient | None) -> None:
        self._client = client

    def __call__(self) -> float | None:
        """Seconds since the last ping or pong; 0 in HTTP mode, where every request is its own proof."""
        if self._client is None:
            return 0.0
        last = getattr(self._client, "last_ping_pong_time", None)
        return None if last is None else max(0.0, time.time() - last)
