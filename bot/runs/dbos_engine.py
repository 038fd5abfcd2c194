"""DBOS as we use it: every setting that engine.md's measurements ask for, in one place.

JSON only (rows marked as pickle are refused, trap 9); a version and executor id set by hand (traps 1 and 3); no limit on
recoveries (trap 4, in `bot.runs.workflow`); SQLite in WAL mode (trap 10); quiet logs and no console of its own.
"""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

from bot.store.database import create_sqlite_file

APPLICATION = "gpu-oncall-bot"
EXECUTOR = "bot"
ENGINE_VERSION = "1"
"""Of the workflows in `bot.runs.workflow`. Not of the product: a product upgrade must find its waiting runs again."""

MAX_THREADS = (
    12  # DBOS makes its pool the loop's default one, so all of the bot's asyncio.to_thread shares it
)
WRITE_DOWN_S = 0.5
NOTIFICATION_POLL_S = 1.0  # nothing of ours waits in recv; its poller sleeps this long before it sees the end
QUIET_QUEUE_POLL_S = 30.0
SCHEDULER_POLL_S = 3600.0  # DBOS schedules are not used


class PickleRefused(Exception):
    """A workflow row is marked as pickle. We never wrote one: unpickling it would run whatever is in it."""


REFUSAL = (
    "the workflow database holds a row marked as pickle, which gpu-oncall never writes; it is not read. "
    "Somebody else wrote to the database: find out who before going on."
)


def _refuse(self: Any, data: str) -> NoReturn:
    raise PickleRefused(REFUSAL)


def _write_refusal(self: Any, data: Any) -> str:
    """DBOS closes a row that it could not read with the error, in the row's own format: as plain text then."""
    if isinstance(data, Exception):
        return f"{type(data).__name__}: {data}"
    raise PickleRefused(REFUSAL)


def refuse_pickle() -> None:
    """Make DBOS refuse rows marked as pickle, in both directions. Private API of dbos 3.4; a test watches it."""
    from dbos._serialization import DefaultSerializer

    DefaultSerializer.serialize = _write_refusal  # type: ignore[method-assign]
    DefaultSerializer.deserialize = _refuse  # type: ignore[method-assign,assignment]


def open_dbos(url: str) -> None:
    """Build the process's DBOS (not launched yet) on a SQLite file, made where it is missing, or on PostgreSQL."""
    refuse_pickle()
    if url.startswith("sqlite"):
        create_sqlite_file(url)
    config: DBOSConfig = {
        "name": APPLICATION,
        "system_database_url": url,
        "application_version": ENGINE_VERSION,
        "executor_id": EXECUTOR,
        "serializer": DBOSPortableJSONSerializer(),
        "log_level": "WARNING",
        "enable_otlp": False,
        "max_executor_threads": MAX_THREADS,
        "sys_db_pool_size": 4,
        "notification_listener_polling_interval_sec": NOTIFICATION_POLL_S,
        "scheduler_polling_interval_sec": SCHEDULER_POLL_S,
    }
    logging.getLogger("dbos").propagate = False
    DBOS(config=config)


def quieten_recovery() -> None:
    """Have DBOS look for cut runs less often, once its launch has taken them up: only a launch puts any there.

    Polled each second, its internal queue costs 0.4 % of a core on an idle host (measured with dbos 3.4).
    """
    from dbos._dbos import _get_or_create_dbos_registry

    _get_or_create_dbos_registry().get_internal_queue()._polling_interval_sec = QUIET_QUEUE_POLL_S


async def close_dbos() -> None:
    """End DBOS and its threads. Workflows that are not finished stay pending and are taken up at the next launch."""
    await _end_workflow_tasks()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="close-dbos") as executor:
        await loop.run_in_executor(executor, lambda: DBOS.destroy(destroy_registry=True))
    # DBOS made its own (now closed) pool the loop's default one
    loop.set_default_executor(ThreadPoolExecutor(max_workers=MAX_THREADS, thread_name_prefix="bot"))


async def _end_workflow_tasks() -> None:
    """Let workflows that just ended write it down, then cut the others: a cancelled task records nothing.

    DBOS keeps its tasks to itself and would take their threads away in the middle of a write; their coroutine tells them.
    """
    tasks = {
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "__qualname__", "") == "_execute_workflow_async"
    }
    if not tasks:
        return
    _, left = await asyncio.wait(tasks, timeout=WRITE_DOWN_S)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=WRITE_DOWN_S)
