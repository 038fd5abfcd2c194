"""The progress of a running step, written to its row at most twice a second."""

import asyncio
from collections.abc import Callable

WRITE_INTERVAL_S = 0.5


class StepProgress:
    """Call it as `progress(text, fraction)`, from the loop or from a thread. `write` blocks and runs in a thread."""

    def __init__(
        self, write: Callable[[str, float | None], None], *, interval_s: float = WRITE_INTERVAL_S
    ) -> None:
        self._write = write
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._latest: tuple[str, float | None] | None = None
        self._updated = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    def __call__(self, text: str, fraction: float | None = None) -> None:
        self._loop.call_soon_threadsafe(self._update, text, fraction)

    def _update(self, text: str, fraction: float | None) -> None:
        self._latest = (text, fraction)
        self._updated.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_updates())

    async def _write_updates(self) -> None:
        while True:
            await self._updated.wait()
            self._updated.clear()
            if self._latest is not None:
                await asyncio.to_thread(self._write, *self._latest)
            await asyncio.sleep(self._interval_s)

    async def close(self) -> None:
        """Stop writing. From now on the row shows how the step ended."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait({self._writer})
