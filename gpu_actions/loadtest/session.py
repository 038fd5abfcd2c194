"""Sessions carry the load out, in this process or spread over several generator processes.

A worker reads the spec on standard input and makes the same schedule from the same seed; each sends every n-th request. All
processes of a host share the monotonic clock, so one start time is valid for all.
"""

import asyncio
import contextlib
import resource
import sys
from dataclasses import fields
from time import monotonic
from typing import Literal

from pydantic_core import from_json, to_json

from gpu_actions.loadtest.generator import Counters, Generator, own_rows
from gpu_actions.loadtest.prompts import PromptMaker
from gpu_actions.loadtest.records import LogHistogram, Records
from gpu_actions.loadtest.schedule import Schedule
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import Target
from gpu_actions.system.processes import child_environment, end_group

WORKER_READY_TIMEOUT_S = 60
WORKER_LINE_LIMIT = 1024 * 1024
COUNTED = tuple(field.name for field in fields(Counters) if field.name != "first_error")


class Session:
    """A load under way. `counters` and `ttft` are up to date to about a second; the rest is complete after `run`."""

    processes: int

    def __init__(self) -> None:
        self.counters = Counters()
        self.ttft = LogHistogram()
        self.gaps = LogHistogram()
        self.records = Records(0)
        self.cpu_s = 0.0
        self.max_rss_mib = 0.0

    async def prepare(self) -> None:
        """Start what has to run before the start time."""

    async def run(self, start_at: float, stop: asyncio.Event) -> None:
        """Send and drain. The records are complete afterwards, also when `stop` was set."""
        raise NotImplementedError

    def drop(self) -> None:
        """End the drain now. What is in flight is unfinished. Only after the stop of `run` was set."""

    async def close(self) -> None:
        """End everything that `prepare` started."""


def usage_of_this_process() -> tuple[float, float]:
    """Return the CPU seconds (user and system) and the highest resident memory in MiB so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


class LocalSession(Session):
    """The load from this process's own event loop."""

    processes = 1

    def __init__(
        self, spec: LoadSpec, schedule: Schedule, target: Target, unit: Literal["bytes", "words"]
    ) -> None:
        super().__init__()
        self._drain_s = spec.drain_limit_s
        self._generator = Generator(spec, schedule, range(len(schedule)), target, PromptMaker(spec, unit))
        self.counters = self._generator.counters
        self.ttft = self._generator.ttft
        self.gaps = self._generator.gaps
        self.records = self._generator.records

    async def run(self, start_at: float, stop: asyncio.Event) -> None:
        before, _ = usage_of_this_process()
        try:
            await self._generator.run(start_at, stop, drain_s=self._drain_s)
        finally:
            after, self.max_rss_mib = usage_of_this_process()
            self.cpu_s = after - before

    def drop(self) -> None:
        self._generator.give_up()


class WorkerSession(Session):
    """The load from several generator processes."""

    def __init__(
        self, spec: LoadSpec, schedule: Schedule, unit: Literal["bytes", "words"], processes: int
    ) -> None:
        super().__init__()
        self._spec = spec
        self._schedule = schedule
        self._unit = unit
        self.processes = processes
        self._workers: list[asyncio.subprocess.Process] = []
        self._parts: dict[int, Counters] = {}
        self.records = Records(len(schedule))

    async def prepare(self) -> None:
        """Start the workers and wait until each has made its schedule. Raises RuntimeError when one does not start."""
        document = self._spec.dump_with_key()
        for number in range(self.processes):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gpu_actions.loadtest.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=child_environment(),
                start_new_session=True,
                limit=WORKER_LINE_LIMIT,
            )
            self._workers.append(process)
            job = {"spec": document, "unit": self._unit, "worker": number, "workers": self.processes}
            _stdin(process).write(to_json(job) + b"\n")
        for process in self._workers:
            async with asyncio.timeout(WORKER_READY_TIMEOUT_S):
                line = await _stdout(process).readline()
            if line != b"ready\n":
                raise RuntimeError(f"a generator process did not start ({line[:200]!r}); see standard error")

    async def run(self, start_at: float, stop: asyncio.Event) -> None:
        for process in self._workers:
            _stdin(process).write(b"start %r\n" % start_at)
        stopper = asyncio.create_task(self._pass_on(stop))
        try:
            await asyncio.gather(*(self._follow(*worker) for worker in enumerate(self._workers)))
        finally:
            stopper.cancel()

    async def _pass_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._order(b"stop\n")

    def drop(self) -> None:
        self._order(b"drop\n")

    def _order(self, line: bytes) -> None:
        for process in self._workers:
            with contextlib.suppress(ConnectionError):
                _stdin(process).write(line)

    async def _follow(self, number: int, process: asyncio.subprocess.Process) -> None:
        """Read a worker's progress lines and, at its end, its record. Raises RuntimeError when it dies early."""
        reader = _stdout(process)
        while line := await reader.readline():
            message = from_json(line)
            self._parts[number] = Counters(**{**message["counters"], "first_error": {
                name: (float(at), str(text)) for name, (at, text) in message["counters"]["first_error"].items()
            }})  # fmt: skip
            self._add_up()
            if "size" in message:
                raw = await reader.readexactly(message["size"])
                self.records.load_rows(own_rows(len(self._schedule), number, self.processes), raw)
                self.gaps.merge(LogHistogram.from_message(message["gaps"]))
                self.ttft.merge(LogHistogram.from_message(message["ttft"]))
                self.cpu_s += message["cpu_s"]
                self.max_rss_mib += message["max_rss_mib"]
                return
        raise RuntimeError("a generator process died in the middle of the run; see standard error")

    def _add_up(self) -> None:
        total = Counters()
        for part in self._parts.values():
            for name in COUNTED:
                setattr(total, name, getattr(total, name) + getattr(part, name))
            for name, (at, text) in part.first_error.items():
                if name not in total.first_error or at < total.first_error[name][0]:
                    total.first_error[name] = (at, text)
        self.counters = total

    async def close(self) -> None:
        """End the workers."""
        for process in self._workers:
            _stdin(process).close()
            await end_group(process.pid, grace_s=1)
            await process.wait()


def _stdin(process: asyncio.subprocess.Process) -> asyncio.StreamWriter:
    assert process.stdin is not None  # noqa: S101  (PIPE was asked for)
    return process.stdin


def _stdout(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    assert process.stdout is not None  # noqa: S101
    return process.stdout


def make_session(
    spec: LoadSpec, schedule: Schedule, target: Target, unit: Literal["bytes", "words"]
) -> Session:
    """Return a session of one process, or of as many as the rate needs."""
    count = min(spec.process_count, max(1, len(schedule)))
    if count == 1:
        return LocalSession(spec, schedule, target, unit)
    return WorkerSession(spec, schedule, unit, count)


def start_time(schedule: Schedule, *, margin_s: float = 0.3) -> float:
    """Return the monotonic time of due time 0, such that the first due time is a little ahead."""
    first = schedule.due_s[0] if len(schedule) else 0.0
    return monotonic() + margin_s - min(0.0, first)
