"""Is a collective stuck? A hang needs two sources: no progress under running requests, and ranks that explain it.

The second source is one of: the kernel's process states, NCCL RAS over two polls, the ranks' own stacks. None of them counts
alone, because a healthy worker is often inside a collective, and the counts of an idle one do not move.
"""

import re
from collections.abc import Iterator, Sequence

from gpu_actions.models import Finding, VerdictKind
from gpu_actions.snapshot.collectors.ranks import RanksReading
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.progress import READS
from gpu_actions.snapshot.replicas import replicas_of
from gpu_actions.triage.check import Check, CheckContext, count
from gpu_actions.triage.culprit import Culprit, Kind, candidates_of, culprits_of, elsewhere_of
from gpu_actions.triage.rule import CRITICAL, INFO, OK, UNKNOWN, WATCH, Rules, rule
from gpu_actions.triage.suspicions import Suspicion, is_frozen, suspicions_of

TWO_SOURCES = "a flat token counter under running requests AND a second source"

RULES = Rules(
    rule("collective.ok", OK, "the ranks are alive and no collective is stuck", source="RAS, /proc"),
    rule(
        "collective.hang", CRITICAL,
        "no token under running requests, and ranks that are stopped, dead, mismatched or inside a collective",
        "Start the fallback. The evidence names the rank to look at.", source=TWO_SOURCES, cause="nccl_hang",
    ),
    rule(
        "collective.process_stuck", CRITICAL,
        "no token under running requests, and the tier's only process is stopped, blocked in the kernel, or gone",
        "Start the fallback, or let the process go on.", source=TWO_SOURCES, cause="engine_stalled",
    ),
    rule(
        "collective.rank_frozen", CRITICAL,
        "a rank is stopped (T) or blocked in the kernel (D), but no request waits for it yet",
        "Continue the process (kill -CONT) or fall back: the next request will hang.", source="/proc/PID/stat",
        cause="nccl_hang", verdict=VerdictKind.WATCH, when_broken=VerdictKind.FALL_BACK,
    ),
    rule(
        "collective.rank_dead", CRITICAL, "a rank is missing, a zombie or gone: the tier cannot work without it",
        "Restart the tier or fall back.", source="/proc/PID/stat", cause="nccl_hang", verdict=VerdictKind.WATCH,
        when_broken=VerdictKind.FALL_BACK,
    ),
    rule(
        "collective.straggler", WATCH,
        "tokens come, but a completion is late, and one rank is outside the collective in which the others wait",
        "Look at that rank's host process and its GPU: all wait for it at every step.",
        source="synthetic completion AND stacks, NCCL RAS or GPUs", cause="serving_regression",
    ),
    rule(
        "collective.mismatch", WATCH,
        "RAS operation counts differ between ranks and did not move, though the tier is not stuck",
        "Run triage again with a longer window.", source="NCCL RAS, two polls", cause="nccl_hang",
    ),
    rule(
        "collective.ras_missing", WATCH, "NCCL RAS gets no answer from a rank",
        "Check that process and run triage again.", source="NCCL RAS", cause="nccl_hang",
    ),
    rule(
        "collective.ras_error", CRITICAL,
        "NCCL RAS reports an asynchronous error of a communicator: its next collective fails or hangs",
        "Restart the tier, or fall back if it does not serve. The rank's log names the error.", source="NCCL RAS",
        cause="nccl_hang", verdict=VerdictKind.WATCH, when_broken=VerdictKind.FALL_BACK,
    ),
    rule(
        "collective.ras_silent", INFO,
        "NCCL RAS did not answer: not an NCCL tier, RAS is off, or its process is frozen", source="NCCL RAS",
        cause="unknown",
    ),
    rule(
        "collective.unread", UNKNOWN, "no token under running requests, and no second source could be read",
        "Run triage as root or as the tier's user, with the unit's pid.", source=TWO_SOURCES, cause="engine_stalled",
    ),
    rule(
        "collective.ranks_unseen", INFO,
        "the tier's ranks run outside its unit (another container, Ray), so a dead or stopped one is not seen",
        "Name a unit whose processes are the ranks, or set the engine's process titles.", source="/proc", cause="unknown",
    ),
    rule(
        "collective.ranks_unread", UNKNOWN, "the tier's processes could not be read, but the engine answers",
        "Pass the unit's main pid (--pid).", source="/proc", verdict=VerdictKind.WATCH,
    ),
)  # fmt: skip

WITHOUT_A_STALL = {
    "process_states": "collective.rank_frozen",
    "dead_ranks": "collective.rank_dead",
    "ras_mismatch": "collective.mismatch",
    "ras_missing": "collective.ras_missing",
    "ras_error": "collective.ras_error",
}
"""The rule of a suspicion while the tier is not stuck."""

OF_ALL_RANKS = ("ras_mismatch", "ras_silent", "stacks")
"""Suspicions that say that the ranks wait; the others name a process."""


