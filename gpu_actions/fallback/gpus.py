"""Which GPU the fallback may serve from, in order, and whether it fits beside the running tier: pure, from data.

Triage's choice comes first, and its rules say which faults exclude a GPU. Memory figures are GiB and MiB of NVML.
"""

from collections.abc import Collection, Mapping, Sequence

from pydantic import Field

from gpu_actions.config.host import LAST_RUNG, TierConfig
from gpu_actions.models import FallbackGpu, Frozen, Verdict, VerdictKind
from gpu_actions.tier.gpu_memory import GpuMemories, GpuMemory
from gpu_actions.triage.gpu_health import rules_out

MOST_CANDIDATES = 3
"""Each attempt may take a model's whole load time; after three GPUs the fault is not the GPU."""

FREE_PERCENT = 95.0
"""A GPU with this much free memory counts as unused if the settings do not say what the tier needs."""


class Candidate(Frozen):
    """One attempt. `gpu` is the UUID, None on a CPU host; `gpus` are all of a rung that takes several. `beside`: it fits while
    the other tier still runs. `wakes`: a standby sleeps there and is woken instead of started."""

    rung: str = LAST_RUNG
    gpu: str | None
    gpus: tuple[str, ...] = ()
    reason: str
    beside: bool
    wakes: bool = False
    note: str = Field(default="", description="the memory arithmetic, for the plan")

    @property
    def devices(self) -> str | None:
        """Return the GPUs that the tier may see, by UUID; None on the CPU."""
        return ",".join(self.gpus) or self.gpu


