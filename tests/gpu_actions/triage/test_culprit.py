"""The rank that the others wait for: by its state, by flight recorder dumps of real processes, by its stack; never a guess."""

from typing import Any

import pytest

from gpu_actions.snapshot.collectors.activity import ActivityReading
from gpu_actions.snapshot.collectors.flight_recorder import (
    FlightDump,
    FlightReading,
    RecordedCollective,
)
from gpu_actions.snapshot.collectors.nvml import GpuProcess, GpuReading, GpuSample
from gpu_actions.snapshot.collectors.ranks import RankProcess, RanksReading
from gpu_actions.snapshot.collectors.stacks import StackReading, StacksReading, both
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.target import UnitFacts
from gpu_actions.triage.culprit import Culprit, Kind, culprits_of
from gpu_actions.triage.judge import judge
from tests.gpu_actions.triage import builders as make
from tests.gpu_actions.triage.cases import CASES as HOSTS
from tests.gpu_actions.triage.cases_serving import REFUSED

FLAT = make.engine(tokens=(1000, 1000))
HUNG = make.completion("timeout", tokens=0)


def stuck(**changes: Any) -> Snapshot:
    return make.healthy(**{"engine": FLAT, "completion": HUNG, "ras": None, **changes})


def dumps(*entries: tuple[int, str, str], group: str = "tp") -> FlightReading:
    """Return dumps of ranks 0, 1, ... with their newest collective: sequence, operation, sizes."""
    return FlightReading(
        dumps=tuple(
            FlightDump(
                rank=rank, pid=200 + rank, age_s=1,
                entries=(RecordedCollective(group=group, sequence=number, operation=name, sizes=sizes, state="started"),),
            )
            for rank, (number, name, sizes) in enumerate(entries)
        )
    )  # fmt: skip


def stacks(*where: str | None) -> StacksReading:
    """Return stacks of ranks 0, 1, ...: inside an all-reduce (None), or in a function."""
    return StacksReading(
        stacks=tuple(
            StackReading(
                pid=200 + rank,
                rank=rank,
                collective="all_reduce" if name is None else None,
                frames=(name or "all_reduce (d.py:1)",),
            )
            for rank, name in enumerate(where)
        )
    )


def blocked(rank: int, wchan: str) -> RanksReading:
    reading = make.ranks(4)
    processes = tuple(
        one.model_copy(update={"state_first": "D", "state_last": "D", "wchan": wchan, "cpu_s": 0.0})
        if one.rank == rank
        else one
        for one in reading.processes
    )
    return reading.model_copy(update={"processes": processes})


SUM = ("nccl:all_reduce", "[[8, 4096]]")
NFS = "rpc_wait_bit_killable"
OTHER = (9, "nccl:broadcast", "[[1]]")
LONGER = (9, "nccl:all_reduce", "[[8, 4097]]")
CASES: dict[str, tuple[Snapshot, list[tuple[int, Kind]], str]] = {
    "a stopped rank": (stuck(ranks=make.ranks(8, r1="T")), [(1, Kind.STOPPED)], "kill -CONT 201"),
    "two stopped ranks": (
        stuck(ranks=make.ranks(8, r1="T", r5="T")), [(1, Kind.STOPPED), (5, Kind.STOPPED)], "kill -CONT 205"
    ),
    "a zombie": (stuck(ranks=make.ranks(8, r3="Z")), [(3, Kind.DEAD)], "a rank does not come back alone"),
    "a rank blocked in the driver": (stuck(ranks=blocked(2, "nvidia_ioctl")), [(2, Kind.LINK)], "Look at its GPU"),
    "a rank that waits for a network file system": (stuck(ranks=blocked(2, NFS)), [(2, Kind.HOST)], "file systems"),
    "a rank that is a collective behind": (
        stuck(flight_recorder=dumps((9, *SUM), (9, *SUM), (8, *SUM), (9, *SUM))), [(2, Kind.BEHIND)], ""
    ),
    "a rank in another collective": (
        stuck(flight_recorder=dumps((9, *SUM), (9, *SUM), OTHER, (9, *SUM))), [(2, Kind.OTHER_COLLECTIVE)], ""
    ),
    "a rank with another size": (
        stuck(flight_recorder=dumps((9, *SUM), LONGER, (9, *SUM))), [(1, Kind.OTHER_COLLECTIVE)], ""
    ),
    "a rank outside the collective": (
        stuck(stacks=stacks(None, None, "load_weights (loader.py:12)", None)), [(2, Kind.OUTSIDE)], ""
    ),
    "a stopped rank beside a dump that names another": (
        stuck(ranks=make.ranks(4, r1="T"), flight_recorder=dumps((9, *SUM), (8, *SUM), (9, *SUM))), [(1, Kind.STOPPED)], ""
    ),
}  # fmt: skip


