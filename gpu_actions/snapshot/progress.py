"""Does the tier generate tokens? The serving, collective and hardware checks all depend on the answer.

`serving.condition` judges what the snapshot shows: the engine's counters at both ends of the window, the synthetic
completion, the requests that the router holds open, and what the tier's processors do.
"""

from typing import Any, Literal, NamedTuple

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.serving.condition import (
    Activity,
    Condition,
    Observation,
    Probe,
    Progress,
    TokenSample,
    held_of,
    judge_condition,
    judge_progress,
    probe_of_status,
)
from gpu_actions.snapshot.activity import cpu_activity, gpu_activity
from gpu_actions.snapshot.collectors.completion import CompletionReading
from gpu_actions.snapshot.collectors.engine import EngineSample
from gpu_actions.snapshot.collectors.nvml import NO_GPUS
from gpu_actions.snapshot.model import Snapshot

State = Literal[
    "not_expected", "not_asked", "flowing", "idle", "prefill", "starting", "flat", "silent", "down", "unread"
]

READS = frozenset({"engine", "completion", "ranks", "router", "nvml", "activity"})
"""The readings that a tier's progress is judged by."""


class TierProgress(NamedTuple):
    """Progress of the tier within the window.

    flowing: tokens were generated. idle: there is no request. prefill: no token was generated because a long prompt is read.
    flat: requests wait (or the synthetic completion does) and nothing moves. silent: it accepts connections but does not
    answer. starting: it says so. down: nothing listens. unread: the counters do not show it. not_expected: the tier is
    stopped on purpose. not_asked: no engine is configured.
    """

    state: State
    flat_s: float = 0.0
    running: float | None = None
    waiting: float | None = None
    tokens_first: float | None = None
    tokens_last: float | None = None
    condition: Condition | None = None
    why: str = ""
    activity: Activity = Activity.UNKNOWN
    sessions: int | None = None

    @property
    def stuck(self) -> bool:
        """True if requests get no tokens although something listens."""
        return self.state in ("flat", "silent")

    @property
    def slow(self) -> bool:
        """True if tokens come, but so slowly that a probe missed its deadline although nothing queues."""
        return self.state == "flowing" and self.condition is Condition.SLOW

    @property
    def broken(self) -> bool:
        """True if the tier does not serve, for whatever reason."""
        return self.state in ("flat", "silent", "down")

    @property
    def moves(self) -> bool:
        """True if the tier does what it is asked to do, or is asked nothing."""
        return self.state in ("flowing", "idle", "prefill")

    def evidence(self) -> dict[str, Any]:
        """Return the figures behind the state."""
        return {
            "state": self.state,
            "flat_s": round(self.flat_s, 2),
            "running": self.running,
            "waiting": self.waiting,
            "generation_tokens_first": self.tokens_first,
            "generation_tokens_last": self.tokens_last,
            "condition": self.condition,
            "processors": self.activity.value,
            "router_sessions": self.sessions,
        }


def progress_of(snapshot: Snapshot, limits: TriageThresholds | None = None) -> TierProgress:
    """Judge the tier's progress from a snapshot."""
    if not snapshot.expected.tier_expected:
        return TierProgress("not_expected", condition=Condition.STOPPED)
    samples = snapshot.engine.samples if snapshot.engine is not None else ()
    if not samples and snapshot.completion is None and not _main_process_is_gone(snapshot):
        return TierProgress("not_asked" if snapshot.skipped("engine") else "unread")
    seen = observation_of(snapshot, limits or TriageThresholds())
    span_s = max(0.0, samples[-1].at_s - samples[0].at_s) if samples else 0.0
    judged = judge_condition(seen, stall_s=span_s)
    progress = TierProgress("unread", condition=judged.condition, why=judged.why)
    progress = progress._replace(activity=seen.activity, sessions=seen.sessions)
    if samples:
        first, last = samples[0], samples[-1]
        progress = progress._replace(
            running=first.running if seen.mute else last.running,
            waiting=last.waiting,
            tokens_first=first.tokens,
            tokens_last=last.tokens,
        )
    match judged.condition:
        case Condition.DEAD:
            return progress._replace(state="down")
        case Condition.STARTING:
            return progress._replace(state="starting")
        case Condition.HUNG if _some_replica_is_idle(snapshot, seen, span_s):
            return progress._replace(state="idle")
        case Condition.HUNG:
            return progress._replace(state="silent" if seen.mute else "flat", flat_s=span_s)
        case Condition.SILENT if seen.mute:
            return progress._replace(state="silent", flat_s=span_s)
        case Condition.SILENT:
            return progress._replace(state="idle" if _is_idle(seen) else "unread")
    if judged.is_prefill:
        return progress._replace(state="prefill", flat_s=span_s)
    generated = seen.probe is Probe.ANSWERED or progress.tokens_first != progress.tokens_last
    return progress._replace(state="flowing" if generated else "idle")


