"""Is a collective stuck? A hang needs two sources: no progress under running requests, and ranks that explain it.

The sources beside the token counter are the kernel's process states, NCCL RAS over two polls, and the ranks' own stacks. A
healthy worker is often inside a collective and an idle one's counts are flat, so none of them counts alone.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from gpu_actions.models import Finding
from gpu_actions.snapshot.collectors.ranks import RankProcess, RanksReading
from gpu_actions.snapshot.collectors.ras import RasCommunicator, RasReading
from gpu_actions.snapshot.progress import Progress
from gpu_actions.triage.checks.context import CheckContext, count, make_finding

STATE_WORDS = {"T": "is stopped", "t": "is held by a debugger", "D": "is blocked in the kernel"}
MAX_LISTED = 16


class Suspicion(NamedTuple):
    """A second source that says collectives are stuck: what it is, one line for people, its figures."""

    source: str
    words: str
    evidence: dict[str, Any]


def check_collective(context: CheckContext, progress: Progress) -> Iterator[Finding]:
    """Findings on ranks and their collectives."""
    if progress.state == "not_expected":
        return
    snapshot = context.snapshot
    suspicions = list(suspicions_of(context, progress))
    if progress.stuck and suspicions:
        stands_s = max(progress.flat_s, 0.1)
        what = (
            "the engine answers nothing"
            if progress.state == "silent"
            else f"{progress.running or 0:g} running, no token for {stands_s:.1f} s"
        )
        yield make_finding(
            "collective.hang",
            f"{suspicions[0].words}: {what}",
            evidence={
                "progress": progress.evidence(),
                "sources": ["token counter", *[item.source for item in suspicions]],
                **{item.source: item.evidence for item in suspicions},
            },
            subject=_subject(suspicions),
        )
    elif progress.state != "down":
        yield from _without_a_stall(suspicions, progress)
    if progress.stuck and not suspicions and not _second_source_read(context):
        yield make_finding(
            "collective.unread",
            f"no token for {progress.flat_s:.1f} s, and neither ranks ({snapshot.why_not('ranks')}) nor RAS "
            f"({snapshot.why_not('ras')}) could be read",
            evidence={"progress": progress.evidence()},
        )
    if (
        snapshot.collectors.get("ranks") is not None
        and snapshot.ranks is None
        and not snapshot.skipped("ranks")
    ):
        yield make_finding("collective.ranks_unread", snapshot.why_not("ranks"))
    if not suspicions and not progress.broken and (snapshot.ranks is not None or _ras_answered(snapshot.ras)):
        live = 0 if snapshot.ranks is None else len(snapshot.ranks.processes)
        yield make_finding("collective.ok", f"{count(live, 'process', 'processes')} of the tier, none stuck")
    if _ras_is_quiet(snapshot.ras) and context.has_gpus:
        assert snapshot.ras is not None  # noqa: S101  (just read)
        yield make_finding(
            "collective.ras_silent",
            f"{snapshot.ras.address}: {snapshot.ras.polls[-1].outcome}",
            evidence={"polls": [poll.outcome for poll in snapshot.ras.polls]},
        )


def _without_a_stall(suspicions: list[Suspicion], progress: Progress) -> Iterator[Finding]:
    rules = {
        "process_states": "collective.rank_frozen",
        "dead_ranks": "collective.rank_dead",
        "ras_mismatch": "collective.mismatch",
        "ras_missing": "collective.ras_missing",
    }
    for item in suspicions:
        unmoved_is_normal = item.source == "ras_mismatch" and progress.state in ("idle", "flowing")
        if item.source in rules and not unmoved_is_normal:
            yield make_finding(rules[item.source], item.words, evidence=item.evidence)


def suspicions_of(context: CheckContext, progress: Progress) -> Iterator[Suspicion]:
    """Everything but the token counter that says that collectives are stuck, the most telling first."""
    snapshot = context.snapshot
    if snapshot.ranks is not None:
        yield from _frozen(snapshot.ranks)
        yield from _dead(snapshot.ranks, expected=snapshot.expected.ranks)
    if snapshot.ras is not None:
        yield from _ras(snapshot.ras, stuck=progress.stuck)
    yield from _inside_collective(context)


def _frozen(ranks: RanksReading) -> Iterator[Suspicion]:
    frozen = [process for process in ranks.processes if stands_still(process)]
    if frozen:
        worst = frozen[0]
        more = f" and {len(frozen) - 1} more" if len(frozen) > 1 else ""
        state = worst.state_last or ""
        yield Suspicion(
            "process_states",
            f"{_name(worst)} {STATE_WORDS.get(state, 'stands still')} ({state}){more}",
            {"processes": [_row(process) for process in frozen[:MAX_LISTED]]},
        )


def stands_still(process: RankProcess) -> bool:
    """Stopped at both looks, or blocked in the kernel at both without using CPU in between."""
    if process.state_first not in STATE_WORDS or process.state_last not in STATE_WORDS:
        return False
    if process.state_first == process.state_last == "D":
        return not process.cpu_s
    return process.state_last != "D" and process.state_first != "D"


def _dead(ranks: RanksReading, *, expected: int | None) -> Iterator[Suspicion]:
    """Ranks that should be there and are not. The main process counts as rank 0 where no worker has that number."""
    if not ranks.processes:
        return
    alive = [process for process in ranks.processes if process.state_last not in ("Z", "X", "gone", None)]
    gone = [process for process in ranks.processes if process not in alive and process.rank is not None]
    numbers = {process.rank for process in alive if process.rank is not None}
    titled = any("worker" in process.name.lower() or "scheduler" in process.name.lower() for process in alive)
    if numbers and not titled and any(process.root and process.rank is None for process in alive):
        numbers.add(0)
    missing: list[int] = []
    if expected is not None and numbers:
        missing = sorted(set(range(expected)) - numbers)
    elif expected is not None and len(alive) < expected:
        missing = list(range(len(alive), expected))
    names = [f"rank {process.rank} (pid {process.pid})" for process in gone] or [f"rank {n}" for n in missing]
    if names:
        yield Suspicion(
            "dead_ranks",
            f"{names[0]} is gone" + (f" and {len(names) - 1} more" if len(names) > 1 else ""),
            {
                "expected": expected,
                "alive": sorted(numbers) if numbers else len(alive),
                "missing": missing,
                "ended": [_row(process) for process in gone[:MAX_LISTED]],
                "zombies": [process.pid for process in ranks.processes if process.state_last == "Z"][
                    :MAX_LISTED
                ],
            },
        )


def _ras(ras: RasReading, *, stuck: bool) -> Iterator[Suspicion]:
    polls = [poll for poll in ras.polls if poll.outcome == "ok"]
    if len(polls) >= 2:
        later = {communicator.id: communicator for communicator in polls[-1].communicators}
        for before in polls[0].communicators:
            after = later.get(before.id)
            if after is not None and unmoved_mismatch(before, after):
                yield Suspicion(
                    "ras_mismatch",
                    f"operation counts of communicator {after.id[:20]} differ and did not move",
                    {"communicator": after.id, "counts": _counts(after), "polls": len(polls)},
                )
                break
    if polls:
        for communicator in polls[-1].communicators:
            if communicator.missing or communicator.missing_count:
                who = communicator.missing[0].rank if communicator.missing else "?"
                yield Suspicion(
                    "ras_missing",
                    f"NCCL RAS has no answer from rank {who}",
                    {"missing": [row.model_dump() for row in communicator.missing[:MAX_LISTED]]},
                )
                break
    elif stuck and len(ras.polls) >= 2 and all(poll.outcome == "silent" for poll in ras.polls):
        yield Suspicion(
            "ras_silent",
            "the process that answers for NCCL RAS accepts but says nothing",
            {"polls": [poll.detail for poll in ras.polls]},
        )


def unmoved_mismatch(before: RasCommunicator, after: RasCommunicator) -> bool:
    """RAS calls it a mismatch in both polls and not one count moved between them."""
    return before.mismatch and after.mismatch and _counts(before) == _counts(after)


def _counts(communicator: RasCommunicator) -> dict[str, dict[str, int]]:
    return {str(rank.rank): dict(rank.counts) for rank in communicator.ranks[:MAX_LISTED]}


def _inside_collective(context: CheckContext) -> Iterator[Suspicion]:
    """All ranks whose stack could be taken stand in a collective; one alone proves nothing unless the others cannot run."""
    stacks = context.snapshot.stacks
    if stacks is None:
        return
    taken = [stack for stack in stacks.stacks if stack.outcome == "ok"]
    inside = [stack for stack in taken if stack.collective is not None]
    enough = min(2, context.snapshot.expected.ranks or 2)
    if taken and len(inside) == len(taken) and len(inside) >= enough:
        yield Suspicion(
            "stacks",
            f"all {count(len(inside), 'rank')} stand in {inside[0].collective}",
            {
                "stacks": [
                    {
                        "pid": stack.pid,
                        "rank": stack.rank,
                        "collective": stack.collective,
                        "top": list(stack.frames[:6]),
                    }
                    for stack in inside[:MAX_LISTED]
                ]
            },
        )


def _second_source_read(context: CheckContext) -> bool:
    snapshot = context.snapshot
    if snapshot.ranks is not None and snapshot.ranks.processes:
        return True
    if snapshot.stacks is not None and any(stack.outcome == "ok" for stack in snapshot.stacks.stacks):
        return True
    return _ras_answered(snapshot.ras)


def _ras_answered(ras: RasReading | None) -> bool:
    return ras is not None and any(poll.outcome == "ok" for poll in ras.polls)


def _ras_is_quiet(ras: RasReading | None) -> bool:
    return ras is not None and bool(ras.polls) and not _ras_answered(ras)


def _name(process: RankProcess) -> str:
    who = process.name or "process"
    return f"{who if process.rank is None else f'rank {process.rank}'} (pid {process.pid})"


def _row(process: RankProcess) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "rank": process.rank,
        "state": process.state_last,
        "state_before": process.state_first,
        "wchan": process.wchan,
        "cpu_s": process.cpu_s,
    }


def _subject(suspicions: list[Suspicion]) -> str | None:
    for item in suspicions:
        for row in (*item.evidence.get("processes", ()), *item.evidence.get("ended", ())):
            if row["rank"] is not None:
                return f"rank {row['rank']}"
        if item.evidence.get("missing"):
            first = item.evidence["missing"][0]
            return f"rank {first['rank'] if isinstance(first, dict) else first}"
    return None
