"""Figures of traces against values worked out by hand."""

import gzip
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.trace.analysis import COMMUNICATION, covered, self_times, summarise_rank
from gpu_actions.trace.columns import from_events
from gpu_actions.trace.summary import KernelRow, RankSummary, TraceSummary, compare, find_straggler, table


def kernel(name: str, start: float, duration: float) -> dict[str, Any]:
    return {"ph": "X", "cat": "kernel", "name": name, "ts": start, "dur": duration, "pid": 0, "tid": 7}


def operator(name: str, start: float, duration: float) -> dict[str, Any]:
    return {"ph": "X", "cat": "cpu_op", "name": name, "ts": start, "dur": duration, "pid": 1, "tid": 1}


def test_idle_nccl_share_and_overlap_of_a_trace_worked_out_by_hand() -> None:
    # 0-400 gemm, 300-500 all-reduce (100 hidden of 200), idle 500-900, 900-1000 gemm
    summary = summarise_rank(
        [kernel("gemm", 0, 400), kernel("ncclDevKernel_AllReduce", 300, 200), kernel("gemm", 900, 100)],
        rank=0,
        top=5,
    )
    assert summary.source == "gpu_kernels"
    assert summary.span_ms == pytest.approx(1.0)
    assert summary.gpu_idle_percent == pytest.approx(40)
    assert summary.nccl_percent == pytest.approx(100 * 200 / 600)
    assert summary.overlap_percent == pytest.approx(50)
    assert [(row.name, row.calls, row.total_ms) for row in summary.top] == [
        ("gemm", 2, pytest.approx(0.5)),
        ("ncclDevKernel_AllReduce", 1, pytest.approx(0.2)),
    ]


def test_operators_count_by_their_self_time_when_there_are_no_kernels() -> None:
    events = [
        operator("linear", 0, 100),
        operator("addmm", 10, 60),
        operator("copy", 20, 10),
        operator("linear", 200, 5),
    ]
    assert self_times(from_events(events)) == {"linear": (2, 45.0), "addmm": (1, 50.0), "copy": (1, 10.0)}
    assert summarise_rank(events, rank=0, top=1).top[0].name == "addmm"


def test_a_trace_without_kernels_and_operators_is_refused() -> None:
    with pytest.raises(ValueError, match="neither GPU kernels nor CPU operators"):
        summarise_rank([{"ph": "M", "name": "process_name"}], rank=0, top=5)


def test_the_rank_that_never_waits_is_the_straggler() -> None:
    def rank(number: int, nccl: float) -> RankSummary:
        return RankSummary(
            rank=number, source="gpu_kernels", span_ms=100, top=(), kernels=1, nccl_percent=nccl
        )

    assert find_straggler([rank(0, 40), rank(1, 5), rank(2, 42)]) == 1
    assert find_straggler([rank(0, 40), rank(1, 35)]) is None
    assert find_straggler([rank(0, 40)]) is None


intervals = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=12)


@given(intervals)
def test_the_covered_length_agrees_with_sets_of_points(pairs: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in pairs], dtype=np.float64)
    ends = np.array([end for _, end in pairs], dtype=np.float64)
    assert covered(starts, ends) == len({point for start, end in pairs for point in range(start, end)})


@pytest.mark.parametrize(
    ("name", "communicates"),
    [
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", True),
        ("void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(vllm::RankData*)", True),
        ("void sglang::cross_device_reduce_2stage<half, 8>(...)", True),
        ("void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<...>", True),
        ("quickreduce::allreduce_prototype_twoshot", True),
        ("multimem_all_reduce_kernel<c10::BFloat16>", True),
        ("deep_ep::intranode::dispatch", True),
        ("nvjet_tst_128x64_64x8_2x1_v_bz_TNN", False),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>", False),
        ("flash_fwd_splitkv_combine_kernel", False),
        ("void at::native::index_put_with_sort_kernel", False),
    ],
)
def test_kernels_between_ranks_are_told_from_compute(name: str, communicates: bool) -> None:
    assert bool(COMMUNICATION.search(name)) == communicates


def nsys_export(path: Path) -> None:
    """Write what `nsys export --type sqlite` writes of two GPUs, as far as it is read here."""
    with sqlite3.connect(path) as connection:
        connection.executescript(
            """
            CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
            CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL
                (start INTEGER, end INTEGER, deviceId INTEGER, streamId INTEGER, shortName INTEGER);
            CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER, end INTEGER, deviceId INTEGER, streamId INTEGER);
            INSERT INTO StringIds VALUES (1, 'gemm'), (2, 'ncclDevKernel_AllReduce');
            INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES
                (0, 400000, 0, 7, 1), (300000, 500000, 0, 8, 2), (900000, 1000000, 0, 7, 1), (0, 1000000, 1, 8, 2);
            INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (600000, 700000, 0, 9);
            """
        )
    connection.close()


def test_an_export_of_nsys_is_read_gpu_by_gpu_and_pictured(tmp_path: Path) -> None:
    nsys_export(tmp_path / "report.sqlite")
    picture = tmp_path / "trace.png"
    done = subprocess.run(
        [sys.executable, "-m", "gpu_actions.trace", "--picture", str(picture), str(tmp_path / "report.sqlite")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = TraceSummary.model_validate_json(done.stdout).ranks
    assert first.gpu_idle_percent == pytest.approx(30)
    assert first.overlap_percent == pytest.approx(50)
    assert {row.name for row in first.top} == {"gemm", "ncclDevKernel_AllReduce", "memcpy"}
    assert second.nccl_percent == pytest.approx(100)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_comparison_names_what_takes_longer_and_nothing_else() -> None:
    def summary(idle: float, gemm_ms: float) -> TraceSummary:
        rows = (
            KernelRow(name="gemm", calls=100, total_ms=gemm_ms, share_percent=90),
            KernelRow(name="copy", calls=10, total_ms=5, share_percent=10),
        )
        rank = RankSummary(
            rank=0,
            source="gpu_kernels",
            span_ms=100,
            top=rows,
            kernels=110,
            gpu_idle_percent=idle,
            nccl_percent=5,
        )
        return TraceSummary(ranks=(rank,))

    assert compare(summary(10, 50), summary(12, 52)) == ()
    assert compare(summary(40, 80), summary(10, 50)) == (
        "rank 0: GPU idle 10 % before, 40 % now",
        "rank 0: gemm takes 1.60 times as long per call",
    )
    assert "No figure differs" in table(summary(10, 50), changes=())


def test_the_child_reads_gzipped_traces_and_names_the_broken_one(tmp_path: Path) -> None:
    good = tmp_path / "trace-rank1.json.gz"
    good.write_bytes(gzip.compress(json.dumps({"traceEvents": [kernel("gemm", 0, 10)]}).encode()))
    broken = tmp_path / "trace-rank0.json.gz"
    broken.write_bytes(good.read_bytes()[:20])
    done = subprocess.run(
        [sys.executable, "-m", "gpu_actions.trace", str(good), str(broken)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["ranks"][0]["rank"] == 1
    assert "trace-rank0.json.gz" in summary["skipped"][0]
    only_broken = subprocess.run(
        [sys.executable, "-m", "gpu_actions.trace", str(broken)], capture_output=True, text=True, check=False
    )
    assert only_broken.returncode == 2
    assert "trace-rank0.json.gz" in only_broken.stderr


def test_the_table_says_that_a_cpu_run_has_no_kernels() -> None:
    text = table(TraceSummary(ranks=(summarise_rank([operator("addmm", 0, 1000)], rank=0, top=3),)))
    assert "CPU run" in text
    assert "addmm" in text
