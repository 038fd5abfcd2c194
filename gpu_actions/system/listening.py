"""Who listens on a port, and waiting until somebody does: the first sign of an engine that comes up.

A connection that is refused costs 0.1 ms, so it is asked often; a completion or a look at the process table would not be.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from gpu_actions.system.urls import port_of

POLL_S = 0.03
CONNECT_TIMEOUT_S = 1.0
ASK_PROCESS_EVERY_S = 1.0
"""How often the process is looked at meanwhile; a look at the process table of a big host costs 40 ms."""


def listener_of(port: int) -> str | None:
    """Who listens on a local TCP port, as `name (pid)`; None when nobody does."""
    for pid in _listening_pids(port):
        if pid is None:
            return "a process of another user"
        with contextlib.suppress(psutil.Error):
            return f"{psutil.Process(pid).name()} (process {pid})"
        return f"process {pid}"
    return None


def listening_process(port: int) -> psutil.Process | None:
    """The process that listens on a local TCP port; None when none is seen (or it is not ours to see)."""
    with contextlib.suppress(psutil.AccessDenied, psutil.NoSuchProcess):
        for pid in _listening_pids(port):
            if pid is not None:
                return psutil.Process(pid)
    return None


def _listening_pids(port: int) -> Iterator[int | None]:
    """Processes that listen on a port; None for one that is not ours to see."""
    if not _is_taken(port):
        return  # to find owners, every process's files are walked: 30 ms and more
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            yield connection.pid


def _is_taken(port: int) -> bool:
    """Say whether the kernel's tables of this network namespace have a listening socket on the port (proc_net_tcp)."""
    listening = re.compile(rf":{port:04X} [0-9A-F]+:0000 0A ")
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(OSError):
            if listening.search(table.read_text()):
                return True
    return False


async def listens(url: str) -> bool:
    """Say whether somebody takes connections at the URL's host and port."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(urlsplit(url).hostname, port_of(url))
        writer.close()
        return True
    return False


async def until_listening(
    url: str, *, deadline: float, still_starting: Callable[[], Awaitable[bool]] | None = None
) -> None:
    """Wait until somebody listens, the process is gone, or the deadline (monotonic clock) has come; callers see which."""
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
