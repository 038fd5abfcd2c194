"""The report as one HTML file, from `page.html.j2`: no script, nothing from outside, charts as inline SVG.

The page follows the reader's light or dark theme.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_actions.loadtest.charts import VERDICT_COLOURS, Chart, charts_of
from gpu_actions.loadtest.result import LoadTestResult
from gpu_actions.system.redact import redact, redacted_json

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 460, 210, 52, 452, 180, 10
TEMPLATE = Path(__file__).with_name("page.html.j2")
LATENCIES = {
    "ttft": "TTFT",
    "e2e": "E2E",
    "itl": "ITL",
    "tpot": "TPOT",
    "ttft_from_send": "TTFT from send",
    "e2e_from_send": "E2E from send",
}


def page_html(result: LoadTestResult, lines: Sequence[str]) -> str:
    """Return the whole page. `lines` is the summary."""
    import jinja2  # imported after the load: the generator's memory stays small

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined, finalize=_clean
    )
    environment.filters["figure"] = lambda value: "none" if value is None else f"{value:,.1f}"
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        result=result,
        lines=lines,
        colour=VERDICT_COLOURS[result.verdict],
        charts=[_placed(chart) for chart in charts_of(result)],
        latencies=[(label, getattr(result.latency, field)) for field, label in LATENCIES.items()],
        details=redacted_json(result.model_dump_json(exclude={"series", "samples", "latency", "errors"})),
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=RIGHT,
    )


def _clean(value: Any) -> Any:
    """Return a value of the page without secrets: texts of engines end in it."""
    return redact(value).text if isinstance(value, str) else value


def _placed(chart: Chart) -> dict[str, Any]:
    """Return a chart with the pixel coordinates of its ticks and lines."""
    known = [(x, y) for line in chart.lines for x, y in line.points if y is not None]
    placed: dict[str, Any] = {**chart._asdict(), "shapes": [], "x_ticks": [], "y_ticks": []}
    if not known:
        return placed
    x_top = max(x for x, _ in known) or 1.0
    y_ticks = _ticks(max(y for _, y in known))

    def x_at(x: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * x / x_top, 1)

    def y_at(y: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * y / y_ticks[-1], 1)

    placed["y_ticks"] = [(y_at(tick), f"{tick:g}") for tick in y_ticks]
    placed["x_ticks"] = [(x_at(tick), f"{tick:g}") for tick in _ticks(x_top) if tick <= x_top]
    for line in chart.lines:
        pieces: list[list[tuple[float, float]]] = [[]]
        for x, y in line.points:
            if y is not None:
                pieces[-1].append((x_at(x), y_at(y)))
            elif pieces[-1]:
                pieces.append([])
        placed["shapes"] += [(line.colour, piece) for piece in pieces if piece]
    return placed


def _ticks(top: float) -> list[float]:
    if top <= 0:
        return [0.0, 1.0]
    step = 10 ** math.floor(math.log10(top / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if top / (step * factor) <= 4.5)
    return [step * number for number in range(math.ceil(top / step) + 1)]
