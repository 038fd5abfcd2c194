"""Charts of a result as data. `page.py` draws them as SVG, `picture.py` with matplotlib."""

from collections.abc import Sequence
from typing import NamedTuple

from gpu_actions.loadtest.result import LoadTestResult, RunVerdict

VERDICT_COLOURS = {RunVerdict.PASSED: "#1a7f37", RunVerdict.FAILED: "#cf222e", RunVerdict.VOID: "#9a6700"}
MAX_SHARE_POINTS = 300


class Line(NamedTuple):
    """A line of a chart. `colour` is a role (a, b, c, bad) that each renderer resolves; a missing y breaks the line."""

    name: str
    colour: str
    points: Sequence[tuple[float, float | None]]


class Chart(NamedTuple):
    """One chart with its axes."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]


def charts_of(result: LoadTestResult) -> list[Chart]:
    """Return the four charts of every result, and one of the power where it was measured."""
    series, samples = result.series, result.samples

    def line(name: str, colour: str, field: str) -> Line:
        return Line(name, colour, [(point.at_s, getattr(point, field)) for point in series])

    def shares(name: str, colour: str, values: Sequence[float]) -> Line:
        step = max(1, len(values) // MAX_SHARE_POINTS)
        picked = [*range(0, len(values), step), len(values) - 1] if values else []
        return Line(name, colour, [(values[n], 100.0 * (n + 1) / len(values)) for n in picked])

    latency = (
        line("TTFT p50", "a", "ttft_p50_ms"),
        line("TTFT p99", "b", "ttft_p99_ms"),
        line("E2E p99", "c", "e2e_p99_ms"),
    )
    within = (shares("TTFT", "a", samples.ttft_ms), shares("E2E", "c", samples.e2e_ms))
    rates = (line("offered", "a", "offered_qps"), line("achieved", "b", "done_qps"))
    load = (line("errors/s", "bad", "error_qps"), line("in flight", "c", "in_flight"))
    charts = [
        Chart("Latency over time", "s", "ms", latency),
        Chart("Share of requests within", "ms", "%", within),
        Chart("Offered against achieved", "s", "requests/s", rates),
        Chart("Errors and requests in flight", "s", "errors/s, requests", load),
    ]
    if any(point.power_watts is not None for point in series):
        charts.append(Chart("GPU power", "s", "W", (line("power", "b", "power_watts"),)))
    return charts
