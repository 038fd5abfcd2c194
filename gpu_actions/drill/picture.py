"""Draw a host's drills: `python -m gpu_actions.drill.picture HISTORY PICTURE`. A child process, because of matplotlib."""

import sys
from collections.abc import Sequence
from pathlib import Path

from gpu_actions.drill.history import PHASES, Drill, read_history

SHOWN = 8
LONGEST_STEPS = 10
COLOURS = {"detect": "#bf8700", "fallback": "#cf222e", "restore": "#1f6feb"}


def draw(drills: Sequence[Drill], path: Path) -> None:
    """Write a PNG: the phases of the last drills, and the longest steps of the newest one beside the one before."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = list(drills)[-SHOWN:]
    bars = [(drill, one) for drill in shown for one in drill.faults]
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(6.5, 3.5 + 0.32 * len(bars) + 0.28 * LONGEST_STEPS), dpi=130,
        height_ratios=(max(3, len(bars)), LONGEST_STEPS),
    )  # fmt: skip
    names = [f"{drill.run_id} {one.fault}" for drill, one in bars]
    left = [0.0] * len(bars)
    for phase in PHASES:
        took = [one.phase_s.get(phase, 0.0) for _, one in bars]
        above.barh(range(len(bars)), took, left=left, color=COLOURS[phase], label=phase)
        left = [a + b for a, b in zip(left, took, strict=True)]
    above.set_yticks(range(len(bars)), names, fontsize=8)
    above.set(title="Seconds per phase, newest drill at the top", xlabel="s")
    above.legend(fontsize=8, ncols=3)
    newest = _steps(shown[-1])
    before = _steps(shown[-2]) if len(shown) > 1 else {}
    longest = sorted(newest, key=newest.__getitem__)[-LONGEST_STEPS:]
    rows = range(len(longest))
    below.barh([row + 0.2 for row in rows], [newest[name] for name in longest], 0.4, label=shown[-1].run_id,
               color="#1f6feb")  # fmt: skip
    if before:
        old = [before.get(name, 0.0) for name in longest]
        below.barh([row - 0.2 for row in rows], old, 0.4, label=shown[-2].run_id, color="#8c959f")
    below.set_yticks(list(rows), longest, fontsize=8)
    below.set(title="Longest steps, mean of the fault kinds", xlabel="s")
    below.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def _steps(drill: Drill) -> dict[str, float]:
    """Return the mean seconds per step, over the drill's fault kinds."""
    took: dict[str, list[float]] = {}
    for one in drill.faults:
        for step in one.steps:
            took.setdefault(f"{step.action}: {step.step_id}", []).append(step.seconds)
    return {name: sum(values) / len(values) for name, values in took.items()}


if __name__ == "__main__":
    draw(read_history(Path(sys.argv[1])), Path(sys.argv[2]))
