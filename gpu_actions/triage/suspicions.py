"""Second sources for a hang: what /proc, NCCL RAS and the ranks' stacks say apart from the token counter. Pure."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from gpu_actions.snapshot.collectors.ranks import RankProcess, RanksReading
from gpu_actions.snapshot.collectors.ras import NO_ERROR, RasReading
from gpu_actions.triage.check import CheckContext, count
from gpu_actions.triage.culprit import MAX_LISTED, counts_of, elsewhere_of, odd_ranks, unmoved_mismatch

STATE_WORDS = {"T": "is stopped", "t": "is stopped by a debugger", "D": "is blocked in the kernel"}
PAUSED = "is paused by its control group's freezer"


class Suspicion(NamedTuple):
    """A second source that says that a collective is stuck: its name, a summary, its figures."""

    source: str
    summary: str
    evidence: dict[str, Any]


def suspicions_of(context: CheckContext) -> Iterator[Suspicion]:
    """Yield every source but the token counter that says that a collective is stuck, the most telling first."""
    snapshot = context.snapshot
    if snapshot.ranks is not None:
        yield from _frozen(snapshot.ranks)
        yield from _dead(snapshot.ranks, expected=snapshot.expected.ranks)
    if snapshot.ras is not None:
        yield from _ras(snapshot.ras, stuck=context.progress.stuck)
    yield from _inside_collective(context)
    is_counted = unmoved_mismatch(snapshot.ras) is not None  # NCCL's counts are not a source twice
    if context.progress.stuck and not is_counted and (elsewhere := elsewhere_of(snapshot)):
        more = f" and {len(elsewhere) - 1} more" if len(elsewhere) > 1 else ""
        yield Suspicion(
            "left_behind",
            f"{elsewhere[0].text}{more}",
            {"ranks": [culprit.evidence() for culprit in elsewhere[:MAX_LISTED]]},
        )


def _frozen(ranks: RanksReading) -> Iterator[Suspicion]:
    frozen = [process for process in ranks.processes if is_frozen(process)]
    if frozen:
        worst = frozen[0]
        more = f" and {len(frozen) - 1} more" if len(frozen) > 1 else ""
        state = worst.state_last or ""
        words = (
            f"{PAUSED} ({worst.container or state})" if worst.paused else f"{STATE_WORDS[state]} ({state})"
        )
        yield Suspicion(
            "process_states",
            f"{_name(worst)} {words}{more}",
            {"processes": [_row(process) for process in frozen[:MAX_LISTED]]},
        )


def is_frozen(process: RankProcess) -> bool:
    """Return True if it is paused, was stopped at both readings, or blocked in the kernel at both without using CPU."""
    if process.paused and process.is_alive:
        return True
    if process.state_first not in STATE_WORDS or process.state_last not in STATE_WORDS:
        return False
    if process.state_first == process.state_last == "D":
        return not process.cpu_s
    return process.state_last != "D" and process.state_first != "D"


def _dead(ranks: RanksReading, *, expected: int | None) -> Iterator[Suspicion]:
    """Find ranks that are missing. The main process counts as rank 0 if no worker has that number."""
    if not ranks.processes:
        return
    alive = [process for process in ranks.processes if process.is_alive]
    gone = [process for process in ranks.processes if process not in alive and process.rank is not None]
    numbers = {process.rank for process in alive if process.rank is not None}
    titled = any(
        process.coordinates or "worker" in process.name.lower() or "scheduler" in process.name.lower()
        for process in alive
    )
    if numbers and not titled and any(process.root and process.rank is None for process in alive):
        numbers.add(0)
    missing: list[int] = []
    ended = [process for process in ranks.processes if process not in alive]
    if expected is not None and numbers and not _some_elsewhere(ranks):
        missing = sorted(set(range(expected)) - numbers)
    elif expected is not None and len(alive) < expected and ended:
        gone = ended  # their numbers are not known
    names = [_name(process) for process in gone] or [f"rank {number}" for number in missing]
    if names:
        zombies = [process.pid for process in ranks.processes if process.state_last == "Z"]
        yield Suspicion(
            "dead_ranks",
            f"{names[0]} is gone" + (f" and {len(names) - 1} more" if len(names) > 1 else ""),
            {
                "expected": expected,
                "alive": sorted(numbers) if numbers else len(alive),
                "missing": missing,
                "ended": [_row(process) for process in gone[:MAX_LISTED]],
                "zombies": zombies[:MAX_LISTED],
            },
        )


def _some_elsewhere(ranks: RanksReading) -> bool:
    """Return True if there are processes that may be the ranks whose numbers are missing: those ranks are not called dead."""
    unnumbered = any(row.found_by == "gpu" and row.rank is None and row.is_alive for row in ranks.processes)
    return ranks.unclaimed > 0 or unnumbered


def _ras(ras: RasReading, *, stuck: bool) -> Iterator[Suspicion]:
    polls = [poll for poll in ras.polls if poll.outcome == "ok"]
    if (after := unmoved_mismatch(ras)) is not None:
        odd, words = odd_ranks(after)
        yield Suspicion(
            "ras_mismatch",
            f"{words}: operation counts of communicator {after.id[:20]} differ and did not move",
            {
                "communicator": after.id,
                "counts": counts_of(after),
                "polls": len(polls),
                "odd_ranks": odd,
            },
        )
    if polls:
        for communicator in polls[-1].communicators:
            if communicator.has_error:
                failed = [row for row in communicator.ranks if row.async_error not in NO_ERROR]
                who = f"rank {failed[0].rank}: NCCL error {failed[0].async_error}" if failed else "a rank"
                yield Suspicion(
                    "ras_error",
                    f"NCCL RAS reports an error of communicator {communicator.id[:20]} ({who})",
                    {
                        "communicator": communicator.id,
                        "failed": [row.model_dump() for row in failed[:MAX_LISTED]],
                    },
                )
                break
        for communicator in polls[-1].communicators:
            if communicator.missing or communicator.missing_count:
                named = communicator.missing[:1]
                lost = f"rank {named[0].rank}" if named else count(communicator.missing_count, "rank")
                yield Suspicion(
                    "ras_missing",
                    f"NCCL RAS gets no answer from {lost}",
                    {"missing": [row.model_dump() for row in communicator.missing[:MAX_LISTED]]},
                )
                break
    elif stuck and len(ras.polls) >= 2 and all(poll.outcome == "silent" for poll in ras.polls):
        yield Suspicion(
            "ras_silent",
            "the process that serves NCCL RAS accepts connections but does not answer",
            {"polls": [poll.detail for poll in ras.polls]},
        )


def _inside_collective(context: CheckContext) -> Iterator[Suspicion]:
    """Find ranks that are all inside a collective. A single stack counts only if the tier has a single rank."""
    stacks = context.snapshot.stacks
    if stacks is None:
        return
    taken = [stack for stack in stacks.stacks if stack.outcome == "ok"]
    inside = [stack for stack in taken if stack.collective is not None]
    if taken and len(inside) == len(taken) and len(inside) >= min(2, context.snapshot.expected.ranks or 2):
        names = sorted({str(stack.collective) for stack in inside})
        yield Suspicion(
            "stacks",
            f"all {count(len(inside), 'rank')} are in {' or '.join(names)}",
            {
                "stacks": [
                    {**stack.model_dump(include={"pid", "rank", "collective"}), "top": list(stack.frames[:6])}
                    for stack in inside[:MAX_LISTED]
                ]
            },
        )


def _name(process: RankProcess) -> str:
    who = process.name or "process" if process.rank is None else f"rank {process.rank}"
    if len(process.coordinates) > 1 or "DP" in process.coordinates:
        who += f" {' '.join(f'{axis}{number}' for axis, number in process.coordinates.items())}"
    return f"{who} (pid {process.pid})"


def _row(process: RankProcess) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "rank": process.rank,
        "state": process.state_last,
        "state_before": process.state_first,
        "wchan": process.wchan,
        "cpu_s": process.cpu_s,
        **({"gpu": process.gpu} if process.gpu is not None else {}),
        **({"container": process.container} if process.container else {}),
        **({"paused": True} if process.paused else {}),
    }
