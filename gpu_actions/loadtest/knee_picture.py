"""Draw knee.png in a child process: `python -m gpu_actions.loadtest.knee_picture knee.json knee.png`."""

import sys
from pathlib import Path

from gpu_actions.loadtest.charts import VERDICT_COLOURS
from gpu_actions.loadtest.knee_result import KneeResult, KneeTrial, knee_lines, read_knee

HELD, FAILED, LIMIT = "C2", "C3", "#666666"


def draw(result: KneeResult, path: Path) -> None:
    """Draw latency and completed requests against the rate offered, one mark for each trial."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, (latency, rates) = pyplot.subplots(1, 2, figsize=(10, 4.5), dpi=110)

    def marks(held: bool) -> list[KneeTrial]:
        return [one for one in result.trials if one.held is held]

    for held, colour, marker, label in ((True, HELD, "o", "holds"), (False, FAILED, "x", "does not hold")):
        with_p99 = [one for one in marks(held) if one.ttft_p99_ms is not None]
        latency.scatter([one.rate_qps for one in with_p99], [one.ttft_p99_ms for one in with_p99],
                        color=colour, marker=marker, label=label)  # fmt: skip
        done = [one for one in marks(held) if one.completed_qps is not None]
        rates.scatter([one.rate_qps for one in done], [one.completed_qps for one in done],
                      color=colour, marker=marker, label=label)  # fmt: skip
    latency.axhline(
        result.slo_ttft_ms, color=LIMIT, linestyle="--", linewidth=1, label=f"limit {result.slo_ttft_ms:g} ms"
    )
    offered = [one.rate_qps for one in result.trials] or [1.0]
    rates.plot(
        [min(offered), max(offered)], [min(offered), max(offered)], color=LIMIT, linewidth=1, label="offered"
    )
    for panel, title, label in ((latency, "TTFT p99", "ms"), (rates, "Completed", "requests/s")):
        if result.knee_qps is not None:
            panel.axvline(result.knee_qps, color=HELD, linewidth=1, label=f"knee {result.knee_qps:.3g}/s")
        panel.set(title=title, xlabel="requests/s offered", ylabel=label, xscale="log", yscale="log")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axis.set_minor_formatter(ticker.NullFormatter())
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(
        knee_lines(result)[0][:110], color=VERDICT_COLOURS[result.verdict], fontweight="bold", fontsize=11
    )
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    draw(read_knee(Path(sys.argv[1])), Path(sys.argv[2]))
