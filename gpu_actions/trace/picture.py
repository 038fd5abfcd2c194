"""Draw a trace summary: the top kernels of the first rank, and each rank's idle time and communication."""

from pathlib import Path

from gpu_actions.trace.summary import TraceSummary

COMPUTE, COMMUNICATION, IDLE = "#1f6feb", "#bf8700", "#8c959f"


def draw(summary: TraceSummary, path: Path) -> None:
    """Write a PNG that can be read at the width of a phone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = summary.ranks[0]
    with_shares = [rank for rank in summary.ranks if rank.gpu_idle_percent is not None]
    figure, panels = pyplot.subplots(
        1 + bool(with_shares), 1, figsize=(6, 5 + 0.4 * len(with_shares)), dpi=130, squeeze=False
    )
    bars = panels[0][0]
    rows = first.top[::-1]
    names = [row.name if len(row.name) <= 34 else row.name[:33] + "…" for row in rows]
    bars.barh(range(len(rows)), [row.total_ms for row in rows], color=COMPUTE)
    bars.set_yticks(range(len(rows)), names, fontsize=9)
    bars.set(title=f"Top of rank {first.rank}, {first.span_ms:.0f} ms", xlabel="ms")
    if with_shares:
        shares = panels[1][0]
        labels = [f"rank {rank.rank}" for rank in with_shares]
        idle = [rank.gpu_idle_percent or 0.0 for rank in with_shares]
        talking = [
            (100 - gone) * (rank.nccl_percent or 0.0) / 100
            for rank, gone in zip(with_shares, idle, strict=True)
        ]
        computing = [100 - gone - talk for gone, talk in zip(idle, talking, strict=True)]
        shares.barh(labels, computing, color=COMPUTE, label="compute")
        shares.barh(labels, talking, left=computing, color=COMMUNICATION, label="communication")
        shares.barh(labels, idle, left=[100 - gone for gone in idle], color=IDLE, label="idle")
        shares.set(xlabel="% of the time", xlim=(0, 100))
        shares.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    figure.tight_layout()
    figure.savefig(path)