def observation_of(snapshot: Snapshot, limits: TriageThresholds) -> Observation:
    """Return what a snapshot shows of the tier."""
    samples = snapshot.engine.samples if snapshot.engine is not None else ()
    return Observation(
        samples=tuple(_sample(one) for one in samples),
        probe=probe_of(snapshot.completion),
        sessions=open_sessions(snapshot),
        activity=activity_of(snapshot, limits),
        gone=_main_process_is_gone(snapshot) or bool(samples and samples[-1].outcome == "refused"),
        mute=bool(samples and samples[-1].outcome == "timeout"),
    )


def _some_replica_is_idle(snapshot: Snapshot, seen: Observation, span_s: float) -> bool:
    """Return True if a replica has no request while others hold some: nothing says that it would not serve."""
    replicas = snapshot.engine.replica_samples().values() if snapshot.engine is not None else ()
    return seen.probe is Probe.NOT_SENT and any(
        judge_progress(samples, stall_s=span_s) is Progress.IDLE for samples in replicas
    )


def _sample(one: EngineSample) -> TokenSample:
    if one.outcome != "ok":
        return TokenSample(at_s=one.at_s, tokens=None, held=None)
    return TokenSample(
        at_s=one.at_s,
        tokens=one.tokens,
        held=held_of(one.running, one.waiting),
        waiting=one.waiting,
        kv_cache_usage=one.kv_cache_usage,
    )


def probe_of(completion: CompletionReading | None) -> Probe:
    """Return how a completion ended, as the judgement of a condition takes it."""
    if completion is None:
        return Probe.NOT_SENT
    if completion.outcome == "http_error" and completion.status is not None:
        return probe_of_status(completion.status, completion.detail)
    return {"ok": Probe.ANSWERED, "timeout": Probe.UNANSWERED, "refused": Probe.REFUSED}.get(
        completion.outcome, Probe.FAILED
    )


def open_sessions(snapshot: Snapshot) -> int | None:
    """Return how many requests the router held open on this tier at both ends of the window, or None if that is not known."""
    router, server = snapshot.router, snapshot.expected.router_server
    if router is None or server is None:
        return None
    before = [row.sessions for row in router.before if row.server == server]
    after = [row.sessions for row in router.servers if row.server == server]
    return min(sum(before), sum(after)) if before and after else None


def is_contradictory(snapshot: Snapshot) -> bool:
    """Return True if the engine reports no request while the router held some open on it all the time.

    A client that reads slowly looks the same, so only a probe decides.
    """
    return bool(open_sessions(snapshot)) and progress_of(snapshot).state == "idle"


def activity_of(snapshot: Snapshot, limits: TriageThresholds) -> Activity:
    """Return what the tier's processors do: its GPUs if the host has some, else its ranks' cores."""
    if snapshot.ranks is None:
        return Activity.UNKNOWN
    rows = [row for row in snapshot.ranks.processes if row.is_alive]
    if not _is_cpu_host(snapshot):
        pids = {row.pid for row in rows}
        gpus = snapshot.activity.gpus if snapshot.activity is not None else ()
        return gpu_activity(gpus if snapshot.nvml is None else snapshot.nvml.gpus, pids, limits)
    ranks = [row for row in rows if row.rank is not None]
    if not any(row.rank == 0 for row in ranks):
        ranks += [row for row in rows if row.root]
    return cpu_activity(
        [None if row.cpu_s is None else row.cpu_s / snapshot.window_s for row in ranks], limits
    )


def _is_cpu_host(snapshot: Snapshot) -> bool:
    """Return True if the settings or the driver say that there are no GPUs. Unread GPUs are not absent ones: a rank that waits
    in NCCL keeps a core busy."""
    reasons = [snapshot.why_not(name) for name in ("nvml", "activity") if snapshot.skipped(name)]
    return snapshot.expected.gpus == 0 or any(reason.startswith(NO_GPUS) for reason in reasons)


def _is_idle(seen: Observation) -> bool:
    newest = seen.samples[-1] if seen.samples else None
    return newest is not None and newest.tokens is not None and newest.held == 0


def _main_process_is_gone(snapshot: Snapshot) -> bool:
    """Return True if all main processes of the unit are gone or zombies, and no engine answers in their place."""
    ranks, engine = snapshot.ranks, snapshot.engine
    if ranks is None or (engine is not None and engine.samples and engine.samples[-1].outcome == "ok"):
        return False
    dead = {process.pid for process in ranks.processes if process.state_last in ("Z", "X", "gone")}
    gone = bool(ranks.roots) and dead.union(ranks.missing_roots).issuperset(ranks.roots)
    return gone or ranks.unit_active is False
