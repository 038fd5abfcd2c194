"""Figures of a Chrome trace of the torch profiler: top kernels, GPU idle time, NCCL's share, overlap, stragglers. Pure.

Idle is 1 - (union of kernel intervals) / span. Overlap is the intersection of the NCCL union and the compute union, as a share
of the NCCL union. A CPU run has no kernels: then operators are tabulated by their self time, and the table says so.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.system.redact import redact

KERNEL_CATEGORIES = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
NCCL_PREFIXES = ("ncclDevKernel", "ncclKernel")
CPU_COLLECTIVE_MARKS = ("gloo:", "c10d::", "nccl:")

Interval = tuple[float, float]


class KernelRow(Frozen):
    """One line of the table: a kernel (or operator) by its total time."""

    name: str
    calls: int
    total_ms: float
    share_percent: float = Field(description="of the total of all rows of this kind, also of those not shown")


class RankSummary(Frozen):
    """Figures of one rank's trace. Shares are None where the trace has no such events."""

    rank: int
    source: Literal["gpu_kernels", "cpu_operators"]
    span_ms: float
    top: tuple[KernelRow, ...]
    kernels: int
    gpu_idle_percent: float | None = None
    nccl_percent: float | None = Field(default=None, description="NCCL's share of the busy time")
    overlap_percent: float | None = Field(default=None, description="of the NCCL time, hidden behind compute")


