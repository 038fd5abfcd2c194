"""Stretches in which the engine of the hang campaign is odd but healthy: no alert may come from them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from urllib.parse import urlsplit

from benchmarks.hang_faults import LONGEST, STREAMS, Rig


@contextlib.asynccontextmanager
async def _loaded(
    rig: Rig, streams: int, *, prompt: str = "load", max_tokens: int = 120
) -> AsyncIterator[None]:
    rig.load(streams, prompt=prompt, max_tokens=max_tokens)
    await asyncio.sleep(1)
    try:
        yield
    finally:
        rig.load(STREAMS)


def busy(rig: Rig) -> AbstractAsyncContextManager[None]:
    """As many streams as the batch takes."""
    return _loaded(rig, 8, max_tokens=400)


def long_prefill(rig: Rig) -> AbstractAsyncContextManager[None]:
    """One long prompt after the other, each read in one step: seconds without a token."""
    return _loaded(rig, 1, prompt="a" * (LONGEST - 80), max_tokens=4)


def idle(rig: Rig) -> AbstractAsyncContextManager[None]:
    """No request at all."""
    return _loaded(rig, 0)


def overload(rig: Rig) -> AbstractAsyncContextManager[None]:
    """Five times the streams that the batch takes: the queue is full and requests are refused."""
    return _loaded(rig, 40, max_tokens=400)


@contextlib.asynccontextmanager
async def paused_clients(rig: Rig) -> AsyncIterator[None]:
    """Clients that stop reading in the middle of large answers, while nobody else asks: the router holds them open."""
    where = urlsplit(rig.client_url)
    body = {
        "model": "m",
        "stream": True,
        "ignore_eos": True,
        "max_tokens": 2000,
        "logprobs": 20,
        "prompt": "paused",
    }
    text = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    writers = []
    async with _loaded(rig, 0):
        for _ in range(3):
            reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=4096)
            writer.write(head.encode() + text)
            await reader.readline()
            writers.append(writer)
        try:
            yield
        finally:
            for writer in writers:
                writer.transport.abort()


STRETCHES: dict[str, Callable[[Rig], AbstractAsyncContextManager[None]]] = {
    "busy": busy,
    "long prefill": long_prefill,
    "idle": idle,
    "paused clients": paused_clients,
    "overload": overload,
}
