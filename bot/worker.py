"""The worker of a host: it executes the runs and needs no Slack. Also what every process of the product does at its start.

It imports nothing of Slack, so that it stays small beside the bot.
"""

import asyncio
import ctypes
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from bot.hosts import Hosts
from bot.incidents.artifacts import ArtifactStore
from bot.incidents.settings_record import record_settings
from bot.runs.process_lock import AlreadyRunning
from bot.runs.run_engine import ProcessRole
from bot.runs.runs import Runs
from bot.settings.logs import configure_logging
from bot.settings.model import Settings
from bot.store.store import Store
from bot.store.upgrade import DatabaseTooNew
from bot.web.service_notify import CANNOT_START, keep_alive, notify
from gpu_actions.models import JsonObject
from gpu_actions.registry import actions
from gpu_actions.serving.interfaces import RouterError

if TYPE_CHECKING:
    from bot.fleet.worker_link import WorkerLink
    from bot.watch.host_watch import HostWatch

log = structlog.get_logger()

STATE_S = 3.0


class CannotLink(Exception):
    """The worker cannot join its fleet. The message says what to do."""


M_ARENA_MAX = -8
ARENAS = 2
"""glibc gives each thread a heap of its own, up to 8 a core; two are enough for us and keep freed memory in one place."""


async def serve_worker(settings: Settings, *, tell: Callable[[str], None] = notify) -> int:
    """Execute the runs of this host until SIGTERM or SIGINT, without Slack. Return 1 if another process does so."""
    stop = prepare(settings, process="worker")
    if settings.fleet.is_bot:
        log.error(
            "these are the settings of a fleet's bot: start `gpu-oncall bot` here, and the worker on each host"
        )
        return CANNOT_START
    try:
        store, artifacts = storage(settings)
    except DatabaseTooNew as error:
        log.error(str(error))
        return CANNOT_START
    is_of_fleet = bool(settings.fleet.url)
    role: ProcessRole = (
        "all" if is_of_fleet else "worker"
    )  # of a fleet: its requests come as the bot's signed orders
    runs = Runs(settings, store=store, artifacts=artifacts, actions=actions(), role=role)
    link: WorkerLink | None = None
    watch: HostWatch | None = None
    try:
        await runs.engine.launch()
        if is_of_fleet:
            watch = _watch(settings, runs, store)
            link = await _linked(settings, runs, store, watch)
            watch.start()
        log.info("the worker is up", hosts=[host.name for host in settings.hosts])
        await until(stop, tell)
        log.info("the worker is stopping; its runs continue at the next start")
    except (AlreadyRunning, CannotLink) as error:
        log.error(str(error))
        return CANNOT_START
    finally:
        if watch is not None:
            await watch.close()
        if link is not None:
            await link.close()
        await runs.engine.close()
        store.close()
    return 0


def _watch(settings: Settings, runs: Runs, store: Store) -> "HostWatch":
    from bot.watch.host_watch import HostWatch

    return HostWatch(settings, runs=runs, store=store)


async def _linked(settings: Settings, runs: Runs, store: Store, watch: "HostWatch") -> "WorkerLink":
    """Connect the runs of this host to its fleet. Raise CannotLink."""
    from bot.fleet.worker_link import NotEnrolled, WorkerLink

    try:
        link = WorkerLink(
            settings,
            runs=runs,
            store=store,
            state=lambda: host_state(runs.hosts, store),
            send_alerts=watch.alerts.send,
            acknowledge=watch.acknowledge,
        )
        await link.start()
    except (NotEnrolled, ValueError) as error:
        raise CannotLink(str(error)) from None
    return link


async def host_state(hosts: Hosts, store: Store) -> JsonObject:
    """Return what a host says of itself: the tier that serves, and what runs."""
    from gpu_actions.loadtest.recent import tier_in_service

    try:
        async with asyncio.timeout(STATE_S):
            tier = await tier_in_service(hosts.get(hosts.default()))
    except (OSError, TimeoutError, RouterError):
        tier = None
    active = await asyncio.to_thread(store.active)
    return {"tier": tier, "active_runs": [row.id for row in active][:20]}


def prepare(settings: Settings, *, process: str = "") -> asyncio.Event:
    """Set up logging, memory and signals. Return the event that SIGTERM and SIGINT set."""
    configure_logging(settings, process=process)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is not None:
        mallopt(M_ARENA_MAX, ARENAS)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def until(stop: asyncio.Event, tell: Callable[[str], None] = notify) -> None:
    """Wait for the end. Report meanwhile to `tell` (by default the service manager) that this process lives."""
    alive = asyncio.create_task(keep_alive(tell))
    try:
        await stop.wait()
    finally:
        alive.cancel()


def storage(settings: Settings) -> tuple[Store, ArtifactStore]:
    """Open the database, upgraded if need be, and the artifacts. Raise DatabaseTooNew."""
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = Store(settings.own_database_url)
    store.create()
    record_settings(settings, store)
    return store, ArtifactStore(settings, store)
