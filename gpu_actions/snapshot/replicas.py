"""The replicas of a tier, each judged by its own counters, completion, GPUs and ranks. Pure, from a snapshot.

A replica is a label on the engine's page (data parallelism inside one server) or a server with a port of its own.
"""

from typing import NamedTuple

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.serving.condition import Condition, Judged, Observation, Probe, judge_condition
from gpu_actions.serving.interfaces import ReplicaMetrics
from gpu_actions.snapshot.collectors.completion import CompletionReading
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.progress import activity_of, probe_of


class Replica(NamedTuple):
    """One replica: its DP coordinate, its latest counters, its completion if one was sent to it, and its condition."""

    name: str
    number: int
    metrics: ReplicaMetrics
    completion: CompletionReading | None
    judged: Judged

    @property
    def is_hung(self) -> bool:
        """True if requests on it get no token, or it answers nothing."""
        seen = probe_of(self.completion)
        mute = self.metrics.outcome == "timeout" or seen is Probe.UNANSWERED
        return self.judged.condition is Condition.HUNG or (self.judged.condition is Condition.SILENT and mute)

    @property
    def is_down(self) -> bool:
        """True if nothing listens at its address."""
        return self.judged.condition is Condition.DEAD


def replicas_of(snapshot: Snapshot, limits: TriageThresholds | None = None) -> tuple[Replica, ...]:
    """Return the replicas of the tier with their conditions, or an empty tuple if it has only one."""
    engine = snapshot.engine
    if engine is None or len(engine.samples) < 2 or len(engine.samples[-1].replicas) < 2:
        return ()
    span_s = max(0.0, engine.samples[-1].at_s - engine.samples[0].at_s)
    completions = snapshot.completion.replicas if snapshot.completion is not None else ()
    samples = engine.replica_samples()
    found = []
    for position, metrics in enumerate(engine.samples[-1].replicas):
        number = int(metrics.name) if metrics.name.isdecimal() else position
        completion = completions[position] if len(completions) == len(samples) else None
        seen = Observation(
            samples=samples[metrics.name],
            probe=probe_of(completion),
            activity=activity_of(part_of(snapshot, number), limits or TriageThresholds()),
            gone=metrics.outcome == "refused",
            mute=metrics.outcome == "timeout",
        )
        judged = judge_condition(seen, stall_s=span_s)
        found.append(Replica(metrics.name, number, metrics, completion, judged))
    return tuple(found)


def hung_replicas(snapshot: Snapshot, limits: TriageThresholds | None = None) -> tuple[Replica, ...]:
    """Return the replicas that hang although others do not."""
    replicas = replicas_of(snapshot, limits)
    hung = tuple(one for one in replicas if one.is_hung)
    return hung if len(hung) < len(replicas) else ()


def part_of(snapshot: Snapshot, number: int) -> Snapshot:
    """Return the snapshot with the processes and stacks of one replica only, by their DP coordinate.

    RAS and the flight recorder are left out: they number the ranks of a job, and replicas may be jobs of their own.
    """
    ranks, stacks = snapshot.ranks, snapshot.stacks
    rows = tuple(row for row in (ranks.processes if ranks else ()) if row.coordinates.get("DP") == number)
    pids = {row.pid for row in rows}
    kept = tuple(one for one in (stacks.stacks if stacks else ()) if one.pid in pids)
    return snapshot.model_copy(
        update={
            "ranks": ranks.model_copy(update={"processes": rows}) if ranks is not None else None,
            "stacks": stacks.model_copy(update={"stacks": kept}) if stacks is not None else None,
            "expected": snapshot.expected.model_copy(update={"ranks": None}),
            "ras": None,
            "flight_recorder": None,
        }
    )
