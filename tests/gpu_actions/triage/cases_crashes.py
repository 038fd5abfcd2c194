"""Tiers that crash and restart, and the verdict and cause that must follow."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.snapshot.collectors.kernel_log import KernelLogReading
from gpu_actions.snapshot.kernel_log_lines import OomKill
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.target import UnitFacts
from tests.gpu_actions.triage import builders as make


def oom_kill(name: str, ago_s: float | None = 301) -> KernelLogReading:
    at = None if ago_s is None else make.TAKEN - timedelta(seconds=ago_s)
    kill = OomKill(pid=7, name=name, at=at)
    return KernelLogReading(source="/dev/kmsg", lines_read=100, oom_kills=(kill,))


def crashes(
    *,
    minutes: tuple[int, ...],
    restarts: int | None = None,
    age_min: float | None = None,
    log: str = "",
    **changes: Any,
) -> Snapshot:
    """Return a host whose tier was restarted these minutes ago."""
    now_s = make.TAKEN.timestamp()
    age_s = 60 * (age_min if age_min is not None else min(minutes))
    facts = UnitFacts(
        restarts=len(minutes) if restarts is None else restarts,
        restarted_at_s=tuple(now_s - 60 * minute for minute in minutes),
        started_at_s=now_s - age_s,
        log_errors=(log,) if log else (),
    )
    return make.healthy(**{**changes, "expected": {**changes.get("expected", {}), "unit": facts}})


def ended(**facts: Any) -> Snapshot:
    """Return a host whose tier's container ended and was not restarted."""
    return make.healthy(
        engine=make.engine(outcome="refused"),
        completion=None,
        ranks=None,
        expected={"unit": UnitFacts(**facts)},
    )


Make = Callable[[], Snapshot]
CASES: dict[str, tuple[Any, ...]] = {
    "a crash loop": (lambda: crashes(minutes=(1, 4, 7, 10)), "fall_back", "crash_loop"),
    "a crash loop of a tier that loads": (
        lambda: crashes(minutes=(1, 4, 7), engine=make.engine(outcome="refused"), completion=None),
        "fall_back",
        "crash_loop",
    ),
    "a crash loop of the fallback tier": (
        lambda: crashes(minutes=(1, 4, 7), expected={"tier": "fallback"}),
        "watch",
        "crash_loop",
    ),
    "a crash loop that ended a while ago": (lambda: crashes(minutes=(15, 20, 25)), "watch", "crash_loop"),
    "restarts over many days": (lambda: crashes(minutes=(9000, 20000, 30000)), "healthy", "none"),
    "a restart a moment ago without a cause": (lambda: crashes(minutes=(5,)), "watch", "engine_crashed"),
    "a restart a while ago without a cause": (lambda: crashes(minutes=(15,)), "healthy", "none"),
    "restarts at unknown times of a process that is old": (
        lambda: crashes(minutes=(), restarts=9, age_min=600),
        "healthy",
        "none",
    ),
    "restarts at unknown times of a process that is young": (
        lambda: crashes(minutes=(), restarts=9, age_min=2),
        "fall_back",
        "crash_loop",
    ),
    "a restart after the OOM killer": (
        lambda: crashes(minutes=(5,), kernel_log=oom_kill("python")),
        "watch",
        "engine_crashed",
    ),
    "a restart beside the OOM killer's end of another program": (
        lambda: crashes(minutes=(15,), kernel_log=oom_kill("stress")),
        "healthy",
        "none",
    ),
    "restarts of which the first is just within the time that counts": (
        lambda: crashes(minutes=(10, 12, 30), log="Engine core died"),
        "watch",
        "crash_loop",
    ),
    "restarts within an hour that all count": (
        lambda: crashes(minutes=(5, 40, 60)),
        "fall_back",
        "crash_loop",
        {"thresholds": TriageThresholds(crash_loop_s=3600)},
    ),
    "a restart a while ago, the kernel log is not read": (
        lambda: crashes(minutes=(5,), kernel_log=None),
        "unknown",
        "unknown",
    ),
    "a restart just as long ago as a steady tier runs": (
        lambda: crashes(minutes=(10,), log="Engine core died"),
        "healthy",
        "none",
    ),
    "restarts at unknown times of a process that is just as old as counts": (
        lambda: crashes(minutes=(), restarts=4, age_min=30),
        "watch",
        "crash_loop",
    ),
    "a restart at the moment of the reading": (lambda: crashes(minutes=(0,)), "watch", "engine_crashed"),
    "a restart after a rank died": (
        lambda: crashes(minutes=(5,), log="rank 3 (pid 203) died: exit code -9"),
        "watch",
        "engine_crashed",
    ),
    "a restart after the OOM killer, at an unknown time": (
        lambda: crashes(minutes=(5,), kernel_log=oom_kill("python", None)),
        "watch",
        "engine_crashed",
    ),
    "a restart after the OOM killer, just within the time that counts": (
        lambda: crashes(minutes=(5,), kernel_log=oom_kill("python", 1800)),
        "watch",
        "engine_crashed",
    ),
    "a restart long after the OOM killer": (
        lambda: crashes(minutes=(15,), kernel_log=oom_kill("python", 1801)),
        "healthy",
        "none",
    ),
    "a tier that is stopped on purpose after restarts": (
        lambda: crashes(minutes=(1, 4, 7), expected={"tier_expected": False}),
        "healthy",
        "none",
    ),
    "a container that reached its memory limit and is down": (
        lambda: ended(exit_code=137, oom_killed=True),
        "fall_back",
        "engine_down",
    ),
    "a container that ended with an exit code": (lambda: ended(exit_code=3), "fall_back", "engine_down"),
}