class TraceSummary(Frozen):
    """All ranks of one capture. `straggler` is the rank that the others wait for: the least NCCL time, by a clear margin."""

    ranks: tuple[RankSummary, ...]
    straggler: int | None = None
    skipped: tuple[str, ...] = ()


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Merge intervals (start, end) that touch or overlap. Empty and negative ones are dropped."""
    merged: list[Interval] = []
    for start, end in sorted(pair for pair in intervals if pair[1] > pair[0]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def length(intervals: Iterable[Interval]) -> float:
    """Return the total length of disjoint intervals."""
    return sum(end - start for start, end in intervals)


def intersection(first: Sequence[Interval], second: Sequence[Interval]) -> list[Interval]:
    """Return the intersection of two unions (sorted, disjoint)."""
    common: list[Interval] = []
    i = j = 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < end:
            common.append((start, end))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return common


def self_times(events: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, float]]:
    """Return name -> (calls, self microseconds) of nested complete events, thread by thread.

    The self time of an event is its duration less that of the events nested directly in it.
    """
    by_thread: dict[tuple[Any, Any], list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        by_thread[(event.get("pid"), event.get("tid"))].append(event)
    totals: dict[str, tuple[int, float]] = {}
    for thread in by_thread.values():
        thread.sort(key=lambda event: (float(event["ts"]), -float(event["dur"])))
        stack: list[tuple[float, str]] = []
        for event in thread:
            start, duration, name = float(event["ts"]), float(event["dur"]), str(event["name"])
            while stack and stack[-1][0] <= start:
                stack.pop()
            if stack:
                parent = stack[-1][1]
                calls, time_us = totals[parent]
                totals[parent] = (calls, time_us - duration)
            calls, time_us = totals.get(name, (0, 0.0))
            totals[name] = (calls + 1, time_us + duration)
            stack.append((start + duration, name))
    return {name: (calls, max(0.0, time_us)) for name, (calls, time_us) in totals.items()}


def _rows(totals: Mapping[str, tuple[int, float]], top: int) -> tuple[KernelRow, ...]:
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


def summarise_rank(events: Iterable[Mapping[str, Any]], *, rank: int, top: int) -> RankSummary:
    """Summarise one rank's trace events (Chrome format; `ts` and `dur` in microseconds). Malformed events are skipped.

    Raises ValueError when the trace has neither GPU kernels nor CPU operators.
    """
    kernels: list[Mapping[str, Any]] = []
    operators: list[Mapping[str, Any]] = []
    for event in events:
        if event.get("ph") != "X" or not isinstance(event.get("dur"), int | float):
            continue
        if not isinstance(event.get("ts"), int | float | str):
            continue
        if event.get("cat") in KERNEL_CATEGORIES:
            kernels.append(event)
        elif event.get("cat") == "cpu_op":
            operators.append(event)
    if not kernels and not operators:
        raise ValueError("the trace has neither GPU kernels nor CPU operators")
    chosen = kernels or operators
    starts = [float(event["ts"]) for event in chosen]
    ends = [float(event["ts"]) + float(event["dur"]) for event in chosen]
    span_us = max(ends) - min(starts)
    if not kernels:
        totals = self_times(operators)
        everything = sum(time_us for _, time_us in totals.values()) or 1.0
        collective = sum(t for name, (_, t) in totals.items() if name.startswith(CPU_COLLECTIVE_MARKS))
        return RankSummary(
            rank=rank,
            source="cpu_operators",
            span_ms=span_us / 1e3,
            top=_rows(totals, top),
            kernels=0,
            nccl_percent=100 * collective / everything if collective else None,
        )
    by_name: dict[str, tuple[int, float]] = {}
    for event in kernels:
        calls, time_us = by_name.get(str(event["name"]), (0, 0.0))
        by_name[str(event["name"])] = (calls + 1, time_us + float(event["dur"]))
    spans = [(str(e["name"]), (float(e["ts"]), float(e["ts"]) + float(e["dur"]))) for e in kernels]
    nccl = union(span for name, span in spans if name.startswith(NCCL_PREFIXES))
    compute = union(span for name, span in spans if not name.startswith(NCCL_PREFIXES))
    busy = length(union(span for _, span in spans))
    return RankSummary(
        rank=rank,
        source="gpu_kernels",
        span_ms=span_us / 1e3,
        top=_rows(by_name, top),
        kernels=len(kernels),
        gpu_idle_percent=100 * (1 - busy / span_us) if span_us > 0 else None,
        nccl_percent=100 * length(nccl) / busy if busy > 0 else None,
        overlap_percent=100 * length(intersection(nccl, compute)) / length(nccl) if nccl else None,
    )


STRAGGLER_MARGIN = 0.5
"""A rank is the straggler when its NCCL time is below this share of the other ranks' median: it arrives last, so it never
waits. A factor of two is far outside of what balanced tensor-parallel ranks show."""


def find_straggler(ranks: Sequence[RankSummary]) -> int | None:
    """Return the rank that the others wait for, or None. Needs two ranks with NCCL kernels."""
    waiting = sorted(
        (rank.nccl_percent * rank.span_ms, rank.rank)
        for rank in ranks
        if rank.nccl_percent is not None and rank.source == "gpu_kernels"
    )
    if len(waiting) < 2:
        return None
    others = [time for time, _ in waiting[1:]]
    median = others[len(others) // 2]
    return waiting[0][1] if waiting[0][0] < STRAGGLER_MARGIN * median else None


def table(summary: TraceSummary, *, width: int = 46) -> str:
    """Return the thread text: one line of figures, then the first rank's top kernels in a fixed-width block."""
    first = summary.ranks[0]
    what = (
        "GPU kernels"
        if first.source == "gpu_kernels"
        else "CPU operators by self time (a CPU run has no GPU kernels)"
    )
    facts = [f"{len(summary.ranks)} rank(s)", f"{first.span_ms:.0f} ms of {what}"]
    if first.gpu_idle_percent is not None:
        facts.append(f"GPU idle {first.gpu_idle_percent:.0f} %")
    if first.nccl_percent is not None:
        facts.append(f"collectives {first.nccl_percent:.0f} %")
    if first.overlap_percent is not None:
        facts.append(f"overlapped {first.overlap_percent:.0f} %")
    if summary.straggler is not None:
        facts.append(f"straggler: rank {summary.straggler}")
    lines = [f"{'ms':>9}  {'calls':>6}  {'%':>5}  name"]
    for row in first.top:
        name = row.name if len(row.name) <= width else row.name[: width - 1] + "…"
        lines.append(f"{row.total_ms:9.2f}  {row.calls:6d}  {row.share_percent:5.1f}  {name}")
    return " · ".join(facts) + "\n```\n" + "\n".join(lines) + "\n```"
