"""Which GPU to fall back to: the healthiest that fits, by UUID, with the reason.

One GPU needs no NVLink, so a GPU with link trouble only ranks behind the others. A lost, partitioned or faulty GPU is excluded.
"""

from collections.abc import Sequence

from gpu_actions.models import FallbackGpu, Finding, Severity
from gpu_actions.snapshot.collectors.nvml import GpuReading
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.triage.gpu_health import LINK_COMPONENTS, about_gpus, why_not

HOTTER_THAN_ANY = 1000
"""Stands for a temperature that could not be read: such a GPU comes after those that are known to be cool."""


def choose_fallback_gpu(snapshot: Snapshot, findings: Sequence[Finding]) -> FallbackGpu | None:
    """Choose from the GPUs that were read. Return None if none of them works and fits."""
    nvml = snapshot.nvml
    if nvml is None or snapshot.expected.gpus == 0:
        return None
    about = about_gpus(findings)
    candidates = [
        gpu
        for gpu in nvml.gpus
        if not why_not(gpu, snapshot, about.get(gpu.subject, ())) and fits(gpu, snapshot)
    ]
    if not candidates:
        return None

    def order(gpu: GpuReading) -> tuple[int, int, int, int]:
        rows = about.get(gpu.subject, ())
        own = sum(row.component not in LINK_COMPONENTS and row.severity is not Severity.INFO for row in rows)
        links = sum(row.component in LINK_COMPONENTS for row in rows)
        celsius = gpu.latest.temperature_c
        return own, links, celsius if celsius is not None else HOTTER_THAN_ANY, gpu.index

    best = min(candidates, key=order)
    return FallbackGpu(uuid=best.uuid, index=best.index, reason=_reason(best, about, candidates, snapshot))


def available_gib(gpu: GpuReading, snapshot: Snapshot) -> float | None:
    """Return the memory available once the tier is stopped: all but what other processes hold. None if not known."""
    if gpu.memory_total_mib is None:
        return None
    tier = {process.pid for process in snapshot.ranks.processes} if snapshot.ranks is not None else None
    foreign = sum(
        process.memory_mib or 0 for process in gpu.processes if tier is not None and process.pid not in tier
    )
    return (gpu.memory_total_mib - foreign) / 1024


def fits(gpu: GpuReading, snapshot: Snapshot) -> bool:
    """Return True if the fallback tier fits into the GPU's memory, or if either is not known."""
    need, available = snapshot.expected.fallback_memory_gib, available_gib(gpu, snapshot)
    return need is None or available is None or available >= need


def _reason(
    best: GpuReading, about: dict[str, list[Finding]], candidates: list[GpuReading], snapshot: Snapshot
) -> str:
    rows = [row for row in about.get(best.subject, ()) if row.severity is not Severity.INFO]
    parts = ["no findings" if not rows else f"fewest findings: {rows[0].summary}"]
    if best.latest.temperature_c is not None and len(candidates) > 1:
        parts.append(f"{best.latest.temperature_c} C, {len(candidates)} GPUs qualify")
    elif len(candidates) == 1:
        parts.append("the only GPU that qualifies")
    need, available = snapshot.expected.fallback_memory_gib, available_gib(best, snapshot)
    if available is not None:
        parts.append(
            f"{available:.0f} GiB" + (" available" if need is None else f" available, {need:g} GiB needed")
        )
    return "; ".join(parts)
