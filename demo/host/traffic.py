"""The demonstration's visitors: one request a second through the router, so that a fault has a visible effect."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator

import aiohttp

PERIOD_S = 1.0
PATIENCE_S = 20.0
REMEMBERED = 30


class Traffic:
    """Sends completions and counts the answers."""

    def __init__(self, url: str, *, model: str = "demo") -> None:
        self._url = f"{url}/v1/completions"
        self._model = model
        self._recent: deque[tuple[float, bool]] = deque(maxlen=REMEMBERED)
        self.waiting = 0
        self.served = 0
        self.failed = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send requests until the block ends."""
        task = asyncio.create_task(self._send())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _send(self) -> None:
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as visitors:
            while True:
                visitors.create_task(self._one(session))
                await asyncio.sleep(PERIOD_S)

    async def _one(self, session: aiohttp.ClientSession) -> None:
        body = {
            "model": self._model,
            "prompt": "The light of the rack at night",
            "max_tokens": 8,
            "ignore_eos": True,
        }
        self.waiting += 1
        good = False
        try:
            async with session.post(self._url, json=body) as response:
                await response.read()
                good = response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            good = False  # it is counted below
        finally:
            self.waiting -= 1
        self.served += good
        self.failed += not good
        self._recent.append((time.monotonic(), good))

    def summary(self) -> str:
        """Return one line for the panel."""
        good = sum(ok for _, ok in self._recent)
        return (
            f"Visitors (1/s through the router): {self.served} served, {self.failed} failed, {self.waiting} waiting; "
            f"of the last {len(self._recent)}: {good} served."
        )
