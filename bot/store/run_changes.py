"""Which runs have changed: a stream of the changes in this process, and a poll for those of another process.

`gpu-oncall bot` and `gpu-oncall worker` share only the database: each finds the other's changes within `POLL_S`.
"""

import asyncio
import time
from collections.abc import Callable

import structlog
from sqlalchemy.exc import OperationalError

from bot.store.store import Store
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

POLL_S = 0.2
"""On SQLite a poll reads only the time of a file, 0.01 % of a core; an approval reaches the worker within two polls."""
FRESH_S = 1.0
"""The time of a file is exact to 10 ms: after a commit every poll asks the database for so long."""
ANYWAY_S = 5.0
"""How often a poll asks the database although nothing seems to have been committed."""


class RunChanges:
    """An async iterator over the ids of changed runs. Several changes of a run before it is read count as one."""

    def __init__(
        self, store: Store, *, on_close: Callable[["RunChanges"], None] = lambda stream: None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._ids: dict[str, None] = {}  # a set that keeps its order
        self._closed = False
        self._on_close = on_close
        self._unsubscribe = store.subscribe(self._add_from_any_thread)

    def _add_from_any_thread(self, run_id: str) -> None:
        self._loop.call_soon_threadsafe(self._add, run_id)

    def _add(self, run_id: str) -> None:
        self._ids[run_id] = None
        self._arrived.set()

    def __aiter__(self) -> "RunChanges":
        return self

    async def __anext__(self) -> str:
        while not self._ids:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        run_id = next(iter(self._ids))
        del self._ids[run_id]
        return run_id

    def close(self) -> None:
        """End the stream after the ids that it already holds."""
        if not self._closed:
            self._closed = True
            self._unsubscribe()
            self._on_close(self)
            self._arrived.set()


async def poll_changes(store: Store, *, since: int) -> None:
    """Notify the subscribers of this process of every run that changes after a version, until cancelled.

    Changes of this process are notified again, which is harmless. Read `since` before announcing that this process is
    ready, so that no request made from then on is missed.
    """
    seen = since
    away = False
    sign: object = None
    changed_at = asked_at = float("-inf")
    while True:
        await asyncio.sleep(POLL_S)
        now = time.monotonic()
        if (latest := store.database.commit_sign()) is None or latest != sign:
            sign, changed_at = latest, now
        if now - changed_at > FRESH_S and now - asked_at < ANYWAY_S:
            continue
        asked_at = now
        try:
            changed = await asyncio.to_thread(store.changed_since, seen)
        except OperationalError as error:
            if not away:
                log.warning("the database does not answer, retrying", error=redacted_head(str(error), 200))
            away = True
            continue
        away = False
        for run_id, version in changed:
            seen = max(seen, version)
            store.notify(run_id)
