"""Figures of traces against values worked out by hand."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.trace.analysis import (
    RankSummary,
    find_straggler,
    intersection,
    length,
    self_times,
    summarise_rank,
    table,
    union,
)


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
    assert self_times(events) == {"linear": (2, 45.0), "addmm": (1, 50.0), "copy": (1, 10.0)}
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


@given(intervals, intervals)
def test_unions_and_intersections_agree_with_sets_of_points(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    def points(pairs: list[tuple[int, int]]) -> set[int]:
        return {point for start, end in pairs for point in range(start, end)}

    assert length(union(first)) == len(points(first))
    assert length(intersection(union(first), union(second))) == len(points(first) & points(second))


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
    from gpu_actions.trace.analysis import TraceSummary

    text = table(TraceSummary(ranks=(summarise_rank([operator("addmm", 0, 1000)], rank=0, top=3),)))
    assert "CPU run" in text
    assert "addmm" in text
