"""A stream of the runs that changed, for whoever shows them live."""

import asyncio
from collections.abc import Callable

from bot.store.store import Store


class Changes:
    """Iterates over run ids that changed since it was built; several changes of one run before it is read are one."""

    def __init__(self, store: Store, *, on_close: Callable[["Changes"], None] = lambda stream: None) -> None:
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._ids: dict[str, None] = {}
        self._closed = False
        self._on_close = on_close
        self._unsubscribe = store.subscribe(self._told)

    def _told(self, run_id: str) -> None:
        self._loop.call_soon_threadsafe(self._take, run_id)

    def _take(self, run_id: str) -> None:
        self._ids[run_id] = None
        self._news.set()

    def __aiter__(self) -> "Changes":
        return self

    async def __anext__(self) -> str:
        while not self._ids:
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        run_id = next(iter(self._ids))
        del self._ids[run_id]
        return run_id

    def close(self) -> None:
        """End the stream after what is already in it."""
        if not self._closed:
            self._closed = True
            self._unsubscribe()
            self._on_close(self)
            self._news.set()