def blocked_in(wchan: str, frame: str | None) -> StacksReading:
    *others, last = stacks(None, None, None, frame).stacks
    return StacksReading(stacks=(*others, last.model_copy(update={"blocked": wchan})))


@pytest.mark.parametrize("name", CASES)
def test_the_rank_that_the_others_wait_for_is_named_with_the_kind(name: str) -> None:
    snapshot, expected, todo = CASES[name]
    assert [(one.rank, one.kind) for one in culprits_of(snapshot)] == expected
    verdict = judge(snapshot)
    assert (verdict.verdict, verdict.cause) == ("fall_back", "nccl_hang"), verdict.findings
    hang = next(finding for finding in verdict.findings if finding.id == "collective.hang")
    assert hang.subject == f"rank {expected[0][0]}"
    assert f"rank {expected[0][0]} " in hang.summary
    assert todo in hang.action
    assert [row["rank"] for row in hang.evidence["culprits"]] == [rank for rank, _ in expected]


@pytest.mark.parametrize(
    ("wchan", "frame", "kind", "where"),
    [
        ("nvidia_close", None, Kind.LINK, "nvidia_close, pid 203"),
        ("kernel_clone", "start (a.py:1)", Kind.KERNEL, "kernel_clone, pid 203; start (a.py:1)"),
        ("", "load (a.py:1)", Kind.KERNEL, "unknown function, pid 203; load (a.py:1)"),
        ("mem_cgroup_over_high", "load (a.py:1)", Kind.HOST, "mem_cgroup_over_high, pid 203; load (a.py:1)"),
    ],
)  # fmt: skip
def test_a_rank_of_which_the_kernel_blocks_a_thread_is_told_from_one_that_is_only_elsewhere(
    wchan: str, frame: str | None, kind: Kind, where: str
) -> None:
    rows = blocked_in(wchan, frame)
    (found,) = culprits_of(stuck(stacks=rows, ranks=make.ranks(4), expected={"ranks": 4}))
    assert (found.rank, found.kind, found.where) == (3, kind, where)
    counts = [9, 9, 9, 8]
    (behind,) = culprits_of(stuck(stacks=rows, ras=make.ras(counts, counts), expected={"ranks": 4}))
    assert behind.rank == 3 and behind.kind is (kind if frame else Kind.BEHIND)


@pytest.mark.parametrize(
    ("held", "read", "expected", "named"),
    [
        ((0,), 2, 2, [0]),
        ((0, 1), 2, 2, []),
        ((1,), 2, 4, []),
        ((0,), 3, 3, [0]),
        ((1, 2), 3, 3, []),
        ((2, 4, 7), 8, 8, [2, 4, 7]),
        ((0, 2, 4, 7), 8, 8, []),
        ((0, 2, 4, 7, 1), 8, 8, []),
    ],
)
def test_ranks_of_which_the_kernel_blocks_a_thread_are_named_if_they_are_the_fewer_ones(
    held: tuple[int, ...], read: int, expected: int, named: list[int]
) -> None:
    rows = tuple(
        one.model_copy(update={"blocked": "uvm_wait"}) if one.rank in held else one
        for one in stacks(*[None] * read).stacks
    )
    found = culprits_of(
        stuck(stacks=StacksReading(stacks=rows), ranks=make.ranks(expected), expected={"ranks": expected})
    )
    assert [one.rank for one in found] == named
    assert all(one.where.endswith(f"pid {200 + one.rank}") for one in found)


