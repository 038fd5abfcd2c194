"""Carries the load out: in this process, or spread over several generator processes, behind one small interface.

Workers get the spec on standard input and make the same schedule from the same seed; each sends every n-th request. All
processes of a host share the monotonic clock, so one start time holds for all.
"""

import asyncio
import contextlib
import resource
import sys
from dataclasses import fields
from time import monotonic
from typing import Literal, Protocol

from gpu_actions.loadtest.generator import Counters, Generator, own_rows
from gpu_actions.loadtest.preflight import prompt_maker
from gpu_actions.loadtest.records import LogHistogram, Records
from gpu_actions.loadtest.schedule import Schedule
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import Target, decode_json, encode_json
from gpu_actions.system.processes import child_environment, end_group

WORKER_READY_TIMEOUT_S = 60
WORKER_LINE_LIMIT = 1024 * 1024
COUNTED = tuple(field.name for field in fields(Counters) if field.name != "first_error")


class Session(Protocol):
    """A load under way. `counters` and `ttft` are up to date to about a second."""

    counters: Counters
    ttft: LogHistogram
    gaps: LogHistogram
    records: Records
    cpu_s: float
    max_rss_mib: float

    async def prepare(self) -> None: ...

    async def run(self, start_at: float, stop: asyncio.Event) -> None:
        """Send and drain. Complete records afterwards, also when `stop` was set."""

    async def close(self) -> None: ...


def usage_of_this_process() -> tuple[float, float]:
    """CPU seconds (user and system) and the highest resident memory in MiB, so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


class LocalSession:
    """The load from this process's own event loop."""

    def __init__(
        self, spec: LoadSpec, schedule: Schedule, target: Target, unit: Literal["bytes", "words"]
    ) -> None:
        self._drain_s = spec.drain_limit_s
        self._generator = Generator(spec, schedule, range(len(schedule)), target, prompt_maker(spec, unit))
        self.counters = self._generator.counters
        self.ttft = self._generator.ttft
        self.gaps = self._generator.gaps
        self.records = self._generator.records
        self.cpu_s = 0.0
        self.max_rss_mib = 0.0

    async def prepare(self) -> None:
        """Nothing to start."""

    async def run(self, start_at: float, stop: asyncio.Event) -> None:
        before, _ = usage_of_this_process()
        try:
            await self._generator.run(start_at, stop, drain_s=self._drain_s)
        finally:
            after, self.max_rss_mib = usage_of_this_process()
            self.cpu_s = after - before

    async def close(self) -> None:
        """Nothing to end."""


class WorkerSession:
    """The load from several processes of their own."""

    def __init__(
        self, spec: LoadSpec, schedule: Schedule, unit: Literal["bytes", "words"], processes: int
    ) -> None:
        self._spec = spec
        self._schedule = schedule
        self._unit = unit
        self._count = processes
        self._workers: list[asyncio.subprocess.Process] = []
        self._parts: dict[int, Counters] = {}
        self.counters = Counters()
        self.ttft = LogHistogram()
        self.gaps = LogHistogram()
        self.records = Records(len(schedule))
        self.cpu_s = 0.0
        self.max_rss_mib = 0.0

    async def prepare(self) -> None:
        """Start the workers and wait until each has made its schedule. Raises RuntimeError when one does not come up."""
        document = self._spec.model_dump(mode="json", exclude={"api_key"})
        document["api_key"] = self._spec.api_key.get_secret_value() if self._spec.api_key else None
        for number in range(self._count):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gpu_actions.loadtest.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=child_environment(),
                start_new_session=True,
                limit=WORKER_LINE_LIMIT,
            )
            self._workers.append(process)
            job = {"spec": document, "unit": self._unit, "worker": number, "workers": self._count}
            _stdin(process).write(encode_json(job) + b"\n")
        for process in self._workers:
            async with asyncio.timeout(WORKER_READY_TIMEOUT_S):
                line = await _stdout(process).readline()
            if line != b"ready\n":
                raise RuntimeError(
                    f"a generator process did not come up ({line[:200]!r}); see standard error"
                )

    async def run(self, start_at: float, stop: asyncio.Event) -> None:
        for process in self._workers:
            _stdin(process).write(b"start %r\n" % start_at)
        stopper = asyncio.get_running_loop().create_task(self._pass_on(stop))
        try:
            await asyncio.gather(
                *(self._follow(number, process) for number, process in enumerate(self._workers))
            )
        finally:
            stopper.cancel()

    async def _pass_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        for process in self._workers:
            with contextlib.suppress(ConnectionError):
                _stdin(process).write(b"stop\n")

    async def _follow(self, number: int, process: asyncio.subprocess.Process) -> None:
        """Read a worker's progress lines, and at its end its record. Raises RuntimeError when it dies on the way."""
        reader = _stdout(process)
        while line := await reader.readline():
            message = decode_json(line)
            self._parts[number] = Counters(**{**message["counters"], "first_error": {
                name: (float(at), str(text)) for name, (at, text) in message["counters"]["first_error"].items()
            }})  # fmt: skip
            self._add_up()
            if "size" in message:
                raw = await reader.readexactly(message["size"])
                self.records.load_rows(own_rows(len(self._schedule), number, self._count), raw)
                for histogram, name in ((self.gaps, "gaps"), (self.ttft, "ttft")):
                    histogram.merge(histogram_from(message[name]))
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
        """End the workers, whatever they do."""
        for process in self._workers:
            _stdin(process).close()
            await end_group(process.pid, grace_s=1)
            await process.wait()


def histogram_from(message: dict[str, object]) -> LogHistogram:
    """Read a histogram back from a worker's message."""
    histogram = LogHistogram()
    for position, count in message["bins"]:  # type: ignore[attr-defined]
        histogram.bins[position] = count
    histogram.count = int(message["count"])  # type: ignore[call-overload]
    histogram.sum_s = float(message["sum_s"])  # type: ignore[arg-type]
    histogram.max_s = float(message["max_s"])  # type: ignore[arg-type]
    return histogram


def _stdin(process: asyncio.subprocess.Process) -> asyncio.StreamWriter:
    assert process.stdin is not None  # noqa: S101  (PIPE was asked for)
    return process.stdin


def _stdout(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    assert process.stdout is not None  # noqa: S101
    return process.stdout


def make_session(
    spec: LoadSpec, schedule: Schedule, target: Target, unit: Literal["bytes", "words"]
) -> "LocalSession | WorkerSession":
    """Give a session of one process, or of as many as the rate asks for."""
    count = min(spec.process_count, max(1, len(schedule)))
    if count == 1:
        return LocalSession(spec, schedule, target, unit)
    return WorkerSession(spec, schedule, unit, count)


def start_time(schedule: Schedule, *, margin_s: float = 0.3) -> float:
    """The monotonic time of due time 0, such that the first due time lies a little ahead."""
    first = schedule.due_s[0] if len(schedule) else 0.0
    return monotonic() + margin_s - min(0.0, first)
