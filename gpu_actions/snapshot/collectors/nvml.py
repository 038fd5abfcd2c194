"""GPUs, their links and how they reach each other, read through NVML by a child process with a deadline.

If a call hangs on one GPU, the child is killed and another one reads the rest, so that a healthy GPU to fall back to can still
be named. The library is whatever `libnvidia-ml.so.1` the loader finds. Field names follow NVML. Each GPU lists in `unread` the
fields that could not be read, with NVML's error: the checks that need them are unknown.
"""

import asyncio
import contextlib
import sys
import time
from typing import Literal

from pydantic import Field, ValidationError

from gpu_actions.models import Frozen
from gpu_actions.snapshot.child_lines import lines_of
from gpu_actions.snapshot.collector import Collector, CollectorFailed, CollectorSkipped, Window
from gpu_actions.system.proc import read_file
from gpu_actions.system.redact import redacted_head
from gpu_actions.system.wedged import MAX_WEDGED, too_many, wedged_processes

CHILD = "gpu_actions.snapshot.collectors.nvml_child"
START_ALLOWANCE_S = 8.0
"""Interpreter start and import of nvidia-ml-py take 0.15 s on an idle machine; a host in trouble is not idle."""

MAX_RESTARTS = 2
STEADY = b'"steady": true'
"""In the child's line: nothing that it read first needs a second reading."""
NO_GPUS = "no NVIDIA driver on this host"
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
        default_factory=dict,
        description="at the start of the window: replay, recovery, crc of NVLink 4; receive_errors, integrity_errors, "
        "recovered, recovery_failed, effective_errors, symbol_errors of NVLink 5; and its effective_ber, encoded",
    )
    last: dict[str, int] = Field(default_factory=dict)

    @property
    def effective_ber(self) -> float | None:
        """The bit error rate that is left after correction: NVML's bits 8 to 11 times 10 to the minus bits 0 to 7."""
        encoded = self.last.get("effective_ber", self.first.get("effective_ber"))
        return None if encoded is None else (encoded >> 8 & 0xF) * 10.0 ** -(encoded & 0xFF)

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
    """A process that holds memory of a GPU. `sm_percent`: its use of the multiprocessors within the window."""

    pid: int
    memory_mib: float | None = None
    sm_percent: float | None = None
    name: str = ""

    @property
    def label(self) -> str:
        """Name for people: `python3 (pid 4711)`."""
        return f"{self.name or 'a process of another user or container'} (pid {self.pid})"


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
    compute_mode: int | None = Field(
        default=None, description="0 default, 2 prohibited, 3 one process at a time"
    )
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
    banks_without_spare_rows: int | None = Field(
        default=None, description="memory banks whose next bad row cannot be remapped"
    )
    banks_with_few_spare_rows: int | None = None
    repair_pending: bool | None = Field(default=None, description="a channel or TPC repair waits for a reset")
    sram_threshold_exceeded: bool | None = None
    sram_uncorrected: int | None = Field(default=None, description="volatile: since the driver was loaded")
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
    steady: bool = Field(default=False, description="nothing in the first sample needs a second one")
    pairs_unread: str | None = None
    wedged: tuple[int, ...] = Field(
        default=(), description="processes that read the driver, were killed and do not end"
    )
    unfinished: bool = Field(
        default=False, description="the deadline ended the reading, though no single call hung"
    )

    @property
    def whole_gpus(self) -> list[GpuReading]:
        """GPUs whose links mean something: they were read, and are not partitioned (MIG reports links as down)."""
        return [gpu for gpu in self.gpus if gpu.error is None and not gpu.mig]


