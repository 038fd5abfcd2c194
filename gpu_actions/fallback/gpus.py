"""Which GPU the fallback may serve from, in order, and whether it fits beside the running tier: pure, from data.

Triage's choice comes first; a GPU that a critical finding names is never taken. Memory figures are GiB and MiB of NVML.
"""

from collections.abc import Sequence

from pydantic import Field

from gpu_actions.config.host import TierConfig
from gpu_actions.models import Frozen, Severity, Verdict
from gpu_actions.tier.gpu_memory import GpuMemories, GpuMemory

MOST_CANDIDATES = 3
"""Each try may take a model's whole load time; after three GPUs the fault is not the GPU."""

FREE_PERCENT = 95.0
"""A GPU with this much free memory is taken for unused when the tier's own need is not in the settings."""


class Candidate(Frozen):
    """One try. `gpu` is the UUID, None on a CPU host. `beside`: it fits while the other tier still runs."""

    gpu: str | None
    reason: str
    beside: bool
    note: str = Field(default="", description="the memory arithmetic, for the plan")


class Choice(Frozen):
    """The tries in order, or the problems that leave none; and what a person should know."""

    candidates: tuple[Candidate, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def choose_gpus(
    tier: TierConfig,
    memories: GpuMemories,
    verdict: Verdict | None,
    *,
    wanted: str = "auto",
    limit_percent: float,
) -> Choice:
    """Choose up to three GPUs for a tier that takes one. `wanted` is `auto`, a UUID or an index.

    A single candidate is tried twice: the second start is a fresh process, and transient faults are common at this hour.
    """
    if tier.gpus == 0:
        once = Candidate(
            gpu=None, reason="the tier runs on the CPU", beside=True, note="no GPU memory is needed"
        )
        return Choice(candidates=(once, once.model_copy(update={"reason": "once more, a fresh process"})))
    if not memories.gpus:
        return _by_verdict_alone(memories, verdict, wanted)
    named = _named(memories, wanted)
    if named is None:
        listed = ", ".join(f"{gpu.index} = {gpu.uuid}" for gpu in memories.gpus)
        return Choice(problems=(f"there is no GPU {wanted!r} here; gpu= takes auto or one of: {listed}",))
    sick = {
        f.subject: f.summary for f in (verdict.findings if verdict else ()) if f.severity is Severity.CRITICAL
    }
    first = verdict.fallback_gpu if verdict else None
    order = sorted(named, key=lambda gpu: (first is None or gpu.uuid != first.uuid, -gpu.free_mib, gpu.index))
    candidates, refused = [], []
    for gpu in order:
        if gpu.uuid in sick and wanted == "auto":
            refused.append(f"GPU {gpu.index} is sick: {sick[gpu.uuid]}")
        elif (too_small := _too_small(gpu, tier, limit_percent)) is not None:
            refused.append(too_small)
        else:
            reason = (
                first.reason if first is not None and first.uuid == gpu.uuid else "no fault was found on it"
            )
            candidates.append(_candidate(gpu, tier, "asked for" if wanted != "auto" else reason))
    if not candidates:
        return Choice(problems=(f"no GPU can take the fallback: {'; '.join(refused)}",))
    warnings = [
        f"GPU {gpu.index} was asked for, but: {sick[gpu.uuid]}"
        for gpu in named
        if gpu.uuid in sick and wanted != "auto"
    ]
    if tier.memory_gib_per_gpu is None:
        warnings.append(
            "memory_gib_per_gpu of the fallback is not set, so nothing says whether the model fits a GPU"
        )
    if len(candidates) == 1:
        candidates.append(candidates[0].model_copy(update={"reason": "once more, a fresh process"}))
    return Choice(candidates=tuple(candidates[:MOST_CANDIDATES]), warnings=tuple(warnings))


def _by_verdict_alone(memories: GpuMemories, verdict: Verdict | None, wanted: str) -> Choice:
    why = memories.error or "NVML lists no GPU"
    chosen = verdict.fallback_gpu.uuid if verdict is not None and verdict.fallback_gpu is not None else None
    gpu = wanted if wanted.startswith("GPU-") else chosen if wanted == "auto" else None
    if gpu is None:
        return Choice(
            problems=(
                f"the GPUs cannot be read ({why}) and none is named: give gpu=GPU-... or run /triage first",
            )
        )
    candidate = Candidate(
        gpu=gpu, reason="named; NVML cannot be read", beside=False, note=f"memory unknown: {why}"
    )
    return Choice(candidates=(candidate, candidate), warnings=(f"GPU memory could not be checked: {why}",))


def _named(memories: GpuMemories, wanted: str) -> Sequence[GpuMemory] | None:
    if wanted == "auto":
        return memories.gpus
    return [gpu for gpu in memories.gpus if wanted in (gpu.uuid, str(gpu.index))] or None


def _too_small(gpu: GpuMemory, tier: TierConfig, limit_percent: float) -> str | None:
    need = tier.memory_gib_per_gpu
    usable = gpu.total_mib / 1024 * limit_percent / 100
    if need is None or need <= usable:
        return None
    return (
        f"GPU {gpu.index} is too small: the fallback needs {need:g} GiB, {limit_percent:g} % of its "
        f"{gpu.total_mib / 1024:.0f} GiB are {usable:.0f}"
    )


def _candidate(gpu: GpuMemory, tier: TierConfig, reason: str) -> Candidate:
    free_gib, need = gpu.free_mib / 1024, tier.memory_gib_per_gpu
    unused = gpu.total_mib > 0 and 100 * gpu.free_mib / gpu.total_mib >= FREE_PERCENT
    beside = unused if need is None else free_gib >= need
    fits = "fits beside the running tier" if beside else "fits only after tp is stopped"
    needs = "needs an unknown amount" if need is None else f"needs {need:g} GiB"
    return Candidate(
        gpu=gpu.uuid,
        reason=f"GPU {gpu.index}: {reason}",
        beside=beside,
        note=f"{needs}, {free_gib:.0f} GiB free: {fits}",
    )
