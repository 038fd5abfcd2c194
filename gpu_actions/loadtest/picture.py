"""Draw report.png in a child process: `python -m gpu_actions.loadtest.picture load_test.json report.png`.

matplotlib takes 100 MB and a second to import, so neither the bot nor the generator does.
"""

import math
import sys
from pathlib import Path

from gpu_actions.loadtest.charts import VERDICT_COLOURS, charts_of
from gpu_actions.loadtest.report import summary_lines
from gpu_actions.loadtest.result import LoadTestResult, read_result

COLOURS = {"a": "C0", "b": "C1", "c": "C4", "bad": "C3"}
MAX_TITLE = 110


def draw(result: LoadTestResult, path: Path) -> None:
    """Draw the first four charts below the verdict, sized for a phone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(10, 7), dpi=110)
    for panel, chart in zip(panels.flat, charts_of(result), strict=False):
        for line in chart.lines:
            panel.plot(
                [x for x, _ in line.points],
                [math.nan if y is None else y for _, y in line.points],
                label=line.name,
                color=COLOURS[line.colour],
                marker="o" if len(line.points) < 60 else None,
                markersize=3,
            )
        panel.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
        panel.grid(alpha=0.3)
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=8)
    title = summary_lines(result)[0]
    title = title if len(title) <= MAX_TITLE else title[: MAX_TITLE - 3] + "..."
    figure.suptitle(title, color=VERDICT_COLOURS[result.verdict], fontweight="bold", fontsize=11)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    draw(read_result(Path(sys.argv[1])), Path(sys.argv[2]))
