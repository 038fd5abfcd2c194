"""Real process trees: a stopped rank, a dead one, a leftover variable, and a rank's stack."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.collector import CollectorFailed, CollectorSkipped, Source
from gpu_actions.snapshot.collectors.environment import collect_environment
from gpu_actions.snapshot.collectors.ranks import (
    RanksReading,
    collect_ranks,
    roots_of,
)
from gpu_actions.snapshot.collectors.stacks import collect_stacks, parse_dump
from gpu_actions.snapshot.rank_numbers import numbered, rank_of, titles_of
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.system.proc import blocked_threads, parse_stat, process_table
from gpu_actions.triage.judge import judge
from tests.gpu_actions.fakes import FakeEngine, end, process_state, spawn

LIMITS = TriageThresholds(window_s=0.4, completion_deadline_s=0.5, stacks_timeout_s=5)
PARENT = """
import subprocess, sys, time
rank_1 = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "--rank", "1"])
print(rank_1.pid, flush=True)
time.sleep(300)
"""


@pytest.fixture
def tier() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start rank 0 as the main process and rank 1 as its child; return the main process and the child's pid."""
    main = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={
            "PATH": os.environ["PATH"],
            "NCCL_P2P_DISABLE": "1",
            "NCCL_SECRET_TOKEN": "hunter2",
            "HOME": "/root",
        },
    )
    assert main.stdout is not None
    child = int(main.stdout.readline())
    try:
        yield main, child
    finally:
        main.stdout.close()
        end(main)


