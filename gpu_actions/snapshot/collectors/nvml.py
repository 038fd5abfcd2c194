"""GPUs, links and their relations, read through NVML by a child process with a deadline.

When a call hangs on one GPU the child is ended and another one reads the rest, so that a healthy GPU to fall back on can still
be named. The library is whatever `libnvidia-ml.so.1` the loader finds.
"""

import contextlib
import json
import sys
import time
from typing import Any

from pydantic import ValidationError

from gpu_actions.snapshot.collectors import CollectorFailed, CollectorSkipped
from gpu_actions.snapshot.collectors.child_lines import lines_of
from gpu_actions.snapshot.gpu_model import GpuReading, GpuSample, LinkReading, NvmlReading, PairReading

CHILD = "gpu_actions.snapshot.collectors.nvml_child"
START_ALLOWANCE_S = 8.0
"""Interpreter start and import of nvidia-ml-py take 0.15 s on an idle machine; a host in trouble is not idle."""

MAX_RESTARTS = 2
NO_DRIVER = ("library_not_found", "driver_not_loaded")


class NvmlSections:
    """Gathers the child's sections into a reading, whatever of them arrived."""

    def __init__(self) -> None:
        self.system: dict[str, Any] = {}
        self.gpus: dict[int, GpuReading] = {}
        self.pairs: tuple[PairReading, ...] = ()
        self.pairs_unread: str | None = None
        self.init_error: str | None = None
        self.hung: tuple[str, int | None] | None = None
        self.window_s: float | None = None
        self.done = False

    def feed(self, line: bytes) -> None:
        """Take one line. Raises CollectorFailed for one that is not a section: then the child is not ours."""
        try:
            record = json.loads(line)
            take = getattr(self, f"_take_{record['section']}")
            take(record)
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise CollectorFailed(
                f"the NVML child wrote something unexpected: {type(error).__name__}: {str(error)[:160]}"
            ) from error

    def _take_system(self, record: dict[str, Any]) -> None:
        self.system = {key: record[key] for key in ("count", "driver_version", "nvml_version")}

    def _take_init_error(self, record: dict[str, Any]) -> None:
        self.init_error = f"{record['word']} ({record['call']})"
        self.done = True

    def _take_gpu(self, record: dict[str, Any]) -> None:
        gpu = GpuReading.model_validate(record["gpu"])
        self.gpus[gpu.index] = gpu

    def _take_pairs(self, record: dict[str, Any]) -> None:
        self.pairs = tuple(PairReading.model_validate(pair) for pair in record["pairs"])
        self.pairs_unread = record["unread"]

    def _take_last(self, record: dict[str, Any]) -> None:
        gpu = self.gpus[record["index"]]
        update: dict[str, Any] = {"unread": {**gpu.unread, **record["unread"]}}
        if "error" in record:
            update["error"] = record["error"]
        else:
            update["last"] = GpuSample.model_validate(record["sample"])
            update["links"] = tuple(
                _later(
                    link, record["active"].get(str(link.index)), record["counters"].get(str(link.index), {})
                )
                for link in gpu.links
            )
        self.gpus[gpu.index] = gpu.model_copy(update=update)

    def _take_hung(self, record: dict[str, Any]) -> None:
        self.hung = (record["call"], record["gpu"])

    def _take_done(self, record: dict[str, Any]) -> None:
        self.window_s, self.done = record["window_s"], True

    def reading(self) -> NvmlReading:
        """What is known by now."""
        call, gpu = self.hung or (None, None)
        return NvmlReading(
            **self.system,
            gpus=tuple(self.gpus[index] for index in sorted(self.gpus)),
            pairs=self.pairs,
            pairs_unread=self.pairs_unread,
            init_error=self.init_error,
            hung_call=call,
            hung_gpu=gpu,
            window_s=self.window_s,
        )


def _later(link: LinkReading, active: Any, counters: dict[str, int]) -> LinkReading:
    """A link after the second look: its later state counts; one that ended its answers is inactive."""
    state = None if active is None else active is True
    return link.model_copy(update={"active": state, "last": counters})


async def collect_nvml(*, expect_gpus: int | None, window_s: float, stall_s: float) -> NvmlReading:
    """Sweep all GPUs twice over the window. A hung call and a missing driver are readings too.

    Raises CollectorSkipped on a host that declares no GPUs, CollectorFailed when the child gave nothing that can be used.
    """
    if expect_gpus == 0:
        raise CollectorSkipped("this host declares no GPUs")
    first = NvmlSections()
    started = time.monotonic()
    await _sweep(first, window_s=window_s, stall_s=stall_s, skip=[])
    if first.hung is None:
        if expect_gpus is None and first.init_error is not None and first.init_error.startswith(NO_DRIVER):
            raise CollectorSkipped(f"no NVIDIA driver here: {first.init_error}")
        return first.reading()
    sections = first
    skip: list[int] = []
    while sections.hung is not None and sections.hung[1] is not None and len(skip) < MAX_RESTARTS:
        skip.append(sections.hung[1])
        sections = NvmlSections()
        left_s = max(0.2, window_s - (time.monotonic() - started))
        with contextlib.suppress(
            CollectorFailed
        ):  # the first hang is the finding, whatever the second child says
            await _sweep(sections, window_s=left_s, stall_s=stall_s, skip=skip)
    best = sections if len(sections.gpus) > len(first.gpus) else first
    for index, gpu in first.gpus.items():
        if index not in skip:
            best.gpus.setdefault(index, gpu)
    best.hung = first.hung
    return best.reading()


async def _sweep(sections: NvmlSections, *, window_s: float, stall_s: float, skip: list[int]) -> None:
    argv = [sys.executable, "-m", CHILD, "--window-s", f"{window_s:.3f}", "--stall-s", f"{stall_s:.3f}"]
    for index in skip:
        argv += ["--skip", str(index)]
    errors: list[str] = []
    stream = lines_of(argv, deadline_s=window_s + stall_s + START_ALLOWANCE_S, errors=errors)
    async with contextlib.aclosing(stream) as lines:
        async for line in lines:
            sections.feed(line)
    if sections.done or sections.hung is not None:
        return
    if not sections.system:
        last = errors[0].splitlines()[-1] if errors else "it wrote nothing"
        raise CollectorFailed(f"the NVML child ended before its first answer: {last}"[:300])
    sections.hung = (
        "unknown call",
        None,
    )  # it stood still without its own watch noticing: ended at our deadline
