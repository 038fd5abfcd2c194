"""What an engine's start spent its time on, read from the engine's own log. Pure; each kind of engine declares its lines."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class StartupPhase(NamedTuple):
    """A line of an engine's log that says how long a phase took: group 1 in seconds. Of several ranks the slowest counts.

    `includes` are phases whose seconds are part of this figure; they are taken off it.
    """

    name: str
    line: re.Pattern[str]
    includes: tuple[str, ...] = ()


NOTHING = 0.05
"""Seconds or GiB that a card would show as 0.0."""


def log_since(log: str, before: str) -> str:
    """Return what was written after `before`, the end of the log at an earlier moment; all of it if that is not there."""
    return log.rpartition(before)[2] if before else log


def phases_of(log: str, phases: Sequence[StartupPhase]) -> dict[str, float]:
    """Return the seconds of each phase that the log of one start names, in the order of `phases`."""
    found: dict[str, float] = {}
    for phase in phases:
        if seconds := [float(match) for match in phase.line.findall(log)]:
            found[phase.name] = max(*seconds, found.get(phase.name, 0.0))
    included = {phase.name: phase.includes for phase in phases}
    return {
        name: round(max(0.0, seconds - sum(found.get(part, 0.0) for part in included[name])), 2)
        for name, seconds in found.items()
    }


def describe_start(startup_s: float, phases: Mapping[str, float], disk_gib: float | None) -> str:
    """Return what a start spent, in one line, without what rounds to nothing; empty if the engine's log names no phase."""
    if not phases:
        return ""
    disk = "" if disk_gib is None or disk_gib < NOTHING else f", {disk_gib:.1f} GiB read from disk"
    parts = [f"{name} {seconds:.1f} s" for name, seconds in phases.items() if seconds >= NOTHING]
    rest_s = startup_s - sum(phases.values())
    parts += [f"the rest {rest_s:.1f} s"] if rest_s >= NOTHING else []
    return f"{startup_s:.1f} s: {', '.join(parts)}{disk}"