@pytest.mark.parametrize("wchan", ["", "jbd2_log_wait_commit"])
def test_a_thread_that_writes_a_file_makes_no_rank_inside_a_collective_the_culprit(wchan: str) -> None:
    assert culprits_of(stuck(stacks=blocked_in(wchan, None), ranks=make.ranks(4))) == ()


def test_a_child_between_fork_and_exec_does_not_count_as_a_second_rank() -> None:
    """It has its rank's command line, so a rank that starts a program would be outvoted by itself."""
    outside = StackReading(pid=300, rank=1, frames=("start_program (a.py:1)",))
    reading = StacksReading(stacks=(*stacks(None, "start_program (a.py:1)").stacks, outside))
    pair = stuck(stacks=reading, expected={"gpus": 2, "ranks": 2})
    assert [(one.rank, one.kind) for one in culprits_of(pair)] == [(1, Kind.OUTSIDE)]


def test_a_rank_that_waits_for_its_gpu_in_native_code_is_a_victim() -> None:
    first, second = stacks(None, "pick_tokens (model.py:3)").stacks
    waits = second.model_copy(update={"waits_for_gpu": True})
    assert culprits_of(stuck(stacks=StacksReading(stacks=(first, waits)))) == ()


@pytest.mark.parametrize(
    ("percent", "named"), [((100, 0), [1]), ((100, 100), []), ((0, 0), []), ((50, 0), [])]
)
def test_a_rank_whose_gpu_does_nothing_while_the_others_spin_is_named(
    percent: tuple[int, int], named: list[int]
) -> None:
    gpus = tuple(
        GpuReading(
            index=rank,
            processes=(GpuProcess(pid=200 + rank),),
            last=GpuSample(utilisation_percent=value, power_w=120),
        )
        for rank, value in enumerate(percent)
    )
    base = stuck(nvml=None, ranks=make.ranks(2), activity=ActivityReading(gpus=gpus))
    assert [one.rank for one in culprits_of(base)] == named


def test_nccls_counts_name_the_rank_and_its_stack_says_where_it_is() -> None:
    counts = make.ras([40, 39, 40], [40, 39, 40])
    assert culprits_of(stuck(ras=counts)) == (Culprit(1, Kind.BEHIND, "by NCCL RAS"),)
    (placed,) = culprits_of(
        stuck(ras=counts, stacks=stacks("item (a.py:1)", "read_config (b.py:7)", "item (a.py:1)"))
    )
    assert (placed.rank, placed.kind, placed.where) == (1, Kind.OUTSIDE, "read_config (b.py:7); by NCCL RAS")


def test_a_loop_that_spins_is_in_the_same_function_though_in_another_line() -> None:
    first, second = (StackReading(pid=1, rank=0, frames=(f"spin (a.py:{line})",)) for line in (7, 9))
    assert both(first, second).steady


def test_a_rank_in_another_collective_than_most_is_named_by_its_stack() -> None:
    base = stacks(None, None, None, None).stacks
    odd = base[2].model_copy(update={"collective": "broadcast"})
    found = culprits_of(stuck(stacks=StacksReading(stacks=(*base[:2], odd, base[3]))))
    assert found == (Culprit(2, Kind.OTHER_COLLECTIVE, "broadcast instead of all_reduce"),)
    assert culprits_of(stuck(stacks=StacksReading(stacks=(base[0], odd)))) == ()


def test_a_straggler_is_named_where_tokens_come_slowly() -> None:
    base = make.healthy(completion=HUNG, stacks=stacks(None, "sleep (a.py:1)", None), ras=None)
    found = {finding.id: finding for finding in judge(base).findings}
    assert found["collective.straggler"].summary.startswith("rank 1 is slow (sleep (a.py:1))")
    assert found["collective.straggler"].severity == "watch"


