"""What the GPUs of a tier do while its requests get no token: for a snapshot that does not read NVML anyway.

A monitor checks for hangs every few seconds and cannot afford NVML's child each time, so it is started only when requests are
stuck.
"""

from gpu_actions.models import Frozen
from gpu_actions.snapshot.collector import Collector, CollectorSkipped, Source
from gpu_actions.snapshot.collectors.nvml import GpuReading, collect_nvml

WINDOW_S = 0.5


class ActivityReading(Frozen):
    """The GPUs, read over half a second."""

    gpus: tuple[GpuReading, ...] = ()


async def collect_activity(source: Source) -> ActivityReading:
    """Read the GPUs. Raises CollectorSkipped while tokens are generated, or if NVML is read anyway; else as `collect_nvml`."""
    if source.reads_nvml:
        raise CollectorSkipped("NVML is read as a whole")
    if not source.is_stuck():
        raise CollectorSkipped("requests are not stuck")
    reading = await collect_nvml(
        expect_gpus=source.target.expect_gpus, window_s=WINDOW_S, stall_s=source.limits.nvml_stall_s
    )
    return ActivityReading(gpus=reading.gpus)


ACTIVITY = Collector(
    collect=collect_activity,
    deadline_s=lambda source: WINDOW_S + source.limits.nvml_stall_s + 2,
    after=("engine", "completion", "ranks"),
)
