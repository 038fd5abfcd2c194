"""GPUs, their links and how they reach each other, read through NVML by a child process with a deadline.

If a call hangs on one GPU, the child is killed and another one reads the rest, so that a healthy GPU to fall back to can still
be named. The library is whatever `libnvidia-ml.so.1` the loader finds. Field names follow NVML. Each GPU lists in `unread` the
fields that could not be read, with NVML's error: the checks that need them are unknown.
"""

import contextlib
import json
import sys
import time
from typing import Any, Literal

from pydantic import Field, ValidationError

from gpu_actions.models import Frozen
from gpu_actions.snapshot.child_lines import lines_of
from gpu_actions.snapshot.collector import Collector, CollectorFailed, CollectorSkipped

CHILD = "gpu_actions.snapshot.collectors.nvml_child"
START_ALLOWANCE_S = 8.0
"""Interpreter start and import of nvidia-ml-py take 0.15 s on an idle machine; a host in trouble is not idle."""

MAX_RESTARTS = 2
NO_DRIVER = ("library_not_found", "driver_not_loaded")


RemoteKind = Literal["gpu", "switch", "npu", "unknown"]


class LinkReading(Frozen):
    """One NVLink of a GPU. Counters run since boot; first and last are a window apart."""

    index: int = Field(ge=0, le=64)
    active: bool | None = None
    remote_kind: RemoteKind | None = None
    remote_pci: str | None = Field(
        default=None, description="bus id of the remote endpoint; None if hidden (all ones in a VM)"
    )
    speed_mbps: int | None = None
    first: dict[str, int] = Field(
        default_factory=dict, description="replay, recovery, crc at the start of the window"
    )
    last: dict[str, int] = Field(default_factory=dict)

    def delta(self, counter: str) -> int | None:
        """Return the growth of a counter within the window: 0 if it was reset, None if it was not read."""
        if counter not in self.first or counter not in self.last:
            return None
        return max(0, self.last[counter] - self.first[counter])


class FabricReading(Frozen):
    """Fabric registration of a GPU. `state`: 0 not supported, 1 not started, 2 in progress, 3 completed (latched).

    Health subfields: True = fault, False = no fault, None = not reported.
    """

    state: int
    status: int = Field(default=0, description="NVML return code of the registration; 0 = success")
    degraded_bandwidth: bool | None = None
    route_recovery: bool | None = None
    route_unhealthy: bool | None = None
    access_timeout: bool | None = None
    incorrect_configuration: bool | None = None


class GpuProcess(Frozen):
    """A process that holds memory of a GPU."""

    pid: int
    memory_mib: float | None = None


class GpuSample(Frozen):
    """Readings that change from moment to moment."""

    event_reasons: int | None = Field(default=None, description="bit mask of clocks event reasons")
    temperature_c: int | None = None
    power_w: float | None = None
    sm_clock_mhz: int | None = None
    utilisation_percent: int | None = None
    pcie_generation: int | None = None
    pcie_replays: int | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = Field(default=None, description="volatile: since the driver was loaded")


class GpuReading(Frozen):
    """One GPU. If NVML returns no handle, only `error` is set."""

    index: int = Field(ge=0, le=127)
    uuid: str = ""
    name: str = ""
    pci: str = ""
    error: str | None = Field(
        default=None, description="NVML's error: gpu_is_lost, reset_required, unknown, ..."
    )
    mig: bool | None = None
    memory_total_mib: float | None = None
    memory_free_mib: float | None = None
    max_sm_clock_mhz: int | None = None
    slowdown_temperature_c: int | None = None
    power_limit_w: float | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    pcie_generation_max: int | None = None
    recovery_action: int | None = Field(
        default=None, description="NVML field 230: 0 none ... 7 system reboot"
    )
    remapped_pending: bool | None = None
    remapped_failure: bool | None = None
    remapped_uncorrectable: int | None = None
    fabric: FabricReading | None = None
    links: tuple[LinkReading, ...] = ()
    processes: tuple[GpuProcess, ...] = ()
    first: GpuSample = GpuSample()
    last: GpuSample | None = None
    unread: dict[str, str] = Field(default_factory=dict)

    @property
    def latest(self) -> GpuSample:
        """The later of the two samples."""
        return self.last if self.last is not None else self.first

    @property
    def label(self) -> str:
        """Name for people: `GPU 3`."""
        return f"GPU {self.index}"

    @property
    def subject(self) -> str:
        """Subject of findings about it: its UUID, or its label if the UUID is not known."""
        return self.uuid or self.label

    @property
    def active_links(self) -> int:
        """Number of active links."""
        return sum(link.active is True for link in self.links)