def test_the_rank_whose_death_ended_the_engine_is_named_from_its_log() -> None:
    facts = UnitFacts(log_errors=("rank 1 (pid 77) died: killed by SIGKILL",))
    refused = {"engine": REFUSED, "completion": make.completion("refused")}
    verdict = judge(stuck(**refused, expected={"gpus": 8, "ranks": 8, "unit": facts}))
    finding = next(one for one in verdict.findings if one.id == "serving.down")
    assert "rank 1 is dead (killed by SIGKILL)" in finding.summary
    assert finding.evidence["culprits"] == [{"rank": 1, "kind": "dead", "where": "killed by SIGKILL"}]


NOBODY: dict[str, Snapshot] = {
    "all ranks in the collective": stuck(stacks=stacks(None, None, None, None)),
    "half of the ranks in it": stuck(stacks=stacks(None, None, "f (a.py:1)", "f (a.py:1)")),
    "dumps that agree": stuck(flight_recorder=dumps((9, *SUM), (9, *SUM))),
    "two ranks of which each is in another collective": stuck(
        flight_recorder=dumps((9, *SUM), (9, "nccl:broadcast", "[]"))
    ),
    "one dump only": stuck(flight_recorder=dumps((9, *SUM))),
    "a stack on its way": stuck(
        stacks=StacksReading(
            stacks=(
                *stacks(None, None).stacks,
                StackReading(pid=203, rank=3, steady=False, frames=("f (a.py:1)",)),
            )
        )
    ),
    "a rank that was just stopped": stuck(
        ranks=RanksReading(processes=(RankProcess(pid=200, rank=0, state_first="S", state_last="T"),))
    ),
    "a rank that just goes on": stuck(
        ranks=RanksReading(processes=(RankProcess(pid=200, rank=0, state_first="T", state_last="S"),))
    ),
    "a rank that blocks for an instant": stuck(
        ranks=RanksReading(processes=(RankProcess(pid=200, rank=0, state_first="S", state_last="D"),))
    ),
}


@pytest.mark.parametrize("name", NOBODY)
def test_nobody_is_named_where_the_evidence_singles_nobody_out(name: str) -> None:
    assert culprits_of(NOBODY[name]) == ()


def test_the_candidates_are_listed_where_nobody_is_singled_out() -> None:
    hang = next(f for f in judge(NOBODY["all ranks in the collective"]).findings if f.id == "collective.hang")
    assert "the culprit is among ranks 0, 1, 2" in hang.summary


def test_a_tier_of_one_process_has_no_collective_to_hang_in() -> None:
    base = stuck(ranks=make.ranks(1, r0="T"), expected={"gpus": 1, "ranks": 1})
    verdict = judge(base)
    assert verdict.cause == "engine_stalled"
    assert "kill -CONT" in verdict.action


@pytest.mark.parametrize(
    ("first", "second", "collective", "steady"),
    [
        ("all_reduce", "all_reduce", "all_reduce", True),
        ("all_reduce", None, None, False),
        (None, "all_reduce", None, False),
    ],
)
def test_a_stack_counts_as_inside_only_if_it_was_so_twice(
    first: str | None, second: str | None, collective: str | None, steady: bool
) -> None:
    def reading(name: str | None) -> StackReading:
        return StackReading(pid=1, rank=0, collective=name, frames=((name or "sample") + " (a.py:1)",))

    found = both(reading(first), reading(second))
    assert (found.collective, found.steady) == (collective, steady)
    half_read = StackReading(pid=1, rank=0, outcome="failed", detail="failed to read")
    assert both(half_read, reading("all_reduce")).outcome == "failed"
    assert both(reading("all_reduce"), half_read).outcome == "failed"


def test_a_paused_container_is_told_with_the_command_that_resumes_it_and_an_end_with_its_reason() -> None:
    cases = {name: make_snapshot() for name, (make_snapshot, *_) in HOSTS.items()}
    told = judge(cases["a paused container, told by the unit's driver only"])
    assert told.action.startswith("Run `docker unpause vllm`") and "is paused" in told.summary
    rank = judge(cases["one rank in a paused container of its own"])
    assert "rank 3" in rank.summary and "paused" in rank.summary and "Resume container 0123" in rank.action
    assert "memory limit" in judge(cases["a container that reached its memory limit and is down"]).summary
    assert "exit code 3" in judge(cases["a container that ended with an exit code"]).summary
