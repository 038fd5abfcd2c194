"""Hosts whose ranks are lost, stopped or in different collectives, and the verdict and cause that must follow."""

from collections.abc import Callable
from typing import Any

from gpu_actions.snapshot.collectors.flight_recorder import FlightDump, FlightReading, RecordedCollective
from gpu_actions.snapshot.collectors.ranks import RankProcess, RanksReading
from gpu_actions.snapshot.collectors.ras import RasCommunicator, RasMissingRank, RasPoll, RasRank, RasReading
from gpu_actions.snapshot.collectors.stacks import StackReading, StacksReading
from gpu_actions.snapshot.model import Snapshot
from tests.gpu_actions.triage import builders as make

FLAT = make.engine(tokens=(1000, 1000))
HUNG = make.completion("timeout", tokens=0)
HANG, WATCH, HEALTHY = ("fall_back", "nccl_hang"), ("watch", "nccl_hang"), ("healthy", "none")


def stuck(**changes: Any) -> Callable[[], Snapshot]:
    return lambda: make.healthy(**{"engine": FLAT, "completion": HUNG, "ras": None, **changes})


def serving(**changes: Any) -> Callable[[], Snapshot]:
    return lambda: make.healthy(**changes)


def tier(*workers: RankProcess, root: str = "S") -> RanksReading:
    return RanksReading(roots=(100,), processes=(make.process(100, None, root, root=True), *workers))


def workers(count: int, *, ended: tuple[int, ...] = (), **changes: Any) -> RanksReading:
    """Return the main process and workers 0, 1, ... without a rank in their command lines, some of them gone."""
    states = ["gone" if number in ended else "S" for number in range(count)]
    rows = [make.process(201 + number, None, state, **changes) for number, state in enumerate(states)]
    return tier(*rows)


def titled(*coordinates: dict[str, int], gone: int = 0, **changes: Any) -> RanksReading:
    """Return ranks 0, 1, ... with the coordinates of their titles; the last ones are gone."""
    rows = [
        make.process(200 + number, number, "S", coordinates=where, **changes)
        for number, where in enumerate(coordinates)
    ]
    kept = len(rows) - gone
    return tier(*rows[:kept], *(row.model_copy(update={"state_last": "gone"}) for row in rows[kept:]))


def blocked(first: str, last: str, cpu_s: float | None = 0.0, wchan: str | None = None) -> RanksReading:
    """Return eight ranks of which rank 2 had these states at both ends of the window."""
    changes = {"state_first": first, "state_last": last, "cpu_s": cpu_s, "wchan": wchan}
    rows = [row.model_copy(update=changes) if row.rank == 2 else row for row in make.ranks(8).processes]
    return make.ranks(8).model_copy(update={"processes": tuple(rows)})


def stacks(*where: str | None, **changes: Any) -> StacksReading:
    """Return stacks of ranks 0, 1, ...: inside this collective, or outside of any (None)."""
    rows = [
        StackReading(pid=200 + rank, rank=rank, collective=name, frames=tuple(f"frame {n}" for n in range(9)))
        for rank, name in enumerate(where)
    ]
    return StacksReading(stacks=tuple(row.model_copy(update=changes) for row in rows))


def polls(*communicators: RasCommunicator, outcome: str = "ok") -> RasReading:
    """Return two polls in which these communicators did not move."""
    rows = [
        RasPoll.model_validate({"at_s": at_s, "outcome": outcome, "communicators": communicators})
        for at_s in (0.0, 3.0)
    ]
    return RasReading(address="127.0.0.1:28028", polls=tuple(rows))


def both(first: RasReading, last: RasReading) -> RasReading:
    """Return the first poll of two readings."""
    return RasReading(address="a", polls=(first.polls[0], last.polls[0]))


def communicator(*counts: dict[str, int], name: str = "0xabc", **changes: Any) -> RasCommunicator:
    rows = tuple(RasRank(rank=rank, pid=200 + rank, counts=row) for rank, row in enumerate(counts))
    return RasCommunicator(id=name, size=len(counts), ranks=rows).model_copy(update=changes)