async def collect_nvml(
    *, expect_gpus: int | None, window_s: float, stall_s: float, window: Window | None = None
) -> NvmlReading:
    """Read all GPUs at both ends of the window. A hung call and a missing driver are readings too.

    `window` may end it early; it is told if no GPU needs to be observed.

    Raises CollectorSkipped on a host without GPUs, CollectorFailed if the child wrote nothing usable.
    """
    if expect_gpus == 0:
        raise CollectorSkipped("this host has no GPUs (hosts.gpus = 0)")
    started = time.monotonic()
    wedged = await asyncio.to_thread(wedged_processes)
    if too_many(wedged):
        return NvmlReading(hung_call="NVML of an earlier reading", wedged=wedged)
    first = best = await _run_child(window_s=window_s, stall_s=stall_s, skip=[], window=window)
    if expect_gpus is None and first.init_error is not None and first.init_error.startswith(NO_DRIVER):
        raise CollectorSkipped(f"{NO_GPUS}: {first.init_error}")
    skip: list[int] = []
    latest = first
    while latest.hung_gpu is not None and len(skip) < min(MAX_RESTARTS, MAX_WEDGED - 1 - len(wedged)):
        skip.append(latest.hung_gpu)
        left_s = max(0.2, window_s - (time.monotonic() - started))
        try:
            latest = await _run_child(window_s=left_s, stall_s=stall_s, skip=skip)
        except CollectorFailed:
            break  # the first hang is the finding
    if len(latest.gpus) > len(first.gpus):
        best = latest
    known = {gpu.index: gpu for gpu in first.gpus if gpu.index not in skip} | {
        gpu.index: gpu for gpu in best.gpus
    }
    gpus = tuple(known[index] for index in sorted(known))
    return best.model_copy(
        update={
            "gpus": tuple(_named(gpu) for gpu in gpus),
            "hung_call": first.hung_call,
            "hung_gpu": first.hung_gpu,
            "wedged": wedged if first.hung_call is None else await asyncio.to_thread(wedged_processes),
        }
    )


def _named(gpu: GpuReading) -> GpuReading:
    """Return the reading with the names of its processes, where this pid namespace has them."""
    named = tuple(
        process.model_copy(
            update={
                "name": redacted_head(read_file(process.pid, "comm").decode(errors="replace").strip(), 64)
            }
        )
        for process in gpu.processes
    )
    return gpu.model_copy(update={"processes": named})


async def _run_child(
    *, window_s: float, stall_s: float, skip: list[int], window: Window | None = None
) -> NvmlReading:
    """Run the child once and return its last reading. Raises CollectorFailed if it wrote none."""
    argv = [sys.executable, "-m", CHILD, "--window-s", f"{window_s:.3f}", "--stall-s", f"{stall_s:.3f}"]
    if window is not None:
        argv.append("--until-eof")
    for index in skip:
        argv += ["--skip", str(index)]
    errors: list[str] = []
    end = None if window is None else window.over
    last = b""
    stream = lines_of(argv, deadline_s=window_s + stall_s + START_ALLOWANCE_S, errors=errors, end=end)
    async with contextlib.aclosing(stream) as lines:
        async for line in lines:
            last = line if line.endswith(b"\n") else last
            if window is not None and STEADY in last:
                window.needs_no_more("nvml")
    if not last:
        reason = errors[0].splitlines()[-1] if errors else "it wrote nothing"
        raise CollectorFailed(redacted_head(f"the NVML child ended before its first answer: {reason}", 300))
    try:
        reading = NvmlReading.model_validate_json(last)
    except ValidationError as error:
        raise CollectorFailed(
            f"the NVML child wrote an unexpected line: {redacted_head(str(error), 160)}"
        ) from error
    if reading.window_s is None and reading.init_error is None and reading.hung_call is None:
        # Its own watchdog, which names a call that hangs, did not fire: it was slow, and the deadline ended it.
        return reading.model_copy(update={"unfinished": True})
    return reading


NVML = Collector(
    collect=lambda source: collect_nvml(
        expect_gpus=source.target.expect_gpus,
        window_s=source.window_s,
        stall_s=source.limits.nvml_stall_s,
        window=source.window,
    ),
    observes=True,
    deadline_s=lambda source: (
        (source.window_s + source.limits.nvml_stall_s + START_ALLOWANCE_S) * (1 + MAX_RESTARTS)
    ),
)
