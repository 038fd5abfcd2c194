"""Which rung of the fallback ladder today's GPUs can carry, on which of them, and why each rung above was passed over: pure.

A rung takes GPUs that triage does not rule out, that have room for it, and that all reach each other over NVLink where the rung
needs that. Of several such sets the one with the fewest findings and the most free memory is taken.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from gpu_actions.config.host import LAST_RUNG, Rung
from gpu_actions.fallback.gpus import Candidate, Choice, twice
from gpu_actions.models import Frozen, Verdict
from gpu_actions.tier.gpu_memory import GpuMemories, GpuMemory
from gpu_actions.triage.gpu_health import rules_out

NAMED = 3
"""A reason names at most this many GPUs one by one."""


class GpuState(Frozen):
    """One GPU as the choice sees it. `ruled_out` says why it cannot serve, `reaches` are the GPUs on the other ends of NVLink.

    `usable_gib` is what a fallback may take once tp has stopped, `free_gib` what is free now.
    """

    index: int
    uuid: str
    usable_gib: float
    free_gib: float
    ruled_out: str = ""
    findings: int = 0
    reaches: frozenset[int] = frozenset()


class Need(NamedTuple):
    """What a rung needs."""

    name: str
    gpus: int
    memory_gib_per_gpu: float | None = None
    needs_nvlink: bool = True


class Pick(Frozen):
    """The GPUs for a rung, or why there are none (`passed_over`). `beside`: they have room while tp still runs."""

    rung: str
    gpus: tuple[GpuState, ...] = ()
    passed_over: str = ""
    note: str = ""
    beside: bool = True

    @property
    def carried(self) -> bool:
        return not self.passed_over


def gpu_states(
    memories: GpuMemories,
    verdict: Verdict | None,
    *,
    limit_percent: float,
    own_pids: Collection[int] = (),
    count_others: bool = True,
) -> tuple[GpuState, ...]:
    """Return every GPU that NVML lists now, with what the verdict says of it. `own_pids` are the processes of the tiers: their
    memory is free once they stop. Without `count_others` the memory of other processes does not count: it may be tp's."""
    known = {gpu.uuid: gpu for gpu in verdict.gpus} if verdict is not None else {}
    faulty = {row.subject: row.summary for row in (verdict.findings if verdict else ()) if rules_out(row)}

    def state(gpu: GpuMemory) -> GpuState:
        health = known.get(gpu.uuid)
        others = sum(mib for pid, mib in gpu.held_mib.items() if pid not in own_pids) if count_others else 0.0
        return GpuState(
            index=gpu.index,
            uuid=gpu.uuid,
            usable_gib=(gpu.total_mib * limit_percent / 100 - others) / 1024,
            free_gib=gpu.free_mib / 1024,
            ruled_out=(health.ruled_out if health else "") or faulty.get(gpu.uuid, ""),
            findings=health.findings if health else 0,
            reaches=frozenset(health.reaches if health else ()),
        )

    return tuple(state(gpu) for gpu in memories.gpus)


def pick_gpus(need: Need, gpus: Sequence[GpuState]) -> Pick:
    """Choose the GPUs of one rung, or say in one line why today's GPUs cannot carry it."""
    if need.gpus == 0:
        return Pick(rung=need.name, note="it runs on the CPU")
    well = [gpu for gpu in gpus if not gpu.ruled_out]
    if len(well) < need.gpus:
        out = _listed(f"GPU {gpu.index}: {gpu.ruled_out}" for gpu in gpus if gpu.ruled_out)
        return _passed(need, f"{len(well)} of {len(gpus)} GPUs can serve", out)
    gib = need.memory_gib_per_gpu
    roomy = [gpu for gpu in well if gib is None or gpu.usable_gib >= gib]
    if len(roomy) < need.gpus:
        small = _listed(f"GPU {gpu.index} has {gpu.usable_gib:.0f}" for gpu in well if gpu not in roomy)
        enough = f"{len(roomy)} of {len(gpus)} GPUs can serve and have {gib:g} GiB for it"
        return _passed(need, enough, small)
    roomy.sort(key=lambda gpu: (_tight(gpu, gib), gpu.findings, gpu.index))
    chosen = next(_connected(roomy, need.gpus), None)
    linked = "" if need.gpus == 1 else ", each linked to each other one by NVLink"
    if chosen is None and need.needs_nvlink:
        largest = _largest(roomy, below=need.gpus)
        named = f"GPUs {', '.join(str(gpu.index) for gpu in largest)}" if len(largest) > 1 else "none"
        return _passed(
            need, "too few of them are linked to each other by NVLink", f"the largest set: {named}"
        )
    if chosen is None:
        chosen, linked = tuple(roomy[: need.gpus]), ", over PCIe"
    return Pick(
        rung=need.name,
        gpus=tuple(sorted(chosen, key=lambda gpu: gpu.index)),
        beside=not any(_tight(gpu, gib) for gpu in chosen),
        note=_note(chosen, gib, linked),
    )