def reduced(*counts: int, **changes: Any) -> RasCommunicator:
    return communicator(*({"AllReduce": number} for number in counts), **{"mismatch": True, **changes})


def failing(*errors: int, **changes: Any) -> RasCommunicator:
    rows = tuple(RasRank(rank=rank, async_error=error) for rank, error in enumerate(errors))
    return RasCommunicator(id="0x1234567890abcdef1234", ranks=rows, has_error=True).model_copy(update=changes)


def dumps(*groups: dict[int, tuple[int, str, str]]) -> FlightReading:
    """Return dumps of the ranks with their newest collective of each process group: sequence, operation, sizes."""
    found = []
    for rank in sorted({rank for group in groups for rank in group}):
        entries = [
            RecordedCollective(group=f"g{number}", sequence=row[0], operation=row[1], sizes=row[2])
            for number, group in enumerate(groups)
            if (row := group.get(rank))
        ]
        found.append(FlightDump(rank=rank, pid=200 + rank, age_s=1, entries=tuple(entries)))
    return FlightReading(dumps=tuple(found))


EQUAL = reduced(9, 9, mismatch=False)
TWO_KINDS = {"AllReduce": 9, "Bcast": 1}
LOST = (RasMissingRank(rank=4), RasMissingRank(rank=6))
SUM, CAST = ("all_reduce", "[[8]]"), ("broadcast", "[[1]]")
ANONYMOUS = reduced(9, 9, 8).model_copy(
    update={"ranks": (*reduced(9).ranks, RasRank(rank=-3, counts={"AllReduce": 8}))}
)

