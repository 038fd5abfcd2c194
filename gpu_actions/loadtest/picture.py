"""Draw report.png in a child process: `python -m gpu_actions.loadtest.picture load_test.json report.png`.

matplotlib takes 100 MB and a second to import, so neither the bot nor the generator does.
"""

import math
import sys
import textwrap
from pathlib import Path

from gpu_actions.loadtest.charts import VERDICT_COLOURS, charts_of
from gpu_actions.loadtest.report import summary_lines
from gpu_actions.loadtest.result import LoadTestResult, read_result

COLOURS = {"a": "C0", "b": "C1", "c": "C4", "bad": "C3"}
MAX_TITLE = 110
TITLE_WIDTH = 40
LABEL_POINTS = 10


def draw(result: LoadTestResult, path: Path) -> None:
    """Draw latency and rates below the verdict: a phone shows the picture about 300 pixels wide, so there is room for two.

    The page of the report has every chart. A figure of 4.2 inches at that width has 71 pixels an inch, so a label of 10
    points is as large as the text around it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": LABEL_POINTS, "axes.titlesize": LABEL_POINTS + 1})
    figure, panels = pyplot.subplots(2, 1, figsize=(4.2, 4.8), dpi=200)
    latency, _, rates, *_ = charts_of(result)
    for panel, chart in zip(panels, (latency, rates), strict=True):
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
        panel.set_ylim(bottom=0, top=panel.get_ylim()[1] * 1.3)  # room for the legend
        panel.legend(
            fontsize=LABEL_POINTS - 2, loc="upper center", ncols=3, columnspacing=1, handlelength=1.2
        )
        panel.locator_params(axis="both", nbins=5)
    title = summary_lines(result)[0]
    title = title if len(title) <= MAX_TITLE else title[: MAX_TITLE - 3] + "..."
    lines = "\n".join(textwrap.wrap(title, TITLE_WIDTH))
    figure.suptitle(
        lines, color=VERDICT_COLOURS[result.verdict], fontweight="bold", fontsize=LABEL_POINTS + 1
    )
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    draw(read_result(Path(sys.argv[1])), Path(sys.argv[2]))
