"""How this process configures DBOS (https://docs.dbos.dev), in one place.

- JSON only: rows marked as pickle are refused, since unpickling runs whatever is in them.
- A fixed application version and executor id: DBOS recovers only workflows of its own version and executor, and by default
  computes the version from the source code, so that every upgrade would lose the runs in progress.
- No limit on recoveries (`max_recovery_attempts=None` in `bot.runs.workflow`), SQLite in WAL mode, quiet logs.
"""

import asyncio
import datetime
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, _workflow_commands

from bot.store.database import create_sqlite_file

APPLICATION = "gpu-oncall-bot"
EXECUTOR = "bot"
ENGINE_VERSION = "1"
"""The version of the workflows in `bot.runs.workflow`, not of the product: an upgrade must find its waiting runs again."""

MAX_THREADS = 12
"""DBOS makes its pool the default executor of the loop, so every `asyncio.to_thread` of the bot shares it."""
TASK_END_S = 0.5
SWEEP_BATCH = 200
NOTIFICATION_POLL_S = 1.0  # no workflow waits in recv; this only delays the end of the poller
QUIET_QUEUE_POLL_S = 30.0
BACKGROUND_JOBS_S = (
    4.0  # delays and deadlines of workflows, which are not used; PostgreSQL's lock for it lasts 5 s
)
SCHEDULER_POLL_S = 3600.0  # DBOS schedules are not used


class PickleRefused(Exception):
    """A workflow row is marked as pickle, which gpu-oncall never writes."""


REFUSAL = (
    "the workflow database holds a row marked as pickle, which gpu-oncall never writes; the row is not read. "
    "Something else wrote to the database: find out what before you continue."
)


def _refuse(self: Any, data: str) -> NoReturn:
    raise PickleRefused(REFUSAL)


def _write_refusal(self: Any, data: Any) -> str:
    """Return an error as plain text: DBOS stores it in the format of the row that it could not read. Refuse the rest."""
    if isinstance(data, Exception):
        return f"{type(data).__name__}: {data}"
    raise PickleRefused(REFUSAL)


def refuse_pickle() -> None:
    """Make DBOS refuse to read or write pickle. Uses a private API of dbos 3.4; a test checks it."""
    from dbos._serialization import DefaultSerializer

    DefaultSerializer.serialize = _write_refusal  # type: ignore[method-assign]
    DefaultSerializer.deserialize = _refuse  # type: ignore[method-assign,assignment]


def open_dbos(url: str) -> None:
    """Create the DBOS instance of this process, without launching it, on SQLite (created if missing) or PostgreSQL."""
    refuse_pickle()
    _workflow_commands._BACKGROUND_JOBS_INTERVAL_SEC = BACKGROUND_JOBS_S
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
    """Have DBOS poll its internal queue less often, once the launch has recovered the runs: only a launch queues any.

    At one poll per second it costs 0.4 % of a core on an idle host (measured with dbos 3.4).
    """
    from dbos._dbos import _get_or_create_dbos_registry

    _get_or_create_dbos_registry().get_internal_queue()._polling_interval_sec = QUIET_QUEUE_POLL_S


async def sweep_workflows(*, older_than_s: float) -> int:
    """Remove the rows of workflows that ended longer ago than this. Return how many workflows were removed.

    An ended run is read from its own rows; the engine's only serve a restart in the middle of it.
    """
    removed = 0
    cutoff = datetime.datetime.fromtimestamp(time.time() - older_than_s, datetime.UTC).isoformat()
    while True:
        old = await DBOS.list_workflows_async(
            status=["SUCCESS", "ERROR", "CANCELLED"],
            completed_before=cutoff,
            limit=SWEEP_BATCH,
            load_input=False,
            load_output=False,
        )
        if not old:
            return removed
        await DBOS.delete_workflows_async([workflow.workflow_id for workflow in old])
        removed += len(old)


async def close_dbos() -> None:
    """End DBOS and its threads. Unfinished workflows stay pending and are resumed by the next launch."""
    await _end_workflow_tasks()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="close-dbos") as executor:
        await loop.run_in_executor(executor, lambda: DBOS.destroy(destroy_registry=True))
    # DBOS had made its own pool, now closed, the default executor of the loop
    loop.set_default_executor(ThreadPoolExecutor(max_workers=MAX_THREADS, thread_name_prefix="bot"))


async def _end_workflow_tasks() -> None:
    """Let workflows that have just ended store it, then cancel the others: a cancelled task stores nothing.

    DBOS does not expose its tasks and would close their thread pool in the middle of a write, so they are found by the
    name of their coroutine.
    """
    tasks = {
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "__qualname__", "") == "_execute_workflow_async"
    }
    if not tasks:
        return
    _, unfinished = await asyncio.wait(tasks, timeout=TASK_END_S)
    for task in unfinished:
        task.cancel()
    if unfinished:
        await asyncio.wait(unfinished, timeout=TASK_END_S)
