"""What drills took, by phase and by step, and whether the newest one was slower than it may be."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from gpu_actions.config.policies import DrillPolicy
from gpu_actions.models import Frozen
from gpu_actions.system.files import write_atomically

KEPT = 100
COMPARED = 5
SMALLEST_SLOWDOWN_S = 5.0
"""Less than this is noise of a busy machine, whatever its share."""
PHASES = ("detect", "fallback", "restore")


class DrilledStep(Frozen):
    """One step of an action as a drill ran it."""

    action: str
    step_id: str
    title: str
    status: str
    summary: str = ""
    attempt: int = 1
    seconds: float
    expected_s: float | None = None
    at: float


class DrilledFault(Frozen):
    """One fault kind of a drill: the seconds of each phase, and every step."""

    fault: str
    began_at: float
    phase_s: dict[str, float]
    steps: tuple[DrilledStep, ...] = ()
    verdict: str = ""

    @property
    def total_s(self) -> float:
        return sum(self.phase_s.values())


class Drill(Frozen):
    """One finished drill."""

    run_id: str
    at: float
    faults: tuple[DrilledFault, ...]


def read_history(path: Path) -> tuple[Drill, ...]:
    """Return the drills of a host, oldest first. A line that cannot be read is left out."""
    found = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            found.append(Drill.model_validate_json(line))
        except ValidationError:
            continue
    return tuple(found)


def append_drill(path: Path, drill: Drill) -> tuple[Drill, ...]:
    """Add a drill to the history, once per run. Return the history with it."""
    others = [one for one in read_history(path) if one.run_id != drill.run_id]
    kept = (*others[-(KEPT - 1) :], drill)
    write_atomically(path, "".join(one.model_dump_json() + "\n" for one in kept))
    return kept


def usual_s(earlier: Sequence[Drill], fault: str, phase: str) -> float | None:
    """Return the median seconds of a phase over the last drills of a fault, or None if there was none."""
    known = [
        one.phase_s[phase]
        for drill in earlier
        for one in drill.faults
        if one.fault == fault and phase in one.phase_s
    ]
    return statistics.median(known[-COMPARED:]) if known else None


def too_slow(drill: Drill, earlier: Sequence[Drill], policy: DrillPolicy) -> tuple[str, ...]:
    """Return a sentence for each phase above its limit, or slower than the last drills by more than is allowed."""
    found = []
    for one in drill.faults:
        for phase, took_s in one.phase_s.items():
            limit_s = getattr(policy, f"max_{phase}_s")
            usual = usual_s(earlier, one.fault, phase)
            if took_s > limit_s:
                found.append(f"{one.fault}: {phase} took {took_s:.1f} s, over its limit of {limit_s:g} s")
            elif (
                usual is not None
                and took_s > usual * (1 + policy.max_slower_percent / 100)
                and took_s - usual > SMALLEST_SLOWDOWN_S
            ):
                found.append(
                    f"{one.fault}: {phase} took {took_s:.1f} s, usually {usual:.1f} s "
                    f"(more than {policy.max_slower_percent:g} % slower)"
                )
    return tuple(found)


def table(drill: Drill, earlier: Sequence[Drill]) -> str:
    """Return the drill as a text table: each fault's phases with the usual time beside."""
    lines = [f"{'fault':<14}{'phase':<10}{'took':>8}{'usually':>9}"]
    for one in drill.faults:
        for phase, took_s in one.phase_s.items():
            usual = usual_s(earlier, one.fault, phase)
            usually = "-" if usual is None else f"{usual:.1f} s"
            lines.append(f"{one.fault:<14}{phase:<10}{took_s:>6.1f} s{usually:>9}")
    return "\n".join(lines)
