"""Which GPU to fall back on: the healthiest that fits, by UUID, with the reason.

One GPU needs no NVLink, so a GPU with link trouble is only put behind the others; a lost, partitioned, faulty one is out.
"""

from collections.abc import Sequence

from gpu_actions.models import FallbackGpu, Finding, Severity
from gpu_actions.snapshot.collectors.nvml import GpuReading
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.triage.checks.gpus import name_of

LINK_COMPONENTS = ("nvlink", "fabric", "pcie")
NOT_BY_ITSELF = ("gpu.ok", "gpu.memory_held", "kernel_log.application")


def choose_fallback_gpu(snapshot: Snapshot, findings: Sequence[Finding]) -> FallbackGpu | None:
    """Choose from the GPUs that were read. None where there is none that works and fits."""
    nvml = snapshot.nvml
    if nvml is None or snapshot.expected.gpus == 0:
        return None
    about: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.subject and finding.id not in NOT_BY_ITSELF and finding.severity is not Severity.OK:
            about.setdefault(finding.subject, []).append(finding)
    candidates = [
        gpu
        for gpu in nvml.gpus
        if gpu.error is None
        and gpu.uuid
        and not gpu.mig
        and gpu.index != nvml.hung_gpu
        and not any(_rules_out(finding) for finding in about.get(name_of(gpu), ()))
        and fits(gpu, snapshot)
    ]
    if not candidates:
        return None

    def order(gpu: GpuReading) -> tuple[int, int, int, int]:
        rows = about.get(name_of(gpu), ())
        own = sum(row.component not in LINK_COMPONENTS and row.severity is not Severity.INFO for row in rows)
        links = sum(row.component in LINK_COMPONENTS for row in rows)
        return own, links, gpu.latest.temperature_c or 0, gpu.index

    best = min(candidates, key=order)
    return FallbackGpu(uuid=best.uuid, index=best.index, reason=_reason(best, about, candidates, snapshot))


def _rules_out(finding: Finding) -> bool:
    return (finding.component not in LINK_COMPONENTS and finding.severity is Severity.CRITICAL) or (
        finding.id in ("gpu.row_remap_pending", "gpu.unread")
    )


def available_gib(gpu: GpuReading, snapshot: Snapshot) -> float | None:
    """Memory that is there once the tier is stopped: all of it but what other processes hold. None when not known."""
    if gpu.memory_total_mib is None:
        return None
    tier = {process.pid for process in snapshot.ranks.processes} if snapshot.ranks is not None else None
    foreign = sum(
        process.memory_mib or 0 for process in gpu.processes if tier is not None and process.pid not in tier
    )
    return (gpu.memory_total_mib - foreign) / 1024


def fits(gpu: GpuReading, snapshot: Snapshot) -> bool:
    """Whether the fallback tier's memory fits; unknown needs or sizes do not rule a GPU out."""
    need, there = snapshot.expected.fallback_memory_gib, available_gib(gpu, snapshot)
    return need is None or there is None or there >= need


def _reason(
    best: GpuReading, about: dict[str, list[Finding]], candidates: list[GpuReading], snapshot: Snapshot
) -> str:
    rows = [row for row in about.get(name_of(best), ()) if row.severity is not Severity.INFO]
    parts = ["no finding on it" if not rows else f"the least: {rows[0].summary}"]
    if best.latest.temperature_c is not None and len(candidates) > 1:
        parts.append(f"{best.latest.temperature_c} C, {len(candidates)} GPUs would do")
    elif len(candidates) == 1:
        parts.append("the only one that would do")
    need, there = snapshot.expected.fallback_memory_gib, available_gib(best, snapshot)
    if there is not None:
        parts.append(f"{there:.0f} GiB" + ("" if need is None else f" for the {need:g} GiB it needs"))
    return "; ".join(parts)