def pick_rungs(ladder: Iterable[Need], gpus: Sequence[GpuState]) -> tuple[Pick, ...]:
    """Return the GPUs of every rung, or why it is passed over, in the order of the ladder. The first carried one is taken."""
    return tuple(pick_gpus(need, gpus) for need in ladder)


def needs_of(ladder: Iterable[Rung]) -> tuple[Need, ...]:
    """Return what the rungs of the settings need."""
    return tuple(Need(one.name, one.gpus, one.memory_gib_per_gpu, one.needs_nvlink) for one in ladder)


def with_rungs(
    last: Choice,
    picks: Sequence[Pick],
    *,
    wanted: str = "",
    blocked: Mapping[str, str] | None = None,
    standby_is_ready: bool = False,
) -> Choice:
    """Put the rungs that can be carried before the attempts of the last rung, and say why each other one is passed over.

    `wanted` begins with this rung, and is refused if it cannot be carried. `blocked` says by rung why it cannot start now.
    A standby that is ready comes first, because it serves within seconds; a rung by name leaves it out.
    """
    why = {pick.rung: (blocked or {}).get(pick.rung, "") or pick.passed_over for pick in picks}
    last_problem = (blocked or {}).get(LAST_RUNG, "") or "; ".join(last.problems)
    if wanted and (reason := last_problem if wanted == LAST_RUNG else why[wanted]):
        return Choice(problems=(f"rung {wanted} cannot be carried: {reason}",))
    begins_at = len(picks) if wanted == LAST_RUNG else list(why).index(wanted) if wanted else 0
    above = picks[begins_at:]
    carried = [_attempt(pick) for pick in above if not why[pick.rung]]
    own = [] if last_problem else [_of_last(one) for one in last.candidates]
    ready = own[:1] if standby_is_ready and not wanted else []
    attempts = [*ready, *carried, *own[len(ready) :]]
    passed = [f"rung {pick.rung} is passed over: {why[pick.rung]}" for pick in above if why[pick.rung]]
    if ready and carried:
        passed.append(
            f"the standby is ready and serves first, instead of rung {carried[0].rung}; "
            f"to begin with that one: rung={carried[0].rung}"
        )
    if last_problem and wanted != LAST_RUNG:
        passed.append(f"rung {LAST_RUNG} is passed over: {last_problem}")
    if not attempts:
        return Choice(problems=tuple(passed), warnings=last.warnings)
    return Choice(
        candidates=twice(attempts[0]) if len(attempts) == 1 else tuple(attempts),
        warnings=() if last_problem else last.warnings,
        passed_over=tuple(passed),
    )


def _attempt(pick: Pick) -> Candidate:
    where = ", ".join(str(gpu.index) for gpu in pick.gpus)
    on = f"GPU{'' if len(pick.gpus) == 1 else 's'} {where}" if where else "the CPU"
    return Candidate(
        rung=pick.rung,
        gpu=pick.gpus[0].uuid if pick.gpus else None,
        gpus=tuple(gpu.uuid for gpu in pick.gpus),
        reason=f"rung {pick.rung} on {on}",
        beside=pick.beside,
        note=pick.note,
    )


def _of_last(candidate: Candidate) -> Candidate:
    return candidate.model_copy(update={"reason": f"rung {LAST_RUNG} on {candidate.reason}"})


def _tight(gpu: GpuState, need_gib: float | None) -> bool:
    """Return True if the GPU has no room for the rung while tp still runs. Without a figure only tp's end makes room."""
    return need_gib is None or gpu.free_gib < need_gib


def _connected(gpus: Sequence[GpuState], size: int) -> Iterator[tuple[GpuState, ...]]:
    """Yield the sets of this size in which each GPU reaches each other one, the earliest GPUs first."""
    if size == 0:
        yield ()
        return
    for place, first in enumerate(gpus):
        rest = [gpu for gpu in gpus[place + 1 :] if gpu.index in first.reaches]
        if len(rest) >= size - 1:
            yield from ((first, *others) for others in _connected(rest, size - 1))


def _largest(gpus: Sequence[GpuState], *, below: int) -> tuple[GpuState, ...]:
    found = (next(_connected(gpus, size), None) for size in range(below - 1, 0, -1))
    return next((one for one in found if one is not None), ())


def _passed(need: Need, why: str, rows: str) -> Pick:
    count = "1 GPU" if need.gpus == 1 else f"{need.gpus} GPUs"
    return Pick(rung=need.name, passed_over=f"it needs {count}, and {why}" + (f" ({rows})" if rows else ""))


def _listed(rows: Iterable[str]) -> str:
    found = list(rows)
    more = f"; {len(found) - NAMED} more" if len(found) > NAMED else ""
    return "; ".join(found[:NAMED]) + more


def _note(chosen: Sequence[GpuState], need_gib: float | None, linked: str) -> str:
    least = min(chosen, key=lambda gpu: gpu.free_gib)
    needs = "needs an unknown amount" if need_gib is None else f"needs {need_gib:g} GiB on each"
    beside = not any(_tight(gpu, need_gib) for gpu in chosen)
    fits = "fits beside the running tier" if beside else "fits only after tp is stopped"
    return f"{needs}, GPU {least.index} has {least.free_gib:.0f} GiB free: {fits}{linked}"
