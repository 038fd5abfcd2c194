"""Draws report.png in a child process: `python -m gpu_actions.loadtest.render load_test.json report.png`.

matplotlib takes 100 MB and a second to import, so neither the bot nor the generator does.
"""

import sys
from pathlib import Path

from gpu_actions.loadtest.report import colour_of, summary_lines
from gpu_actions.loadtest.result import LoadTestResult


def draw(result: LoadTestResult, path: Path) -> None:
    """Draw four panels under the verdict, sized for a phone's width."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(10, 7), dpi=110)
    series = result.series
    seconds = [point.at_s for point in series]

    def values(name: str) -> list[float]:
        return [float("nan") if getattr(point, name) is None else getattr(point, name) for point in series]

    marker = "o" if len(series) < 60 else None
    top_left, top_right, low_left, low_right = panels[0][0], panels[0][1], panels[1][0], panels[1][1]
    latencies = (
        ("ttft_p50_ms", "TTFT p50", "C0"),
        ("ttft_p99_ms", "TTFT p99", "C1"),
        ("e2e_p99_ms", "E2E p99", "C4"),
    )
    for name, label, colour in latencies:
        top_left.plot(seconds, values(name), label=label, color=colour, marker=marker, markersize=3)
    top_left.set(title="Latency from the due time", xlabel="s", ylabel="ms")
    for label, sample, colour in (
        ("TTFT", result.samples.ttft_ms, "C0"),
        ("E2E", result.samples.e2e_ms, "C4"),
    ):
        if sample:
            top_right.step(
                sample, [100 * (n + 1) / len(sample) for n in range(len(sample))], label=label, color=colour
            )
    top_right.set(title="Share of requests within", xlabel="ms", ylabel="%", ylim=(0, 101))
    low_left.plot(seconds, values("offered_qps"), label="offered", color="C0")
    low_left.plot(seconds, values("done_qps"), label="achieved", color="C1")
    low_left.set(title="Offered against achieved", xlabel="s", ylabel="requests/s")
    low_right.plot(seconds, values("in_flight"), label="in flight", color="C4")
    low_right.plot(seconds, values("error_qps"), label="errors/s", color="C3")
    low_right.set(title="In flight, and errors", xlabel="s")
    for panel in (top_left, top_right, low_left, low_right):
        panel.grid(alpha=0.3)
        panel.set_ylim(bottom=0)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
    first = summary_lines(result)[0]
    title = first if len(first) <= 110 else first[:107] + "..."
    figure.suptitle(title, color=colour_of(result.verdict), fontweight="bold", fontsize=11)
    figure.tight_layout()
    figure.savefig(path)


def main(argv: list[str]) -> int:
    """Read a result, write a picture."""
    draw(LoadTestResult.model_validate_json(Path(argv[0]).read_bytes()), Path(argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