def source_of(
    *pids: int, window_s: float = 0, ranks: RanksReading | None = None, stuck: bool = False
) -> Source:
    return Source(
        target=TriageTarget(pids=pids),
        limits=TriageThresholds(stacks_timeout_s=10),
        window_s=window_s,
        readings={"ranks": ranks},
        is_stuck=lambda: stuck,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < until, "the condition did not come true within 5 s"
        time.sleep(0.01)


async def test_a_stopped_rank_under_a_stalled_engine_is_a_hang_with_its_state_as_evidence(
    tier: tuple[subprocess.Popen[bytes], int], start_engine: Callable[..., Awaitable[FakeEngine]]
) -> None:
    main, child = tier
    os.kill(child, signal.SIGSTOP)
    wait_for(lambda: process_state(child) == "T")
    engine = await start_engine(running=2, completion="hang")
    target = TriageTarget(expect_gpus=0, engine_url=engine.url, pids=(main.pid,), ranks=2)
    verdict = judge(await collect(target, LIMITS), LIMITS)
    assert (verdict.verdict, verdict.cause) == ("fall_back", "nccl_hang")
    hang = next(finding for finding in verdict.findings if finding.id == "collective.hang")
    row = hang.evidence["process_states"]["processes"][0]
    assert (row["pid"], row["rank"], row["state"], hang.subject) == (child, 1, "T", "rank 1")
    assert hang.evidence["progress"]["running"] == 2
    command = f"kill -CONT {child}"
    assert command in verdict.action
    await asyncio.to_thread(subprocess.run, command.split(), check=True)
    wait_for(lambda: process_state(child) != "T")


async def test_a_killed_rank_under_a_stalled_engine_is_a_hang_that_names_the_rank(
    tier: tuple[subprocess.Popen[bytes], int], start_engine: Callable[..., Awaitable[FakeEngine]]
) -> None:
    main, child = tier
    os.kill(child, signal.SIGKILL)  # the parent does not reap it: a zombie remains
    wait_for(lambda: process_state(child) == "Z")
    engine = await start_engine(running=2, completion="hang")
    target = TriageTarget(expect_gpus=0, engine_url=engine.url, pids=(main.pid,), ranks=2)
    verdict = judge(await collect(target, LIMITS), LIMITS)
    assert (verdict.verdict, verdict.cause) == ("fall_back", "nccl_hang")
    assert any("dead_ranks" in finding.evidence for finding in verdict.findings)


async def test_running_ranks_are_not_evidence_of_a_hang(
    tier: tuple[subprocess.Popen[bytes], int], start_engine: Callable[..., Awaitable[FakeEngine]]
) -> None:
    main, _ = tier
    engine = await start_engine(running=2, tokens_per_s=50)
    target = TriageTarget(expect_gpus=0, engine_url=engine.url, pids=(main.pid,), ranks=2)
    limits = LIMITS.model_copy(update={"completion_deadline_s": 10.0})  # a busy machine answers later
    verdict = judge(await collect(target, limits), limits)
    assert verdict.verdict == "healthy", verdict.findings


async def test_a_main_process_that_is_gone_means_the_engine_is_down(start_engine: object) -> None:
    gone = spawn(sys.executable, "-c", "")
    gone.wait()
    target = TriageTarget(expect_gpus=0, engine_url="http://127.0.0.1:9", pids=(gone.pid,), ranks=2)
    verdict = judge(await collect(target, LIMITS), LIMITS)
    assert (verdict.verdict, verdict.cause) == ("fall_back", "engine_down")
    assert "main process is gone" in verdict.summary


async def test_cpu_time_and_states_are_taken_over_the_window(
    tier: tuple[subprocess.Popen[bytes], int],
) -> None:
    main, child = tier
    reading = await collect_ranks(source_of(main.pid, window_s=0.1))
    rows = {row.pid: row for row in reading.processes}
    assert rows[main.pid].root and rows[child].parent == main.pid
    assert rows[child].state_last in ("S", "R") and 0 <= (rows[child].cpu_s or 0) < 0.5
    assert rows[child].age_s is not None and rows[child].age_s < 60


async def test_values_of_unknown_variables_are_never_kept(tier: tuple[subprocess.Popen[bytes], int]) -> None:
    main, child = tier
    async with asyncio.timeout(
        10
    ):  # a child that is only forked has its parent's command line and no environment yet
        while child not in (await collect_environment((main.pid,))).values.get("NCCL_P2P_DISABLE", {}).get(
            "1", ()
        ):
            await asyncio.sleep(0.02)
    reading = await collect_environment((main.pid,))
    assert reading.values == {"NCCL_P2P_DISABLE": {"1": (main.pid, child)}}
    assert reading.names_only == ("NCCL_SECRET_TOKEN",)
    assert "hunter2" not in reading.model_dump_json()


async def test_stacks_are_taken_only_while_no_token_is_generated(
    tier: tuple[subprocess.Popen[bytes], int],
) -> None:
    main, _ = tier
    ranks = await collect_ranks(source_of(main.pid))
    with pytest.raises(CollectorSkipped):
        await collect_stacks(source_of(main.pid, ranks=ranks))


async def test_a_rank_that_waits_in_an_all_reduce_is_found_by_its_stack(tmp_path: Path) -> None:
    package = tmp_path / "torch" / "distributed"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "torch" / "__init__.py").touch()
    (package / "distributed_c10d.py").write_text(
        "import time\ndef all_reduce(secret):\n    print('in', flush=True)\n    time.sleep(300)\n"
    )
    code = "from torch.distributed.distributed_c10d import all_reduce\nall_reduce('hunter2')\n"
    ranks = [spawn(sys.executable, "-c", code, "--rank", str(rank), cwd=tmp_path) for rank in range(2)]
    try:
        for process in ranks:
            assert process.stdout is not None and process.stdout.readline()
        os.kill(ranks[1].pid, signal.SIGSTOP)  # py-spy reads a stopped process as well
        roots = tuple(process.pid for process in ranks)
        reading = await collect_ranks(source_of(*roots))
        stacks = (await collect_stacks(source_of(*roots, ranks=reading, stuck=True))).stacks
        assert [(row.rank, row.collective, row.outcome) for row in stacks] == [
            (0, "all_reduce", "ok"),
            (1, "all_reduce", "ok"),
        ]
        assert "hunter2" not in str(stacks)
    finally:
        for process in ranks:
            assert process.stdout is not None
            process.stdout.close()
        end(*ranks)


