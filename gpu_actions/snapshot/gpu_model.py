"""The NVML part of a snapshot: GPUs, their links and counters, and the relations between them.

Field names follow NVML's own words. Each GPU lists in `unread` what could not be read and why, by the name of the field
here: those checks are unknown (a missing symbol and an unsupported field alike).
"""

from typing import Literal

from pydantic import Field

from gpu_actions.models import Frozen

RemoteKind = Literal["gpu", "switch", "npu", "unknown"]


class LinkReading(Frozen):
    """One NVLink of a GPU. Counters are since boot; first and last are a window apart."""

    index: int = Field(ge=0, le=64)
    active: bool | None = None
    remote_kind: RemoteKind | None = None
    remote_pci: str | None = Field(
        default=None, description="bus id of the far end; None where hidden (all ones in a VM)"
    )
    speed_mbps: int | None = None
    first: dict[str, int] = Field(default_factory=dict, description="replay, recovery, crc at the first look")
    last: dict[str, int] = Field(default_factory=dict)

    def delta(self, counter: str) -> int | None:
        """Growth of a counter within the window; a counter that was reset gives 0, an unread one None."""
        if counter not in self.first or counter not in self.last:
            return None
        return max(0, self.last[counter] - self.first[counter])


class FabricReading(Frozen):
    """What the GPU says of its fabric. `state`: 0 not supported, 1 not started, 2 in progress, 3 completed (latched).

    Health subfields are tri-state: True = fault, False = no fault, None = the GPU does not say.
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
    """What changes from moment to moment."""

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
    """One GPU. `error` is set, and the rest is empty, when not even its handle could be had."""

    index: int = Field(ge=0, le=127)
    uuid: str = ""
    name: str = ""
    pci: str = ""
    error: str | None = Field(
        default=None, description="NVML's word: gpu_is_lost, reset_required, unknown, ..."
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
        """How people name it: `GPU 3`."""
        return f"GPU {self.index}"


class PairReading(Frozen):
    """How two GPUs reach each other. P2P status: 0 = OK (NVML's codes); topology: 0 internal ... 50 across sockets."""

    first: int
    second: int
    nvlink_p2p: int | None = None
    read_p2p: int | None = None
    common_ancestor: int | None = None


class NvmlReading(Frozen):
    """What the driver's own library said."""

    driver_version: str = ""
    nvml_version: str = ""
    count: int | None = Field(default=None, description="GPUs that the driver enumerates")
    gpus: tuple[GpuReading, ...] = ()
    pairs: tuple[PairReading, ...] = ()
    hung_call: str | None = Field(default=None, description="the NVML call that did not come back")
    hung_gpu: int | None = None
    init_error: str | None = Field(
        default=None, description="why the library gave nothing: driver_not_loaded, ..."
    )
    window_s: float | None = Field(default=None, description="between the two samples, measured")
    pairs_unread: str | None = None

    def by_uuid(self) -> dict[str, GpuReading]:
        """GPUs by UUID; those without one are left out."""
        return {gpu.uuid: gpu for gpu in self.gpus if gpu.uuid}