class Choice(Frozen):
    """The attempts in order, or the problems that leave none; warnings for people; and why rungs were passed over."""

    candidates: tuple[Candidate, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()


def choose_gpus(
    tier: TierConfig,
    memories: GpuMemories,
    verdict: Verdict | None,
    *,
    wanted: str = "auto",
    limit_percent: float,
    own_pids: Collection[int] = (),
    tp_holds_memory: bool = False,
    names: Mapping[int, str] | None = None,
    standby_on: str | None = None,
    used_by_tp: Collection[str] = (),
) -> Choice:
    """Choose up to three GPUs for a tier that takes one. `wanted` is `auto`, a UUID or an index.

    `own_pids` are the processes of both tiers: their memory is free once they stop, the memory of other processes is not.
    `tp_holds_memory`: tp runs on GPUs, so NVML must list some of its processes; if it does not, process ids cannot be compared
    and memory is not counted by process. `names` are the names of processes. A single candidate is tried twice: the second
    start is a fresh process, and transient faults are common during an incident. `standby_on` is the GPU of a sleeping standby
    (empty on the CPU): unless it is ruled out, waking it is the first attempt. `used_by_tp` are GPUs by UUID that come last:
    a standby should not stand on a GPU whose fault would take it and tp together.
    """
    if tier.gpus == 0:
        once = Candidate(
            gpu=None, reason="the tier runs on the CPU", beside=True, note="no GPU memory is needed"
        )
        return Choice(candidates=twice(_woken(once) if standby_on is not None else once))
    if not memories.gpus:
        return _by_verdict_alone(memories, verdict, wanted)
    requested = _requested(memories, wanted)
    if requested is None:
        listed = ", ".join(f"{gpu.index} = {gpu.uuid}" for gpu in memories.gpus)
        return Choice(problems=(f"there is no GPU {wanted!r} here; gpu= takes auto or one of: {listed}",))
    auto = wanted == "auto"
    first = verdict.fallback_gpu if verdict else None
    if auto and verdict is not None and first is None and verdict.verdict is not VerdictKind.UNKNOWN:
        return Choice(problems=(_nothing_in_triage(verdict),))
    faulty = {
        f.subject: f.summary for f in (verdict.findings if verdict else ()) if f.subject and rules_out(f)
    }
    counts_others = attributable(memories, own_pids, tp_holds_memory=tp_holds_memory)
    order = sorted(
        requested,
        key=lambda gpu: (
            gpu.uuid != standby_on, gpu.uuid in used_by_tp, first is None or gpu.uuid != first.uuid, -gpu.free_mib, gpu.index
        ),
    )  # fmt: skip
    candidates, refused, warnings = [], [], []
    for gpu in order:
        others = {pid: mib for pid, mib in gpu.held_mib.items() if pid not in own_pids}
        named = _name(gpu, others, names or {})
        if gpu.uuid in faulty and auto:
            refused.append(f"GPU {gpu.index} is faulty: {faulty[gpu.uuid]}")
            continue
        too_small = _too_small(gpu, tier, limit_percent, sum(others.values()) if counts_others else 0.0)
        if too_small:
            refused.append("; ".join(filter(None, (too_small, named))))
            continue
        if gpu.uuid in faulty:
            warnings.append(f"GPU {gpu.index} was requested, but: {faulty[gpu.uuid]}")
        if named:
            unknown = "" if counts_others else ", which may be tp's own: its processes are not in NVML's list"
            warnings.append(f"{named}{unknown}")
        candidate = _candidate(gpu, tier, _why(gpu, first, auto))
        candidates.append(_woken(candidate) if gpu.uuid == standby_on else candidate)
    if standby_on and not any(candidate.wakes for candidate in candidates):
        why = next(
            (one for one in refused if one.startswith(_named(memories, standby_on))),
            "another GPU was requested",
        )
        warnings.append(
            f"the standby on {_named(memories, standby_on)} is not woken: {why}; the fallback starts cold"
        )
    if not candidates:
        return Choice(problems=(f"no GPU can take the fallback: {'; '.join(refused)}",))
    if tier.memory_gib_per_gpu is None:
        warnings.append(
            "memory_gib_per_gpu of the fallback is not set, so nothing says whether the model fits a GPU"
        )
    if candidates[0].wakes:
        candidates.insert(1, _cold(candidates[0]))
    tries = twice(candidates[0]) if len(candidates) == 1 else tuple(candidates[:MOST_CANDIDATES])
    return Choice(candidates=tries, warnings=tuple(warnings))


def attributable(memories: GpuMemories, own_pids: Collection[int], *, tp_holds_memory: bool) -> bool:
    """Return False if NVML lists none of the tiers' own processes although tp runs: memory cannot be counted by process."""
    return not tp_holds_memory or any(set(gpu.pids or ()) & set(own_pids) for gpu in memories.gpus)


def twice(candidate: Candidate) -> tuple[Candidate, Candidate]:
    """Return an attempt and the same with a fresh process: transient faults are common during an incident."""
    return candidate, _cold(candidate)


def _cold(candidate: Candidate) -> Candidate:
    return candidate.model_copy(update={"reason": "once more, with a fresh process", "wakes": False})


def _woken(candidate: Candidate) -> Candidate:
    return candidate.model_copy(update={"reason": f"{candidate.reason}; its standby is woken", "wakes": True})


def _named(memories: GpuMemories, uuid: str) -> str:
    gpu = memories.by_uuid(uuid)
    return uuid if gpu is None else f"GPU {gpu.index}"


def _nothing_in_triage(verdict: Verdict) -> str:
    reasons = [finding.summary for finding in verdict.findings if rules_out(finding)]
    why = f": {'; '.join(reasons[:3])}" if reasons else ""
    return f"triage found no GPU that can serve the fallback{why}; run /triage again, or request one with gpu=INDEX"


def _by_verdict_alone(memories: GpuMemories, verdict: Verdict | None, wanted: str) -> Choice:
    why = memories.error or "NVML lists no GPU"
    chosen = verdict.fallback_gpu.uuid if verdict is not None and verdict.fallback_gpu is not None else None
    gpu = wanted if wanted.startswith("GPU-") else chosen if wanted == "auto" else None
    if gpu is None:
        problem = f"the GPUs cannot be read ({why}) and none is named: pass gpu=GPU-... or run /triage first"
        return Choice(problems=(problem,))
    candidate = Candidate(
        gpu=gpu, reason="named; NVML cannot be read", beside=False, note=f"memory unknown: {why}"
    )
    return Choice(candidates=(candidate, candidate), warnings=(f"GPU memory could not be checked: {why}",))


def _requested(memories: GpuMemories, wanted: str) -> Sequence[GpuMemory] | None:
    if wanted == "auto":
        return memories.gpus
    return [gpu for gpu in memories.gpus if wanted in (gpu.uuid, str(gpu.index))] or None


def _name(gpu: GpuMemory, held_mib: Mapping[int, float], names: Mapping[int, str]) -> str:
    """Name the processes that hold memory on a GPU, the largest first; empty if there are none."""
    rows = sorted(held_mib.items(), key=lambda row: -row[1])
    return "; ".join(
        f"process {pid}{f' ({names[pid]})' if names.get(pid) else ''} holds {mib / 1024:.0f} GiB on GPU {gpu.index}"
        for pid, mib in rows[:3]
    )


def _too_small(gpu: GpuMemory, tier: TierConfig, limit_percent: float, held_mib: float) -> str:
    """Return why the tier does not fit on a GPU, of which other processes hold `held_mib`; empty if it does."""
    need = tier.memory_gib_per_gpu
    total = gpu.total_mib / 1024
    usable = total * limit_percent / 100 - held_mib / 1024
    if need is None or need <= usable:
        return ""
    less = f" less the {held_mib / 1024:.0f} GiB of other processes" if held_mib else ""
    return (
        f"GPU {gpu.index} is too small: the fallback needs {need:g} GiB, {limit_percent:g} % of its "
        f"{total:.0f} GiB{less} are {usable:.0f}"
    )


def _why(gpu: GpuMemory, first: FallbackGpu | None, auto: bool) -> str:
    if not auto:
        return "requested"
    return first.reason if first is not None and first.uuid == gpu.uuid else "no fault was found on it"


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