CASES: dict[str, tuple[Any, ...]] = {
    # lost ranks
    "two of eight ranks are gone": (
        stuck(ranks=titled(*({"TP": n} for n in range(8)), gone=2)), *HANG
    ),
    "one of four workers without a rank is gone": (
        stuck(ranks=workers(3, ended=(1,)), expected={"ranks": 4}), *HANG
    ),
    "two of six workers without a rank are gone while the tier is idle": (
        serving(ranks=workers(5, ended=(1, 2)), expected={"ranks": 6}), *WATCH
    ),
    "a short-lived helper ended and all ranks live": (
        serving(ranks=workers(3, ended=(2,)), expected={"ranks": 3}), *HEALTHY
    ),
    "a helper ended and nobody says how many ranks there are": (
        serving(ranks=workers(3, ended=(2,)), expected={"ranks": None}), *HEALTHY
    ),
    "the main process computes as rank 0": (
        serving(ranks=tier(*(make.process(200 + n, n) for n in (1, 2, 3))), expected={"ranks": 4}), *HEALTHY
    ),
    "rank 0 is missing beside a main process that only starts workers": (
        serving(ranks=tier(*(make.process(200 + n, n, name="VllmWorker") for n in (1, 2, 3))), expected={"ranks": 4}), *WATCH
    ),
    "rank 0 is missing among schedulers": (
        serving(ranks=tier(*(make.process(200 + n, n, name="sgl_Scheduler") for n in (1, 2))), expected={"ranks": 3}), *WATCH
    ),
    "rank 0 is missing and no main process is known": (
        serving(ranks=RanksReading(processes=(make.process(201, 1), make.process(202, 2))), expected={"ranks": 3}), *WATCH
    ),
    "ranks that run outside the unit": (
        serving(ranks=workers(2), expected={"ranks": 8}), *HEALTHY
    ),
    "two of eight ranks were not found, one process elsewhere may be one": (
        serving(ranks=make.ranks(6).model_copy(update={"unclaimed": 1})), *HEALTHY
    ),
    "one of eight ranks was not found, three processes elsewhere may be it, under a stall": (
        stuck(ranks=make.ranks(7).model_copy(update={"unclaimed": 3})), "unknown", "engine_stalled"
    ),
    "all ranks were found beside processes that may be some": (
        serving(ranks=make.ranks(8).model_copy(update={"unclaimed": 2})), *HEALTHY
    ),
    "one of three ranks is gone, and one process elsewhere may be another": (
        serving(
            ranks=tier(make.process(200, 0), make.process(201, 1, "gone")).model_copy(update={"unclaimed": 1}),
            expected={"ranks": 3},
        ),
        *WATCH,
    ),
    "a stopped rank on a known GPU": (
        stuck(ranks=tier(*(make.process(200 + n, n, "T" if n == 5 else "S", gpu=n) for n in range(8)))), *HANG
    ),
    "one process of two ranks is seen": (
        serving(ranks=workers(0), expected={"ranks": 2}), *HEALTHY
    ),
    "as many processes as ranks": (serving(ranks=workers(1), expected={"ranks": 2}), *HEALTHY),
    "one process less than ranks, after one ended": (
        serving(ranks=workers(3, ended=(0,)), expected={"ranks": 4}), *WATCH
    ),
    "rank 0 is missing among schedulers under a stall": (
        stuck(ranks=tier(*(make.process(200 + n, n, name="sgl_Scheduler") for n in (1, 2))), expected={"ranks": 3}), *HANG
    ),
    "rank 0 is missing beside a helper": (
        serving(
            ranks=RanksReading(processes=(make.process(200, None), make.process(201, 1), make.process(202, 2))),
            expected={"ranks": 3},
        ),
        *WATCH,
    ),
    # states
    "stopped ranks of a tier that is not to serve": (
        serving(ranks=make.ranks(8, r1="T"), expected={"tier_expected": False}), *HEALTHY
    ),
    "two stopped ranks": (stuck(ranks=make.ranks(8, r1="T", r2="T")), *HANG),
    "a main process blocked in the kernel": (
        stuck(
            ranks=RanksReading(
                roots=(100,),
                processes=(make.process(100, None, "D", root=True, cpu_s=0.0), *make.ranks(8).processes[1:]),
            )
        ),
        *HANG,
    ),
    "four stopped workers without a rank": (
        stuck(ranks=tier(*(make.process(201 + n, None, "T") for n in range(4))), expected={"ranks": 4}), *HANG
    ),
    "three stopped ranks of an idle tier": (
        serving(ranks=make.ranks(8, r1="T", r2="T", r5="t")), *WATCH
    ),
    "a stopped main process": (stuck(ranks=tier(*make.ranks(8).processes[1:], root="T")), *HANG),
    "a stopped main process without a name": (
        stuck(
            ranks=RanksReading(
                roots=(100,),
                processes=(make.process(100, None, "T", root=True, name=""), *make.ranks(8).processes[1:]),
            )
        ),
        *HANG,
    ),
    "a stopped rank of a replica": (
        stuck(ranks=tier(*(make.process(200 + n, n, "T" if n == 3 else "S", coordinates={"DP": n}) for n in range(8)))), *HANG
    ),
    "a stopped rank of a pipeline stage": (
        stuck(
            ranks=tier(
                *(make.process(200 + n, n, "T" if n == 3 else "S", coordinates={"PP": n // 4, "TP": n % 4}) for n in range(8))
            )
        ),
        *HANG,
    ),
    "a stopped rank that its title only numbers": (
        stuck(ranks=tier(*(make.process(200 + n, n, "T" if n == 3 else "S", coordinates={"TP": n}) for n in range(8)))), *HANG
    ),
    "a rank that was stopped and then blocked": (stuck(ranks=blocked("T", "D")), "unknown", "engine_stalled"),
    "a rank that was blocked and then stopped": (stuck(ranks=blocked("D", "T")), "unknown", "engine_stalled"),
    "a rank that was just stopped": (stuck(ranks=blocked("S", "T")), "unknown", "engine_stalled"),
    "a rank that just goes on": (stuck(ranks=blocked("T", "S")), "unknown", "engine_stalled"),
    "a rank that a debugger lets go on": (stuck(ranks=blocked("T", "t")), *HANG),
    "a rank that reads a disk for long, at work": (
        stuck(ranks=blocked("D", "D", cpu_s=0.4)), "unknown", "engine_stalled"
    ),
    "a rank blocked on a disk": (stuck(ranks=blocked("D", "D", wchan="io_schedule")), *HANG),
    "a rank blocked in the driver of its GPU": (stuck(ranks=blocked("D", "D", wchan="os_acquire_mutex")), *HANG),
    "a rank blocked in a function of the kernel that says nothing": (
        stuck(ranks=blocked("D", "D", wchan="msleep")), *HANG
    ),
    "a rank blocked in an unknown function": (stuck(ranks=blocked("D", "D")), *HANG),
    # stacks
    "the only rank of a tier is in a collective": (
        stuck(stacks=stacks("barrier"), expected={"ranks": 1}, ranks=make.ranks(1)), "fall_back", "engine_stalled"
    ),
    "two of two ranks are in collectives": (stuck(stacks=stacks("all_gather", "barrier")), *HANG),
    "one stack of eight ranks, in a collective": (stuck(stacks=stacks("barrier")), "unknown", "engine_stalled"),
    "one stack where nobody says how many ranks there are": (
        stuck(stacks=stacks("barrier"), expected={"ranks": None}), "unknown", "engine_stalled"
    ),
    "two stacks where nobody says how many ranks there are": (
        stuck(stacks=stacks("barrier", "barrier"), expected={"ranks": None}), *HANG
    ),
    "no stack could be taken": (
        stuck(stacks=stacks("barrier", None, outcome="failed")), "unknown", "engine_stalled"
    ),
    "stacks are the only source, and half of the ranks are elsewhere": (
        stuck(ranks=None, stacks=stacks("barrier", None)), "unknown", "engine_stalled"
    ),
    "failed stacks are the only source": (
        stuck(ranks=None, stacks=stacks("barrier", outcome="failed")), "unknown", "engine_stalled"
    ),
    "two ranks are outside the collective of six": (stuck(stacks=stacks(*["barrier"] * 6, None, None)), *HANG),
    "a rank is outside the collective, its stack without a frame": (
        stuck(stacks=stacks("barrier", "barrier", None, frames=())), "unknown", "engine_stalled"
    ),
    "a process without a rank is outside the collective": (
        stuck(
            stacks=StacksReading(stacks=(*stacks("barrier", "barrier").stacks, StackReading(pid=100, frames=("main",))))
        ),
        "unknown",
        "engine_stalled",
    ),
    # NCCL RAS
    "RAS counts of other collectives differ too": (
        stuck(ras=polls(communicator(TWO_KINDS, {"AllReduce": 9}, TWO_KINDS, mismatch=True))),
        *HANG,
    ),
    "two ranks are behind in RAS": (stuck(ras=polls(reduced(9, 8, 9, 8, 9))), *HANG),
    "rank 0 is ahead in RAS": (stuck(ras=polls(reduced(9, 8, 8))), *HANG),
    "RAS groups the ranks that are behind and names the other": (stuck(ras=polls(ANONYMOUS)), *HANG),
    "RAS says that counts differ and names no rank": (
        stuck(ras=polls(RasCommunicator(id="0xabc", mismatch=True, ranks=(RasRank(rank=-8, counts={"AllReduce": 8}),)))), *HANG
    ),
    "the second communicator of RAS differs": (
        stuck(ras=polls(reduced(9, 9, mismatch=False, name="0x1"), reduced(9, 8, name="0x2"), reduced(7, 8, name="0x3"))), *HANG
    ),
    "a communicator that ended in between": (
        stuck(
            ras=both(polls(reduced(9, 8, name="0x1")), polls(EQUAL))
        ),
        "unknown",
        "engine_stalled",
    ),
    "RAS counts that have just begun to differ": (
        stuck(ras=both(polls(reduced(9, 8, mismatch=False)), polls(reduced(9, 8)))),
        "unknown",
        "engine_stalled",
    ),
    "RAS counts that differed in the first poll and moved by the last of three": (
        stuck(
            ras=RasReading(
                address="a",
                polls=(*polls(reduced(9, 8)).polls, *polls(reduced(11, 10)).polls[:1]),
            )
        ),
        "unknown",
        "engine_stalled",
    ),
    "RAS that was refused, then answers": (
        serving(ras=both(polls(outcome="refused"), polls(reduced(9, 8)))), *HEALTHY
    ),
    "RAS that answered, then was silent": (
        serving(ras=both(polls(EQUAL), polls(outcome="silent"))),
        *HEALTHY,
    ),
    "RAS that was silent, then refused": (
        serving(ras=both(polls(outcome="silent"), polls(outcome="refused"))), *HEALTHY
    ),
    "an NCCL error of one rank while the tier serves": (serving(ras=polls(failing(0, 7, 3, 6))), *WATCH),
    "an NCCL error of a stuck tier": (stuck(ras=polls(failing(0, 3))), *HANG),
    "an NCCL error of a tier whose counts differ": (
        stuck(ras=polls(reduced(9, 8, name="0x1234567890abcdef1234", has_error=True))), *HANG
    ),
    "an NCCL error of which RAS does not say where": (serving(ras=polls(failing(0, 7))), *WATCH),
    "an NCCL error and a rank that RAS misses": (
        stuck(ras=polls(EQUAL, failing(3, missing=LOST))), *HANG
    ),
    "ranks that RAS misses without their numbers": (
        serving(ras=polls(reduced(9, 9, mismatch=False, missing_count=2))), *WATCH
    ),
    "an error in the last of three polls": (
        serving(
            ras=RasReading(
                address="a",
                polls=(*polls(EQUAL).polls, *polls(failing(3)).polls[:1]),
            )
        ),
        *WATCH,
    ),
    "a single silent poll of RAS": (
        stuck(ras=RasReading(address="a", polls=polls(outcome="silent").polls[:1])), "unknown", "engine_stalled"
    ),
    # flight recorder
    "a rank in another collective, by the second group of the recorder": (
        stuck(flight_recorder=dumps({0: (5, *SUM)}, {0: (9, *SUM), 1: (9, *CAST), 2: (9, *SUM)})), *HANG
    ),
    "one of two ranks behind by the recorder": (
        stuck(flight_recorder=dumps({0: (9, *SUM), 1: (8, *SUM)})), *HANG
    ),
    "groups of the recorder that count apart": (
        stuck(flight_recorder=dumps({0: (5, *SUM), 1: (5, *SUM)}, {2: (9, *SUM), 3: (9, *SUM)})), "unknown", "engine_stalled"
    ),
    "two ranks behind by the recorder": (
        stuck(flight_recorder=dumps({0: (9, *SUM), 1: (8, *CAST), 2: (7, *SUM)})), *HANG
    ),
    "four stopped ranks": (stuck(ranks=make.ranks(8, r1="T", r2="T", r4="T", r5="T")), *HANG),
    "a stopped rank that RAS shows behind": (stuck(ranks=make.ranks(8, r1="T"), ras=polls(reduced(9, 8, 9))), *HANG),
    "a rank in another collective, while all are in some": (
        stuck(
            stacks=stacks("all_reduce", "broadcast", "all_reduce"),
            flight_recorder=dumps({0: (9, *SUM), 1: (9, *CAST), 2: (9, *SUM)}),
        ),
        *HANG,
    ),
    "nothing to read of ranks, all ranks in a collective": (
        stuck(ranks=None, stacks=stacks("barrier", "barrier")), *HANG
    ),
}  # fmt: skip
