"""Find the process that listens on a port, and wait for a listener: the first sign of an engine that starts.

A refused connection costs 0.1 ms, so it is tried often; a completion or the process table costs far more.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from urllib.parse import urlsplit

import psutil

from gpu_actions.system.proc import has_listener
from gpu_actions.system.urls import port_of

POLL_S = 0.03
CONNECT_TIMEOUT_S = 1.0
ASK_PROCESS_EVERY_S = 1.0
"""How often the process is checked meanwhile; reading the process table of a big host takes 40 ms."""


def listener_of(port: int) -> str | None:
    """Return the listener on a local TCP port as `name (process PID)`, or None."""
    for pid in _listening_pids(port):
        if pid is None:
            return "a process of another user"
        with contextlib.suppress(psutil.Error):
            return f"{psutil.Process(pid).name()} (process {pid})"
        return f"process {pid}"
    return None


def listening_process(port: int) -> psutil.Process | None:
    """Return the process that listens on a local TCP port, or None if there is none or permission is denied."""
    with contextlib.suppress(psutil.AccessDenied, psutil.NoSuchProcess):
        for pid in _listening_pids(port):
            if pid is not None:
                return psutil.Process(pid)
    return None


def _listening_pids(port: int) -> Iterator[int | None]:
    """Yield the PIDs that listen on a port; None for a process of another user."""
    if not has_listener(port):
        return  # finding the owner reads every process's files: 30 ms and more
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            yield connection.pid


async def listens(url: str) -> bool:
    """Return True if the URL's host and port accept a connection."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(urlsplit(url).hostname, port_of(url))
        writer.close()
        return True
    return False


async def until_listening(
    url: str, *, deadline: float, still_starting: Callable[[], Awaitable[bool]] | None = None
) -> None:
    """Wait for a listener, the end of the process, or the deadline (monotonic clock), whichever comes first."""
    ask_again_at = 0.0
    while not await listens(url):
        now = time.monotonic()
        if now + POLL_S >= deadline:
            return
        if still_starting is not None and now >= ask_again_at:
            if not await still_starting():
                return
            ask_again_at = now + ASK_PROCESS_EVERY_S
        await asyncio.sleep(POLL_S)