def check_collective(context: CheckContext) -> Iterator[Finding]:
    """Judge the tier's ranks and their collectives."""
    snapshot, progress = context.snapshot, context.progress
    if progress.state == "not_expected" or is_paused(snapshot):
        return
    suspicions = list(suspicions_of(context))
    if progress.stuck and suspicions:
        what = (
            "the engine does not answer"
            if progress.state == "silent"
            else f"{progress.running or 0:g} running, no token for {max(progress.flat_s, 0.1):.1f} s"
        )
        culprits = culprits_of(snapshot)
        summary = suspicions[0].summary
        if culprits and not re.match(rf"ranks? (\d+, )*{culprits[0].rank}\b", summary):
            summary = f"{culprits[0].text}, the others wait for it: {summary}"
        elif (
            not culprits and suspicions[0].source in OF_ALL_RANKS and (candidates := candidates_of(snapshot))
        ):
            summary += f" (the culprit is among ranks {', '.join(map(str, candidates))})"
        todo = _todo(culprits, snapshot.ranks)
        finding = RULES.finding(
            "collective.hang" if snapshot.expected.ranks != 1 else "collective.process_stuck",
            f"{summary}: {what}",
            culprits=[culprit.evidence() for culprit in culprits],
            progress=progress.evidence(),
            sources=["token counter", *[item.source for item in suspicions]],
            **{item.source: item.evidence for item in suspicions},
            subject=f"rank {culprits[0].rank}" if culprits else _subject(suspicions),
        )
        yield finding.model_copy(update={"action": f"{finding.action} {todo}".strip()})
    elif progress.slow and (slow := elsewhere_of(snapshot)):
        slow = tuple(one._replace(kind=Kind.STRAGGLER) for one in slow)
        yield RULES.finding(
            "collective.straggler",
            f"{slow[0].text}, the others wait for it at every step",
            culprits=[one.evidence() for one in slow],
            progress=progress.evidence(),
            subject=f"rank {slow[0].rank}",
        )
    elif progress.state != "down":
        for item in suspicions:
            normal = item.source == "ras_mismatch" and progress.moves
            normal |= item.source == "dead_ranks" and any(one.is_down for one in replicas_of(snapshot))
            if item.source in WITHOUT_A_STALL and not normal:
                yield RULES.finding(WITHOUT_A_STALL[item.source], item.summary, **item.evidence)
    answered = snapshot.ras is not None and snapshot.ras.answered
    if progress.stuck and not suspicions and not answered and not _processes_read(context):
        yield RULES.finding(
            "collective.unread",
            f"no token for {progress.flat_s:.1f} s, and neither ranks ({snapshot.why_not('ranks')}) nor RAS "
            f"({snapshot.why_not('ras')}) could be read",
            progress=progress.evidence(),
        )
    if snapshot.ranks is not None and (unseen := _unseen(snapshot.ranks, expected=snapshot.expected.ranks)):
        yield RULES.finding("collective.ranks_unseen", unseen)
    if snapshot.ranks is None and snapshot.failed("ranks"):
        yield RULES.finding("collective.ranks_unread", snapshot.why_not("ranks"))
    if not suspicions and not progress.broken and (snapshot.ranks is not None or answered):
        processes = 0 if snapshot.ranks is None else len(snapshot.ranks.processes)
        yield RULES.finding(
            "collective.ok", f"{count(processes, 'process', 'processes')} of the tier, none stuck"
        )
    if snapshot.ras is not None and snapshot.ras.polls and not answered and context.has_gpus:
        yield RULES.finding(
            "collective.ras_silent",
            f"{snapshot.ras.address}: {snapshot.ras.polls[-1].outcome}",
            polls=[poll.outcome for poll in snapshot.ras.polls],
        )


def _todo(culprits: Sequence[Culprit], ranks: RanksReading | None) -> str:
    """Return what to do about the culprits; if there is none, about stopped processes without a rank (an API server)."""
    advice = [culprit.todo for culprit in culprits[:3] if culprit.todo]
    if not culprits and ranks is not None:
        stopped = [row for row in ranks.processes if row.state_last == "T" and is_frozen(row)]
        advice = [f"kill -CONT {row.pid} lets it go on." for row in stopped[:3]]
    return " ".join(dict.fromkeys(advice))


def _processes_read(context: CheckContext) -> bool:
    ranks, stacks = context.snapshot.ranks, context.snapshot.stacks
    return (ranks is not None and bool(ranks.processes)) or (
        stacks is not None and any(stack.outcome == "ok" for stack in stacks.stacks)
    )


def is_paused(snapshot: Snapshot) -> bool:
    """Return True if the whole tier is paused: nothing is wrong inside it, and nothing in it goes on."""
    if snapshot.expected.unit is not None and snapshot.expected.unit.paused:
        return True
    alive = [process for process in (snapshot.ranks.processes if snapshot.ranks else ()) if process.is_alive]
    return bool(alive) and all(process.paused for process in alive)


def _unseen(ranks: RanksReading, *, expected: int | None) -> str:
    """Return a sentence if ranks of the tier were not found, but may run elsewhere, so nothing is known of them."""
    alive = [process for process in ranks.processes if process.is_alive]
    numbers = {process.rank for process in alive if process.rank is not None}
    if numbers and expected is not None and ranks.unclaimed and (missing := expected - len(numbers)) > 0:
        others = count(ranks.unclaimed, "process", "processes")
        return f"{missing} of the {expected} ranks were not found; {others} elsewhere may be some of them"
    if expected is None or expected < 2 or len(alive) >= expected or len(alive) < len(ranks.processes):
        return ""
    if not alive or numbers:
        return ""
    return (
        f"none of the {expected} ranks is among the {count(len(alive), 'process', 'processes')} of the unit"
    )


def _subject(suspicions: list[Suspicion]) -> str | None:
    for item in suspicions:
        for row in (*item.evidence.get("processes", ()), *item.evidence.get("ended", ())):
            if row["rank"] is not None:
                return f"rank {row['rank']}"
        if item.evidence.get("odd_ranks"):
            return f"rank {item.evidence['odd_ranks'][0]}"
        if item.evidence.get("missing"):
            first = item.evidence["missing"][0]
            return f"rank {first['rank'] if isinstance(first, dict) else first}"
    return None


COLLECTIVE = Check(
    title="Collectives",
    rules=RULES,
    reads=READS | {"ras", "stacks", "flight_recorder"},
    judge=check_collective,
)
