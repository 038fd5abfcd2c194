"""A load test in a child process, for callers that must stay light (the bot) and may be cancelled.

The child reads its spec on standard input, which stays open as a lifeline: when it closes, the child stops and drains. Its
progress arrives as JSON lines; its result is the file that it wrote.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic_core import to_json

from gpu_actions.loadtest.knee_result import KNEE_JSON, KneeProgress, KneeResult, read_knee
from gpu_actions.loadtest.report import JSON_NAME
from gpu_actions.loadtest.result import LoadProgress, LoadTestResult, read_result
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import LoadTestRefused
from gpu_actions.system.processes import child_environment, end_group
from gpu_actions.system.redact import redacted_tail

STOP_GRACE_S = 15.0
"""Time for the drain, the figures and the picture after a cancel, before the group is killed."""
EXIT_WRONG_USAGE = 2
T = TypeVar("T")


class LoadTestBroken(Exception):
    """The child ended without a result. The message has the end of its standard error."""


async def run_in_child(
    spec: LoadSpec,
    out_dir: Path,
    progress: Callable[[LoadProgress], None] | None = None,
    *,
    stop: asyncio.Event | None = None,
    stop_grace_s: float = STOP_GRACE_S,
) -> LoadTestResult:
    """Run a load test in a child and return its result. The files are in `out_dir` (created).

    Setting `stop` stops and drains, and the partial result is returned. Cancelling does the same, waits up to `stop_grace_s`,
    kills what is left and raises CancelledError; a partial result is then in `out_dir`. Raises LoadTestRefused for a wrong
    request, LoadTestBroken when the child ended without a result.
    """

    def on_line(line: bytes) -> None:
        if progress is not None and line.startswith(b'{"elapsed_s"'):
            progress(LoadProgress.model_validate_json(line))

    ended = await _run(spec, out_dir, JSON_NAME, (), on_line, stop, stop_grace_s)
    return _read(ended, lambda: read_result(out_dir / JSON_NAME))


async def find_knee_in_child(
    spec: LoadSpec,
    out_dir: Path,
    progress: Callable[[KneeProgress], None] | None = None,
    *,
    max_qps: float,
    budget_s: float,
    stop: asyncio.Event | None = None,
) -> KneeResult:
    """Search for the knee in a child and return the result. Files, `stop`, cancelling and errors are as in `run_in_child`."""

    def on_line(line: bytes) -> None:
        if progress is not None and line.startswith(b'{"fraction"'):
            progress(KneeProgress.model_validate_json(line))

    flags = ("--find-knee", "--knee-max-qps", f"{max_qps:g}", "--knee-budget-s", f"{budget_s:g}")
    ended = await _run(spec, out_dir, KNEE_JSON, flags, on_line, stop, STOP_GRACE_S)
    return _read(ended, lambda: read_knee(out_dir / KNEE_JSON))


class _Ended(NamedTuple):
    exit_code: int | None
    words: str


def _read(ended: _Ended, read: Callable[[], T]) -> T:
    if ended.exit_code == EXIT_WRONG_USAGE:
        raise LoadTestRefused(
            ended.words.splitlines()[-1] if ended.words else "the load test refused its arguments"
        )
    try:
        return read()
    except ValueError as error:
        raise LoadTestBroken(
            f"the load test ended with exit code {ended.exit_code} and no result: {redacted_tail(ended.words, 400) or error}"
        ) from error


async def _run(
    spec: LoadSpec,
    out_dir: Path,
    result_name: str,
    flags: tuple[str, ...],
    on_line: Callable[[bytes], None],
    stop: asyncio.Event | None,
    stop_grace_s: float,
) -> _Ended:
    """Run the child to its end. Return its exit code and its standard error."""
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / result_name).unlink(missing_ok=True)  # an older run's file must never be read as this one's
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gpu_actions.loadtest", "--spec-stdin", "--report", str(out_dir), *flags),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=child_environment(),
        start_new_session=True,
    )
    assert process.stdin is not None  # noqa: S101  (PIPE was asked for)
    assert process.stdout is not None  # noqa: S101
    assert process.stderr is not None  # noqa: S101
    process.stdin.write(to_json(spec.dump_with_key()) + b"\n")
    errors = asyncio.create_task(process.stderr.read(65536))
    follower = asyncio.create_task(_follow(process.stdout, on_line))
    stopper = asyncio.create_task(_stop_when(stop, process.stdin)) if stop is not None else None
    try:
        await process.wait()
        await follower
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.wait()), stop_grace_s)
        raise
    finally:
        if stopper is not None:
            stopper.cancel()
        follower.cancel()
        process.stdin.close()
        await end_group(process.pid, grace_s=0.5)
        await process.wait()
        words = (await errors).decode(errors="replace").strip()
    return _Ended(process.returncode, words)


async def _follow(stream: asyncio.StreamReader, on_line: Callable[[bytes], None]) -> None:
    while line := await stream.readline():
        on_line(line)


async def _stop_when(stop: asyncio.Event, lifeline: asyncio.StreamWriter) -> None:
    """Stop by closing the lifeline: a signal to a child that has no handler yet would end it without a result."""
    await stop.wait()
    lifeline.close()
