"""Figures of a trace's columns: top kernels, GPU idle time, the share of communication and its overlap with compute. Pure.

Idle is 1 - (union of kernel intervals) / span. Overlap is what the unions of communication and compute have in common, as a
share of the communication. A CPU run has no kernels: then operators are tabulated by their self time, and the table says so.
Only the child process of `gpu_actions.trace` imports this, as it needs numpy.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_actions.system.redact import redact
from gpu_actions.trace.columns import Columns, from_events
from gpu_actions.trace.summary import KernelRow, RankSummary

COMMUNICATION = re.compile(
    r"^nccl(dev)?kernel|cross_device_reduce|quick_?reduce|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all"
    r"|multimem|mscclpp|nvshmem|deep_?ep|^nccl:|^gloo:|^c10d::",
    re.IGNORECASE,
)
"""Kernels and operators that move data between ranks: NCCL's, the custom all-reduce of vLLM and SGLang
(`cross_device_reduce_1stage`, `quickreduce`), FlashInfer's and TensorRT-LLM's (`allreduce_fusion_kernel`), symmetric memory,
DeepEP."""

Floats = npt.NDArray[np.float64]
Totals = dict[str, tuple[int, float]]


def covered(starts: Floats, ends: Floats) -> float:
    """Return the length of the union of intervals. Empty and negative ones count nothing."""
    keep = ends > starts
    if not keep.all():
        starts, ends = starts[keep], ends[keep]
    if not len(starts):
        return 0.0
    if (starts[1:] < starts[:-1]).any():
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], ends[order]
    last = np.maximum.accumulate(ends)
    gaps = starts[1:] - last[:-1]
    return float(last[-1] - starts[0] - np.maximum(gaps, 0.0, out=gaps).sum())


def self_times(columns: Columns) -> Totals:
    """Return name -> (calls, self microseconds) of the operators, thread by thread.

    The self time of an operator is its duration less that of the operators nested directly in it.
    """
    starts, durations, names = _arrays(columns.operators)
    threads = np.frombuffer(columns.threads, dtype=np.uint32)
    own = durations.copy()
    stack: list[int] = []
    thread = -1
    for index in np.lexsort((-durations, starts, threads)).tolist():
        if threads[index] != thread:
            thread, stack = int(threads[index]), []
        while stack and starts[stack[-1]] + durations[stack[-1]] <= starts[index]:
            stack.pop()
        if stack:
            own[stack[-1]] -= durations[index]
        stack.append(index)
    totals = _totals(columns.names, names, own)
    return {name: (calls, max(0.0, time_us)) for name, (calls, time_us) in totals.items()}


def summarise_columns(columns: Columns, *, rank: int, top: int) -> RankSummary:
    """Summarise one rank. Raises ValueError when the trace has neither GPU kernels nor CPU operators."""
    has_kernels = len(columns.kernels[0]) > 0
    starts, durations, names = _arrays(columns.kernels if has_kernels else columns.operators)
    if not len(starts):
        raise ValueError("the trace has neither GPU kernels nor CPU operators")
    ends = starts + durations
    span_us = float(ends.max() - starts.min())
    if not has_kernels:
        return _summarise_operators(columns, span_us, rank=rank, top=top)
    communicates = np.array([bool(COMMUNICATION.search(name)) for name in columns.names])[names]
    busy = covered(starts, ends)
    communication = covered(starts[communicates], ends[communicates])
    compute = covered(starts[~communicates], ends[~communicates])
    hidden = communication + compute - busy
    return RankSummary(
        rank=rank,
        source="gpu_kernels",
        span_ms=span_us / 1e3,
        top=_rows(_totals(columns.names, names, durations), top),
        kernels=len(starts),
        gpu_idle_percent=100 * (1 - busy / span_us) if span_us > 0 else None,
        nccl_percent=100 * communication / busy if busy > 0 else None,
        overlap_percent=100 * hidden / communication if communication > 0 else None,
    )


def summarise_rank(events: Iterable[Mapping[str, Any]], *, rank: int, top: int) -> RankSummary:
    """Summarise one rank's trace events (Chrome format; `ts` and `dur` in microseconds)."""
    return summarise_columns(from_events(events), rank=rank, top=top)


def _summarise_operators(columns: Columns, span_us: float, *, rank: int, top: int) -> RankSummary:
    totals = self_times(columns)
    everything = sum(time_us for _, time_us in totals.values()) or 1.0
    collective = sum(time_us for name, (_, time_us) in totals.items() if COMMUNICATION.search(name))
    return RankSummary(
        rank=rank,
        source="cpu_operators",
        span_ms=span_us / 1e3,
        top=_rows(totals, top),
        kernels=0,
        nccl_percent=100 * collective / everything if collective else None,
    )


def _arrays(columns: Sequence[Any]) -> tuple[Floats, Floats, npt.NDArray[np.uint32]]:
    starts, durations, names = columns
    return (
        np.array(starts, dtype=np.float64),
        np.array(durations, dtype=np.float64),
        np.array(names, dtype=np.int64),
    )


def _totals(names: Sequence[str], indices: npt.NDArray[np.uint32], times: Floats) -> Totals:
    calls = np.bincount(indices, minlength=len(names))
    sums = np.bincount(indices, weights=times, minlength=len(names))
    return {name: (int(calls[i]), float(sums[i])) for i, name in enumerate(names) if calls[i]}


def _rows(totals: Totals, top: int) -> tuple[KernelRow, ...]:
    everything = sum(time_us for _, time_us in totals.values()) or 1.0
    ordered = sorted(totals.items(), key=lambda item: (-item[1][1], item[0]))[:top]
    return tuple(
        KernelRow(
            name=redact(name).text,
            calls=calls,
            total_ms=time_us / 1e3,
            share_percent=100 * time_us / everything,
        )
        for name, (calls, time_us) in ordered
    )
