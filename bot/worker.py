"""The worker of a host: it executes the runs and needs no Slack. Also what every process of the product does at its start.

It imports nothing of Slack, so that it stays small beside the bot.
"""

import asyncio
import ctypes
import signal
from collections.abc import Callable

import structlog

from bot.incidents.artifacts import ArtifactStore
from bot.incidents.settings_record import record_settings
from bot.runs.process_lock import AlreadyRunning
from bot.runs.runs import Runs
from bot.settings.logs import configure_logging
from bot.settings.model import Settings
from bot.store.store import Store
from bot.store.upgrade import DatabaseTooNew
from bot.web.service_notify import keep_alive, notify
from gpu_actions.registry import actions

log = structlog.get_logger()

CANNOT_START = 1
"""Exit code of a process that cannot start; the log says why."""

M_ARENA_MAX = -8
ARENAS = 2
"""glibc gives each thread a heap of its own, up to 8 a core; two are enough for us and keep freed memory in one place."""


async def serve_worker(settings: Settings, *, tell: Callable[[str], None] = notify) -> int:
    """Execute the runs of this host until SIGTERM or SIGINT, without Slack. Return 1 if another process does so."""
    stop = prepare(settings, process="worker")
    try:
        store, artifacts = storage(settings)
    except DatabaseTooNew as error:
        log.error(str(error))
        return CANNOT_START
    runs = Runs(settings, store=store, artifacts=artifacts, actions=actions(), role="worker")
    try:
        await runs.engine.launch()
        log.info("the worker is up", hosts=[host.name for host in settings.hosts])
        await until(stop, tell)
        log.info("the worker is stopping; its runs continue at the next start")
    except AlreadyRunning as error:
        log.error(str(error))
        return CANNOT_START
    finally:
        await runs.engine.close()
        store.close()
    return 0


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
