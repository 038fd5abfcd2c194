"""The deep probe over gloo: real ranks, real collectives, a rank that never joins, and nothing left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpu_actions.snapshot.collector import CollectorFailed, CollectorSkipped, Source
from gpu_actions.snapshot.collectors.deep import check_headroom, collect_deep, record_of, run_probe
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.system.proc import process_table
from gpu_actions.triage.checks.deep import measured
from gpu_actions.triage.judge import judge
from tests.gpu_actions.fakes import end
from tests.gpu_actions.triage import builders as make


def probe_processes() -> set[int]:
    """Return the processes of all deep probes on this machine."""
    found = set()
    for pid in process_table():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"gpu_actions.snapshot.collectors.deep_child" in command:
            found.add(pid)
    return found


async def test_two_ranks_measure_everything_and_leave_no_process() -> None:
    before = probe_processes()
    reading = await run_probe(2, backend="gloo", deadline_s=60, message_bytes=2**20)
    assert (reading.outcome, reading.backend, reading.world_size) == ("ok", "gloo", 2), reading.detail
    assert reading.busbw_gbps is not None and reading.allreduce_ms is not None
    # busbw = bytes / t x 2(n-1)/n, which for two ranks is bytes / t
    assert reading.busbw_gbps == pytest.approx(2**20 / (reading.allreduce_ms / 1000) / 1e9)
    assert {(pair.source, pair.target) for pair in reading.pairs} == {(0, 1), (1, 0)}
    assert all(gpu.gemm_tflops and gpu.gemm_tflops > 0 for gpu in reading.gpus)
    assert all(gpu.host_link_gbps and gpu.to_gpu_together_gbps for gpu in reading.gpus)
    assert "GB/s while all copy" in measured(reading)
    assert reading.startup_s is not None and reading.measure_s is not None
    assert probe_processes() <= before


async def test_a_rank_that_never_joins_is_a_hang_within_the_deadline_and_all_ranks_are_killed() -> None:
    before = probe_processes()
    began = time.monotonic()
    reading = await run_probe(2, backend="gloo", deadline_s=8, message_bytes=2**20, hang_rank=1)
    assert time.monotonic() - began < 11
    assert reading.outcome == "timeout" and "rank" in reading.detail
    verdict = judge(make.healthy(deep=reading))
    assert (verdict.verdict, verdict.cause) == ("fall_back", "nccl_hang")
    assert probe_processes() <= before


async def test_a_corrupted_copy_is_data_corruption_that_names_the_pair_and_the_rest_is_still_measured() -> (
    None
):
    reading = await run_probe(2, backend="gloo", deadline_s=60, message_bytes=2**20, spoil="1:0")
    assert reading.outcome == "ok", reading.detail
    assert {(pair.source, pair.target): pair.corrupt for pair in reading.pairs} == {
        (0, 1): False,
        (1, 0): True,
    }
    assert all(gpu.memory_gbps and gpu.wrong_sum is None for gpu in reading.gpus)
    verdict = judge(make.healthy(deep=reading))
    assert (verdict.verdict, verdict.cause) == ("fall_back", "data_corruption")
    assert "GPU 1 to GPU 0" in verdict.summary


async def test_a_rank_that_fails_ends_the_probe_immediately_with_the_reason() -> None:
    began = time.monotonic()
    reading = await run_probe(2, backend="gloo", deadline_s=60, message_bytes=2**62)
    assert reading.outcome == "failed" and "rank" in reading.detail
    assert time.monotonic() - began < 30
    assert judge(make.healthy(deep=reading)).verdict == "unknown"


def test_ranks_end_when_the_triage_that_started_them_is_killed() -> None:
    before = probe_processes()
    code = (
        "import asyncio; from gpu_actions.snapshot.collectors.deep import run_probe;"
        "asyncio.run(run_probe(2, backend='gloo', deadline_s=100, message_bytes=2**20, hang_rank=1))"
    )
    triage = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        until = time.monotonic() + 40
        while len(probe_processes() - before) < 3:
            assert time.monotonic() < until, "the ranks did not start"
            time.sleep(0.05)
        mine = probe_processes() - before
        os.kill(triage.pid, signal.SIGKILL)
        triage.wait(timeout=10)
        while probe_processes() & mine:
            assert time.monotonic() < until, "the ranks outlived their parent"
            time.sleep(0.05)
    finally:
        end(triage)


def test_memory_held_by_the_tier_is_reported_before_anything_starts() -> None:
    full = make.with_gpu(3, memory_free_mib=900)
    with pytest.raises(CollectorFailed, match=r"GPU 3: 0\.9 GiB, 4 GiB needed"):
        check_headroom(full, free_gib=4)
    assert check_headroom(make.nvml(), free_gib=4) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"error": "gpu_is_lost"}, "gpu_is_lost"),
        ({"mig": True}, "MIG"),
        ({"memory_free_mib": None}, "unknown"),
    ],
)
def test_a_gpu_that_cannot_be_probed_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CollectorFailed, match=message):
        check_headroom(make.with_gpu(2, **changes), free_gib=1)


async def test_the_probe_is_skipped_unless_requested_and_on_a_cpu_host() -> None:
    for asked, gpus in ((False, 8), (True, 0)):
        with pytest.raises(CollectorSkipped):
            target = TriageTarget(expect_gpus=gpus)
            await collect_deep(Source(target=target, window_s=0, deep=asked, readings={"nvml": make.nvml()}))


def test_output_of_a_library_is_not_a_record() -> None:
    assert record_of(b"NCCL WARN something\n") is None
    assert record_of(b'{"rank": "zero", "event": 1}') is None
    assert record_of(b'{"rank": 0, "event": "done"}') == {"rank": 0, "event": "done"}


def test_the_probe_does_not_block_its_event_loop() -> None:
    async def ticks() -> int:
        count = 0
        task = asyncio.create_task(run_probe(1, backend="gloo", deadline_s=60, message_bytes=2**18))
        while not task.done():
            await asyncio.sleep(0.01)
            count += 1
        assert (await task).outcome == "ok"
        return count

    assert asyncio.run(ticks()) > 10
