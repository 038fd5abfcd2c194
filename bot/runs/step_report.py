"""What a running step says of itself, written to its row at most twice a second: the last word always goes out."""

import asyncio
from collections.abc import Callable

REPORT_INTERVAL_S = 0.5


class StepReport:
    """Callable as `report(text, fraction)` from the loop or from a thread. `write` blocks and runs in a thread."""

    def __init__(
        self, write: Callable[[str, float | None], None], *, interval_s: float = REPORT_INTERVAL_S
    ) -> None:
        self._write = write
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._said: tuple[str, float | None] | None = None
        self._news = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    def __call__(self, text: str, fraction: float | None = None) -> None:
        self._loop.call_soon_threadsafe(self._take, text, fraction)

    def _take(self, text: str, fraction: float | None) -> None:
        self._said = (text, fraction)
        self._news.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_news())

    async def _write_news(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._said is not None:
                await asyncio.to_thread(self._write, *self._said)
            await asyncio.sleep(self._interval_s)

    async def close(self) -> None:
        """Stop writing. The step's own end stands in the row from now on."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait({self._writer})
