"""Run child processes with an explicit environment, a session of their own, a deadline, and no orphans.

Every child of the product starts here or through a unit. No child inherits the caller's environment: `PASSED_ON` lists the
few variables that a program needs to run at all.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpu_actions.models import Frozen
from gpu_actions.system.leash import LEASH
from gpu_actions.system.proc import process_table
from gpu_actions.system.redact import redacted_head

PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH")
"""Variables that children inherit; the caller must name all others."""

REAP_S = 5.0


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment for a child: the variables of `PASSED_ON` that are set, then `extra`."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment.update(extra or {})
    return environment


class ProcessResult(Frozen):
    """The outcome of a child. `exit_code` is negative for a signal, as in subprocess; output is capped by the caller."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool = False
    truncated: bool = False

    def describe(self) -> str:
        """Return one line: the command, how it ended, and the last two lines that it printed."""
        printed = "; ".join((self.stderr.strip() or self.stdout.strip()).splitlines()[-2:])
        how = f"no end within {self.seconds:.0f} s" if self.timed_out else f"exit code {self.exit_code}"
        return f"{shlex.join(self.argv)}: {how}{': ' + redacted_head(printed, 300) if printed else ''}"


async def run_process(
    argv: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    max_output_bytes: int = 4 * 1024 * 1024,
    kill_grace_s: float = 1.0,
) -> ProcessResult:
    """Run a program in its own session to its end or its deadline, and leave no process behind.

    `env` is the whole environment (default: `child_environment()`). At the deadline, or if the caller is cancelled, the
    process group gets SIGTERM, then SIGKILL after `kill_grace_s`; if this process is killed, it gets SIGKILL.
    Raises FileNotFoundError if the program is missing.
    """
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(child_environment() if env is None else env),
        cwd=cwd,
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101  (PIPE was asked for)
    assert process.stderr is not None  # noqa: S101
    readers = asyncio.gather(
        _read_capped(process.stdout, max_output_bytes), _read_capped(process.stderr, max_output_bytes)
    )
    timed_out = False
    with LEASH.holding(process.pid):
        try:
            try:
                async with asyncio.timeout(timeout_s):
                    await asyncio.gather(asyncio.shield(readers), process.wait())
            except TimeoutError:
                timed_out = True
        finally:
            await end_group(process.pid, grace_s=kill_grace_s)
            with contextlib.suppress(
                TimeoutError
            ):  # one that blocks in the driver ends when the driver lets go
                async with asyncio.timeout(REAP_S):
                    await process.wait()
    try:
        async with asyncio.timeout(2):
            (out, out_cut), (err, err_cut) = await readers
    except TimeoutError:  # a grandchild in a session of its own still holds the pipe
        (out, out_cut), (err, err_cut) = (b"", True), (b"", True)
    return ProcessResult(
        argv=tuple(str(part) for part in argv),
        exit_code=process.returncode if process.returncode is not None else -signal.SIGKILL,
        stdout=out.decode(errors="replace"),
        stderr=err.decode(errors="replace"),
        seconds=time.monotonic() - started,
        timed_out=timed_out,
        truncated=out_cut or err_cut,
    )


async def _read_capped(stream: asyncio.StreamReader, cap: int) -> tuple[bytes, bool]:
    kept = bytearray()
    truncated = False
    while chunk := await stream.read(65536):
        room = cap - len(kept)
        kept += chunk[:room]
        truncated = truncated or len(chunk) > room
    return bytes(kept), truncated


def group_is_alive(pgid: int) -> bool:
    """Return True if the group has a process that is not a zombie."""
    return any(row.group == pgid and not row.zombie for row in process_table().values())


async def end_group(pgid: int, *, grace_s: float) -> bool:
    """End a process group: SIGTERM, SIGCONT in case it is stopped, then SIGKILL after `grace_s` seconds.

    Returns True if SIGKILL was needed. A group that is already gone is not an error.
    """
    for signum in (signal.SIGTERM, signal.SIGCONT):
        try:
            os.killpg(pgid, signum)
        except ProcessLookupError:
            return False
    deadline = time.monotonic() + grace_s
    while group_is_alive(pgid):
        if time.monotonic() >= deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pgid, signal.SIGKILL)
            return True
        await asyncio.sleep(0.02)
    return False
