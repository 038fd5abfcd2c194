"""Read a child's output line by line, and kill it at a deadline without waiting for its end: a process that is blocked in the
driver survives SIGKILL until the driver returns.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncGenerator, Sequence

from gpu_actions.system.leash import LEASH
from gpu_actions.system.processes import child_environment
from gpu_actions.system.redact import redacted_tail, whole_lines

MAX_LINE_BYTES = 1024 * 1024
REAP_S = 0.5
KEPT_BYTES = 65536
TAIL_CHARACTERS = 2000


async def lines_of(
    argv: Sequence[str],
    *,
    deadline_s: float,
    env: dict[str, str] | None = None,
    errors: list[str] | None = None,
    end: asyncio.Event | None = None,
) -> AsyncGenerator[bytes, None]:
    """Yield a child's output line by line until it ends or `deadline_s` seconds have passed; then kill its group.

    Its standard input is empty, or closed when `end` is set. The last 2000 characters of its standard error are appended to
    `errors`. A line over 1 MiB ends the reading.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL if end is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=child_environment() if env is None else env,
        start_new_session=True,
        limit=MAX_LINE_BYTES,
    )
    assert process.stdout is not None  # noqa: S101  (PIPE was requested)
    assert process.stderr is not None  # noqa: S101
    stderr_tail = asyncio.create_task(_tail(process.stderr))
    closing = None if end is None else asyncio.create_task(_close_after(end, process.stdin))
    ends_at = time.monotonic() + deadline_s
    with LEASH.holding(process.pid):
        try:
            while True:
                try:
                    async with asyncio.timeout(max(0.0, ends_at - time.monotonic())):
                        line = await process.stdout.readline()
                except (TimeoutError, ValueError):
                    break
                if not line:
                    break
                yield line
        finally:
            if closing is not None:
                closing.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REAP_S):
                    await process.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REAP_S):
                    tail = await stderr_tail
                if errors is not None and tail:
                    errors.append(tail)


async def _close_after(end: asyncio.Event, stdin: asyncio.StreamWriter | None) -> None:
    await end.wait()
    if stdin is not None:
        stdin.close()


async def _tail(stream: asyncio.StreamReader) -> str:
    kept, cut = b"", False
    while chunk := await stream.read(65536):
        cut = cut or len(kept) + len(chunk) > KEPT_BYTES
        kept = (kept + chunk)[-KEPT_BYTES:]
    return redacted_tail(whole_lines(kept.decode(errors="replace"), cut=cut).strip(), TAIL_CHARACTERS)
