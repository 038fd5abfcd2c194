"""What is said of a trace: figures per rank, the straggler, a comparison with an earlier trace, and their texts. Pure."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from gpu_actions.models import Frozen

SHORT_NAME = 22
Source = Literal["gpu_kernels", "cpu_operators"]


class KernelRow(Frozen):
    """One line of the table: a kernel (or operator) by its total time."""

    name: str
    calls: int
    total_ms: float
    share_percent: float = Field(description="of the total of all rows of this kind, also of those not shown")


class RankSummary(Frozen):
    """Figures of one rank's trace. Shares are None where the trace has no such events."""

    rank: int
    source: Source
    span_ms: float
    top: tuple[KernelRow, ...]
    kernels: int
    gpu_idle_percent: float | None = None
    nccl_percent: float | None = Field(default=None, description="communication's share of the busy time")
    overlap_percent: float | None = Field(
        default=None, description="of the communication, hidden behind compute"
    )


class TraceSummary(Frozen):
    """All ranks of one capture. `straggler` is the rank that the others wait for: the least communication, by a margin."""

    ranks: tuple[RankSummary, ...]
    straggler: int | None = None
    skipped: tuple[str, ...] = ()


STRAGGLER_MARGIN = 0.5
"""A rank is the straggler when its communication time is below this share of the other ranks' median: it arrives last, so it
never waits. A factor of two is far outside of what balanced tensor-parallel ranks show."""

CHANGE_MARGIN = 0.2
"""Shares and totals of short traces of one engine differ by some percent; a fifth is worth a look."""
MIN_CHANGE_MS = 1.0


def find_straggler(ranks: Sequence[RankSummary]) -> int | None:
    """Return the rank that the others wait for, or None. Needs two ranks with communication kernels."""
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


def compare(now: TraceSummary, before: TraceSummary) -> tuple[str, ...]:
    """Return what changed since an earlier trace, in sentences; empty if nothing worth a look did.

    Times are compared per call: two traces rarely have the same length.
    """
    lines: list[str] = []
    then = {rank.rank: rank for rank in before.ranks}
    for rank in now.ranks:
        earlier = then.get(rank.rank)
        if earlier is None or earlier.source != rank.source:
            lines.append(f"rank {rank.rank}: the earlier trace has nothing to compare with")
            continue
        for what, new, old in (
            ("GPU idle", rank.gpu_idle_percent, earlier.gpu_idle_percent),
            ("communication", rank.nccl_percent, earlier.nccl_percent),
        ):
            if new is not None and old is not None and abs(new - old) > 100 * CHANGE_MARGIN / 2:
                lines.append(f"rank {rank.rank}: {what} {old:.0f} % before, {new:.0f} % now")
        known = {row.name: row.total_ms / row.calls for row in earlier.top if row.calls}
        for row in rank.top:
            usual_ms = known.get(row.name)
            if usual_ms and row.calls and row.total_ms >= MIN_CHANGE_MS:
                ratio = row.total_ms / row.calls / usual_ms
                if ratio > 1 + CHANGE_MARGIN or ratio < 1 - CHANGE_MARGIN:
                    lines.append(
                        f"rank {rank.rank}: {row.name[:60]} takes {ratio:.2f} times as long per call"
                    )
    return tuple(lines)


def short_table(summary: TraceSummary) -> list[list[str]]:
    """Return the first rank's three longest kernels as four rows for a narrow screen."""
    rows = [
        [_short(row.name), f"{row.share_percent:.0f} %", f"{row.total_ms:.1f}"]
        for row in summary.ranks[0].top[:3]
    ]
    return [["Longest", "share", "ms"], *rows]


def top_chart(summary: TraceSummary) -> dict[str, object] | None:
    """Return the first rank's longest kernels as data for a chart of their shares; None without two of them."""
    shares: dict[str, float] = {}
    for row in summary.ranks[0].top[:5]:
        shares.setdefault(row.name[:20], round(row.share_percent, 1))
    if len(shares) < 2:
        return None
    return {
        "title": "Longest kernels, % of the time",
        "categories": list(shares),
        "series": {"share": list(shares.values())},
    }


def _short(name: str) -> str:
    return name if len(name) <= SHORT_NAME else name[: SHORT_NAME - 1] + "…"


def table(summary: TraceSummary, *, width: int = 46, changes: Sequence[str] | None = None) -> str:
    """Return the thread text: one line of figures, the first rank's top kernels in a fixed-width block, the changes."""
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
    text = " · ".join(facts) + "\n```\n" + "\n".join(lines) + "\n```"
    if changes is None:
        return text
    return text + "\n" + ("\n".join(changes) or "No figure differs by a fifth from the earlier trace.")
