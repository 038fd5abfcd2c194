"""What the processors of a tier do (work, spin or nothing), and who else uses its GPUs. Pure, from a snapshot's figures.

Utilisation alone deceives: a rank that waits in NCCL shows 100 %. Power tells it from work: measured on an H200, a long
prefill takes 233 to 370 W at 26 to 71 % utilisation, a stopped rank 122 W at 0 %.
"""

from collections.abc import Collection, Sequence

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.serving.condition import Activity
from gpu_actions.snapshot.collectors.nvml import GpuProcess, GpuReading

SPINNING_PERCENT = 90
WORKING_CPU = 0.2
"""Share of a core that a rank uses at least while it computes, also on a machine with more work than cores."""

STRANGER_PERCENT = 5
"""A stranger with this share of a GPU makes its power useless as evidence about the tier."""


DRIVER_SERVICES = ("nvidia-cuda-mps", "nv-hostengine", "nvidia-persiste")
"""Names (15 characters, as the kernel has them) of services of the driver: MPS runs the kernels of its clients."""


def strangers_of(gpu: GpuReading, own: Collection[int]) -> list[GpuProcess]:
    """Return the processes on a GPU that are not the tier's, the busiest first."""
    others = [row for row in gpu.processes if row.pid not in own and not row.name.startswith(DRIVER_SERVICES)]
    return sorted(others, key=lambda one: (-(one.sm_percent or 0), -(one.memory_mib or 0)))


def gpus_of_tier(gpus: Sequence[GpuReading], own: Collection[int]) -> list[GpuReading]:
    """Return the GPUs on which the tier has a process. Empty if its process ids cannot be compared with NVML's."""
    return [gpu for gpu in gpus if any(process.pid in own for process in gpu.processes)]


def gpu_activity(gpus: Sequence[GpuReading], own: Collection[int], limits: TriageThresholds) -> Activity:
    """Judge the GPUs of the tier whose processes are `own`. One GPU at work is enough: pipeline stages take turns."""
    found = {_of_gpu(gpu, own, limits) for gpu in gpus_of_tier(gpus, own)}
    if Activity.WORKING in found:
        return Activity.WORKING
    if not found or Activity.UNKNOWN in found:
        return Activity.UNKNOWN
    return Activity.SPINNING if Activity.SPINNING in found else Activity.IDLE


def _of_gpu(gpu: GpuReading, own: Collection[int], limits: TriageThresholds) -> Activity:
    sample = gpu.latest
    if gpu.error is not None or sample.utilisation_percent is None:
        return Activity.UNKNOWN
    shares = [one.sm_percent for one in strangers_of(gpu, own)]
    if any(share is None or share >= STRANGER_PERCENT for share in shares):
        mine = [one.sm_percent for one in gpu.processes if one.pid in own]
        return (
            Activity.IDLE
            if mine and not any(share is None or share > 0 for share in mine)
            else Activity.UNKNOWN
        )
    if sample.utilisation_percent == 0:
        return Activity.IDLE
    if sample.power_w is None or gpu.power_limit_w is None:
        return Activity.UNKNOWN
    if sample.power_w >= limits.working_power_ratio * gpu.power_limit_w:
        return Activity.WORKING
    return Activity.SPINNING if sample.utilisation_percent >= SPINNING_PERCENT else Activity.UNKNOWN


def cpu_activity(shares: Sequence[float | None], limits: TriageThresholds) -> Activity:
    """Judge the ranks of a tier without GPUs by their shares of a core. They compute in step: one idle rank holds up all."""
    known = [share for share in shares if share is not None]
    if not known or len(known) < len(shares):
        return Activity.UNKNOWN
    if min(known) < limits.idle_cpu_ratio:
        return Activity.IDLE
    return Activity.WORKING if min(known) >= WORKING_CPU else Activity.UNKNOWN