async def test_a_thread_that_the_kernel_blocks_is_seen_while_the_main_thread_only_waits_for_it(
    tmp_path: Path,
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = (
        "import os, threading\n"
        f"actions = [(os.POSIX_SPAWN_OPEN, 3, {str(fifo)!r}, os.O_RDONLY, 0)]\n"
        "spawn = lambda: os.posix_spawn('/bin/true', ['true'], {}, file_actions=actions)\n"
        "print('in', flush=True)\nthread = threading.Thread(target=spawn)\nthread.start()\nthread.join()\n"
    )
    rank = spawn(sys.executable, "-c", code, "--rank", "0")
    try:
        assert rank.stdout is not None and rank.stdout.readline()
        async with asyncio.timeout(20):
            while not blocked_threads(rank.pid):
                await asyncio.sleep(0.02)
        reading = await collect_ranks(source_of(rank.pid))
        (row,) = [row for row in reading.processes if row.pid == rank.pid]
        assert row.state_last != "D", "its main thread only waits for the interpreter"
        stack, *_ = (await collect_stacks(source_of(rank.pid, ranks=reading, stuck=True))).stacks
        assert stack.pid == rank.pid and stack.blocked is not None
        if os.geteuid() == 0:
            assert stack.blocked == "kernel_clone"
    finally:
        with contextlib.suppress(OSError):
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        assert rank.stdout is not None
        rank.stdout.close()
        end(rank)


async def test_a_process_that_is_not_python_fails_with_the_message_of_py_spy() -> None:
    sleeper = spawn("sleep", "300")
    try:
        reading = await collect_ranks(source_of(sleeper.pid))
        ranked = reading.model_copy(
            update={"processes": tuple(row.model_copy(update={"rank": 0}) for row in reading.processes)}
        )
        with pytest.raises(CollectorFailed, match="py-spy"):
            await collect_stacks(source_of(sleeper.pid, ranks=ranked, stuck=True))
    finally:
        end(sleeper)


def test_a_missing_or_invalid_pid_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CollectorFailed, match="does not exist"):
        roots_of(TriageTarget(pid_file=tmp_path / "unit.pid"))
    (tmp_path / "unit.pid").write_text("none")
    with pytest.raises(CollectorFailed, match="holds no process ids"):
        roots_of(TriageTarget(pid_file=tmp_path / "unit.pid"))
    (tmp_path / "unit.pid").write_text("12\n")
    assert roots_of(TriageTarget(pids=(7,), pid_file=tmp_path / "unit.pid")) == (7, 12)


@pytest.mark.parametrize(
    ("command", "environment", "expected"),
    [
        (["python", "-m", "engine", "--rank", "3"], {}, 3),
        (["python", "--rank=2"], {}, 2),
        (["VLLM::Worker_TP5_DP0"], {}, 5),
        (["sglang::scheduler_TP7"], {}, 7),
        (["python", "train.py"], {"RANK": "4", "WORLD_SIZE": "8"}, 4),
        (["python", "train.py"], {"RANK": "4"}, None),
        (["HTTP2", "server"], {}, None),
        (["python", "--rank"], {}, None),
    ],
)
def test_a_rank_is_identified_by_its_command_its_title_or_torchrun(
    command: list[str], environment: dict[str, str], expected: int | None
) -> None:
    assert rank_of("python", command, environment) == expected


def test_a_process_name_with_parentheses_and_blanks_is_parsed() -> None:
    row = parse_stat("12 (my (odd) name) T 1 " + " ".join(["0"] * 9) + " 5 6 " + " ".join(["7"] * 20))
    assert row is not None and (row.name, row.state, row.cpu_ticks) == ("my (odd) name", "T", 11)


@given(st.text(max_size=200))
def test_the_parsers_of_proc_and_py_spy_handle_any_text(text: str) -> None:
    parse_stat(text)
    assert parse_dump(text, pid=1, rank=None).outcome in ("ok", "failed")


async def test_a_snapshot_leaves_no_process_behind(tier: tuple[subprocess.Popen[bytes], int]) -> None:
    main, _ = tier
    before = children_of(os.getpid())
    await collect(TriageTarget(expect_gpus=0, pids=(main.pid,)), LIMITS)
    await asyncio.sleep(0)
    assert children_of(os.getpid()) == before


def children_of(pid: int) -> set[int]:
    return {row.pid for row in process_table().values() if row.parent == pid}


@pytest.mark.parametrize(
    ("titles", "ranks"),
    [
        (["VLLM::EngineCore", *(f"VLLM::Worker_PP{p}_TP{t}" for p in (0, 1) for t in (0, 1))], [0, 1, 2, 3]),
        ([f"VLLM::Worker_DP{d}_TP{t}_EP{2 * d + t}" for d in (0, 1) for t in (0, 1)], [0, 1, 2, 3]),
        ([f"VLLM::EngineCore_DP{d}" for d in range(4)], [0, 1, 2, 3]),
        (["VLLM::EngineCore_DP0", "VLLM::Worker_TP0", "VLLM::Worker_TP1"], [0, 1]),
        ([f"sglang::scheduler_DP{t // 4}_TP{t}" for t in range(8)], list(range(8))),
        ([f"sglang::scheduler_DP{d}_TP{t}" for d in (0, 1) for t in range(4)], list(range(8))),
        ([f"sglang::scheduler_TP{t}" for t in (0, 2, 3)], [0, 2, 3]),
        (["python", "VLLM::EngineCore"], []),
    ],
)
def test_ranks_are_numbered_by_the_coordinates_in_their_titles(titles: list[str], ranks: list[int]) -> None:
    found = titles_of(dict(enumerate(titles)))
    assert sorted(numbered(found).values()) == ranks