class PairReading(Frozen):
    """How two GPUs reach each other. P2P status: 0 = OK (NVML's codes); topology: 0 internal ... 50 across sockets."""

    first: int
    second: int
    nvlink_p2p: int | None = None
    read_p2p: int | None = None
    common_ancestor: int | None = None


class NvmlReading(Frozen):
    """Everything read through NVML."""

    driver_version: str = ""
    nvml_version: str = ""
    count: int | None = Field(default=None, description="GPUs that the driver enumerates")
    gpus: tuple[GpuReading, ...] = ()
    pairs: tuple[PairReading, ...] = ()
    hung_call: str | None = Field(default=None, description="the NVML call that did not return")
    hung_gpu: int | None = None
    init_error: str | None = Field(default=None, description="why NVML did not start: driver_not_loaded, ...")
    window_s: float | None = Field(default=None, description="between the two samples, measured")
    pairs_unread: str | None = None

    @property
    def whole_gpus(self) -> list[GpuReading]:
        """GPUs whose links mean something: they were read, and are not partitioned (MIG reports links as down)."""
        return [gpu for gpu in self.gpus if gpu.error is None and not gpu.mig]


class NvmlSections:
    """The child's sections so far, as a reading."""

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
        """Take one line of the child. Raises CollectorFailed for a line that is not a section."""
        try:
            record = json.loads(line)
            take = getattr(self, f"_take_{record['section']}")
            take(record)
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise CollectorFailed(
                f"the NVML child wrote an unexpected line: {type(error).__name__}: {str(error)[:160]}"
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
        """Return the reading so far."""
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
    """Return a link as of the end of the window; one that NVML no longer lists is inactive."""
    state = None if active is None else active is True
    return link.model_copy(update={"active": state, "last": counters})


async def collect_nvml(*, expect_gpus: int | None, window_s: float, stall_s: float) -> NvmlReading:
    """Read all GPUs at both ends of the window. A hung call and a missing driver are readings too.

    Raises CollectorSkipped on a host without GPUs, CollectorFailed if the child wrote nothing usable.
    """
    if expect_gpus == 0:
        raise CollectorSkipped("this host has no GPUs (hosts.gpus = 0)")
    first = NvmlSections()
    started = time.monotonic()
    await _sweep(first, window_s=window_s, stall_s=stall_s, skip=[])
    if first.hung is None:
        if expect_gpus is None and first.init_error is not None and first.init_error.startswith(NO_DRIVER):
            raise CollectorSkipped(f"no NVIDIA driver on this host: {first.init_error}")
        return first.reading()
    sections = first
    skip: list[int] = []
    while sections.hung is not None and sections.hung[1] is not None and len(skip) < MAX_RESTARTS:
        skip.append(sections.hung[1])
        sections = NvmlSections()
        left_s = max(0.2, window_s - (time.monotonic() - started))
        with contextlib.suppress(CollectorFailed):  # the first hang is the finding
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
    sections.hung = ("unknown call", None)  # its own watchdog did not fire: the deadline ended it


NVML = Collector(
    collect=lambda source: collect_nvml(
        expect_gpus=source.target.expect_gpus, window_s=source.window_s, stall_s=source.limits.nvml_stall_s
    ),
    deadline_s=lambda source: (
        (source.window_s + source.limits.nvml_stall_s + START_ALLOWANCE_S) * (1 + MAX_RESTARTS)
    ),
)
