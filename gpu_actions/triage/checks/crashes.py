"""Does the tier's process keep ending, and why? Its unit's restarts over time, the unit's log and the kernel's OOM killer."""

import re
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

from gpu_actions.models import Finding
from gpu_actions.snapshot.progress import READS
from gpu_actions.snapshot.target import UnitFacts
from gpu_actions.triage.check import Check, CheckContext, count
from gpu_actions.triage.culprit import Culprit, Kind
from gpu_actions.triage.rule import CRITICAL, WATCH, Rules, rule

RULES = Rules(
    rule(
        "serving.crash_loop", CRITICAL, "the tier's process ended and was restarted again and again within a short time",
        "Fall back: another restart ends the same way. The summary names the cause to remove before the tier returns.",
        source="the unit's restarts and log; kernel log", cause="crash_loop", threshold="crash_loop_restarts",
    ),
    rule(
        "serving.crash_loop_over", WATCH, "the tier restarted again and again, but has run steadily since",
        "No restart is needed now. Remove the cause that the summary names.",
        source="the unit's restarts and log; kernel log", cause="crash_loop", threshold="crash_loop_restarts",
    ),
    rule(
        "serving.crashed", WATCH,
        "the tier's process ended: its log or the kernel log names an error, or it was restarted within the last 10 minutes",
        "A single restart is enough (its supervisor does it). If it ends the same way again, fall back.",
        source="the unit's restarts and log; kernel log", cause="engine_crashed", threshold="crash_loop_s",
    ),
)  # fmt: skip

STEADY_S = 600.0
"""A process that ran this long since its last restart has left the loop."""


class CrashCause(NamedTuple):
    """Why the tier's process ended, and what that means for a restart."""

    name: str
    text: str
    advice: str


OOM_KILLER = CrashCause(
    "kernel_oom",
    "the kernel's OOM killer ended it: the host is out of memory",
    "a restart fails until host memory is free",
)
OOM_KILLED = OOM_KILLER._replace(
    text="the kernel's OOM killer ended it: it reached its container's memory limit, or the host is out of memory",
    advice="a restart fails until its limit is raised (--memory) or host memory is free",
)
CAUSES_IN_LOG: tuple[tuple[re.Pattern[str], CrashCause], ...] = (
    (re.compile(r"oom.kill", re.IGNORECASE), OOM_KILLER),
    (
        re.compile(r"out.?of.?memory|MemoryAllocation", re.IGNORECASE),
        CrashCause(
            "cuda_oom",
            "CUDA out of memory",
            "a restart fails until the GPU memory is free, or the tier is configured to use less",
        ),
    ),
    (
        re.compile(r"illegal", re.IGNORECASE),
        CrashCause(
            "illegal_access",
            "CUDA illegal memory access",
            "a restart helps once; if it comes back, it is a defect of the engine or of a GPU",
        ),
    ),
)


RANK_DIED = re.compile(r"(?:\brank (\d+) \(pid \d+\)|Worker\S*-(\d+)) died(.*)")


def check_crashes(context: CheckContext) -> Iterator[Finding]:
    """Judge the restarts of the tier's unit. Monitors that do not read processes leave them out."""
    snapshot, limits = context.snapshot, context.thresholds
    unit = snapshot.expected.unit
    if unit is None or not snapshot.expected.tier_expected or "ranks" not in snapshot.collectors:
        return
    now_s = snapshot.taken_at.timestamp()
    age_s = None if unit.started_at_s is None else max(0.0, now_s - unit.started_at_s)
    recent = [at_s for at_s in unit.restarted_at_s if now_s - at_s <= limits.crash_loop_s]
    restarts = len(recent)
    if not unit.restarted_at_s and (age_s is None or age_s <= limits.crash_loop_s):
        restarts = unit.restarts  # it is not known when they happened
    cause = crash_cause(context)
    evidence: dict[str, Any] = {
        "restarts": unit.restarts,
        "recent_restarts": restarts,
        "age_s": age_s,
        "crash_cause": "unknown" if cause is None else cause.name,
        "log": list(unit.log_errors),
    }
    ended = exit_text(unit)
    why = "its log names no cause" if cause is None else f"{cause.text}; {cause.advice}"
    why += f" ({ended})" if ended else ""
    if restarts >= limits.crash_loop_restarts:
        is_steady = age_s is not None and age_s >= STEADY_S and not context.progress.broken
        span_s = now_s - min(recent) if recent else limits.crash_loop_s
        yield RULES.finding(
            "serving.crash_loop_over" if is_steady else "serving.crash_loop",
            f"{count(restarts, 'restart')} within {span_s / 60:.0f} min: {why}",
            **evidence,
        )
    elif cause is not None and (restarts or context.progress.state == "down"):
        yield RULES.finding("serving.crashed", f"the tier's process ended: {why}", **evidence)
    elif restarts and age_s is not None and age_s < STEADY_S:
        yield RULES.finding(
            "serving.crashed",
            f"the tier's process ended and was restarted {age_s:.0f} s ago, {count(restarts, 'restart')} so far: {why}",
            **evidence,
        )


def crash_cause(context: CheckContext) -> CrashCause | None:
    """Return why the tier's process ended, from the kernel log and the latest error of its own log."""
    snapshot, unit = context.snapshot, context.snapshot.expected.unit
    if unit is None:
        return None
    names = {row.name for row in (snapshot.ranks.processes if snapshot.ranks else ())}
    kills = snapshot.kernel_log.oom_kills if snapshot.kernel_log else ()
    oldest_s = snapshot.taken_at.timestamp() - context.thresholds.crash_loop_s
    for kill in kills:
        is_recent = kill.at is None or kill.at.timestamp() >= oldest_s
        if is_recent and (not names or kill.name in names):
            return OOM_KILLER
    if unit.oom_killed:
        return OOM_KILLED
    latest = unit.log_errors[-1] if unit.log_errors else ""
    known = next((cause for pattern, cause in CAUSES_IN_LOG if pattern.search(latest)), None)
    if known is None and (dead := dead_rank(context)) is not None:
        return CrashCause("rank_died", dead.text, "a restart is enough unless it dies again")
    return known


def dead_rank(context: CheckContext) -> Culprit | None:
    """Return the rank whose death ended the engine, as the first such line at the end of its log says."""
    unit = context.snapshot.expected.unit
    for line in unit.log_errors if unit is not None else ():
        if found := RANK_DIED.search(line):
            how = found.group(3).strip(" :")
            return Culprit(int(found.group(1) or found.group(2)), Kind.DEAD, how)
    return None


def exit_text(unit: UnitFacts | None) -> str:
    """Return how the main process of a unit ended, for people: `exit code 137, SIGKILL`. Empty if that is not known."""
    if unit is None or unit.exit_code is None:
        return ""
    try:
        name = f", {signal.Signals(unit.exit_code - 128).name}"
    except ValueError:
        name = ""
    return f"exit code {unit.exit_code}{name}"


CRASHES = Check(
    title="Crashes",
    rules=RULES,
    reads=READS | {"kernel_log"},
    judge=check_crashes,
)
