"""The report as one HTML file: verdict, tables with intervals, and charts in inline SVG. No script, nothing from outside."""

import html
import math
from collections.abc import Sequence

from gpu_actions.loadtest.result import Distribution, LoadTestResult, RunVerdict

_STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--soft:#656d76;--line:#d0d7de;--back:#fff;
--a:#0969da;--b:#bc4c00;--c:#8250df;--bad:#cf222e}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#8d96a0;--line:#30363d;--back:#0d1117;
--a:#4493f8;--b:#f0883e;--c:#ab7df8;--bad:#f85149}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:60rem;margin:0 auto;padding:1rem}
h1{font-size:1.3rem;margin:.2rem 0}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}.soft{color:var(--soft)}
.badge{color:#fff;border-radius:.4rem;padding:.1rem .6rem;font-weight:600}
table{border-collapse:collapse;width:100%;font-size:.9rem}.scroll{overflow-x:auto}
td,th{text-align:right;padding:.25rem .6rem;border-bottom:1px solid var(--line);white-space:nowrap}
td:first-child,th:first-child{text-align:left}
svg{width:100%;height:auto}svg text{fill:var(--soft);font:11px system-ui,sans-serif}
.grid{stroke:var(--line);stroke-width:1}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(19rem,1fr));gap:1rem}
figure{margin:0}figcaption{font-weight:600;font-size:.9rem}li{margin:.1rem 0}pre{overflow-x:auto;font-size:.8rem}
"""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 460, 210, 52, 30, 10

Line = tuple[str, str, Sequence[tuple[float, float | None]]]
"""A line of a chart: its name, its CSS colour, its points (a missing y breaks the line)."""


def _ticks(top: float) -> list[float]:
    if top <= 0:
        return [0.0, 1.0]
    step = 10 ** math.floor(math.log10(top / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if top / (step * factor) <= 4.5)
    return [step * number for number in range(math.ceil(top / step) + 1)]


def _unbroken(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Split a line where a value is missing."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None:
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _chart(title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> str:
    known = [(x, y) for _, _, points in lines for x, y in points if y is not None]
    if not known:
        return f"<figure><figcaption>{title}</figcaption><p class=soft>nothing to show</p></figure>"
    x_top = max(x for x, _ in known) or 1.0
    y_ticks, x_ticks = _ticks(max(y for _, y in known)), [tick for tick in _ticks(x_top) if tick <= x_top]
    y_top = y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (_WIDTH - _LEFT - 8) * x / x_top,
            _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * y / y_top,
        )

    parts = [
        f'<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">'
    ]
    for tick in y_ticks:
        _, y = at(0, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x, _ = at(tick, 0)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 15}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 2}" text-anchor="end">{x_label}; {y_label}</text>')
    for _, colour, points in lines:
        for piece in _unbroken(points):
            spots = [at(x, y) for x, y in piece]
            if len(spots) == 1:
                parts.append(f'<circle cx="{spots[0][0]:.1f}" cy="{spots[0][1]:.1f}" r="2" fill="{colour}"/>')
                continue
            path = " ".join(f"{left:.1f},{top:.1f}" for left, top in spots)
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>')
    parts.append("</svg>")
    parts.append(" ".join(f'<span style="color:{colour}">&#9644; {name}</span>' for name, colour, _ in lines))
    parts.append("</figure>")
    return "".join(parts)


def _cdf(values: Sequence[float]) -> list[tuple[float, float | None]]:
    step = max(1, len(values) // 300)
    picked = [*range(0, len(values), step), len(values) - 1] if values else []
    return [(values[number], 100.0 * (number + 1) / len(values)) for number in picked]


def _figure(value: float | None, digits: int = 1) -> str:
    return "none" if value is None else f"{value:,.{digits}f}"


def _latency_row(name: str, distribution: Distribution) -> str:
    cells = [f"<td>{name}</td><td>{distribution.count:,}</td><td>{_figure(distribution.mean_ms)}</td>"]
    for percentile in (distribution.p50, distribution.p90, distribution.p95, distribution.p99):
        sign = "&ge; " if percentile.at_least else ""
        high = "open" if percentile.high_ms is None else _figure(percentile.high_ms)
        span = (
            ""
            if percentile.value_ms is None
            else f" <span class=soft>[{_figure(percentile.low_ms)}, {high}]</span>"
        )
        cells.append(f"<td>{sign}{_figure(percentile.value_ms)}{span}</td>")
    cells.append(f"<td>{_figure(distribution.max_ms)}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _items(entries: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(entry)}</li>" for entry in entries) + "</ul>"


def page_html(result: LoadTestResult, lines: Sequence[str]) -> str:
    """Give the whole page."""
    colour = {RunVerdict.PASSED: "#1a7f37", RunVerdict.FAILED: "#cf222e", RunVerdict.VOID: "#9a6700"}[
        result.verdict
    ]
    series, samples, latency = result.series, result.samples, result.latency
    charts = [
        _chart("Latency over time", "s", "ms", [
            ("TTFT p50", "var(--a)", [(p.at_s, p.ttft_p50_ms) for p in series]),
            ("TTFT p99", "var(--b)", [(p.at_s, p.ttft_p99_ms) for p in series]),
            ("E2E p99", "var(--c)", [(p.at_s, p.e2e_p99_ms) for p in series]),
        ]),
        _chart("Share of requests within", "ms", "%", [
            ("TTFT", "var(--a)", _cdf(samples.ttft_ms)), ("E2E", "var(--c)", _cdf(samples.e2e_ms)),
        ]),
        _chart("Offered against achieved", "s", "requests/s", [
            ("offered", "var(--a)", [(p.at_s, p.offered_qps) for p in series]),
            ("achieved", "var(--b)", [(p.at_s, p.done_qps) for p in series]),
        ]),
        _chart("Errors and requests in flight", "s", "errors/s, requests", [
            ("errors/s", "var(--bad)", [(p.at_s, p.error_qps) for p in series]),
            ("in flight", "var(--c)", [(p.at_s, float(p.in_flight)) for p in series]),
        ]),
    ]  # fmt: skip
    if any(point.power_watts is not None for point in series):
        charts.append(
            _chart("GPU power", "s", "W", [("power", "var(--b)", [(p.at_s, p.power_watts) for p in series])])
        )
    rows = "".join(
        _latency_row(name, distribution)
        for name, distribution in (
            ("TTFT", latency.ttft), ("E2E", latency.e2e), ("ITL", latency.itl), ("TPOT", latency.tpot),
            ("TTFT from send", latency.ttft_from_send), ("E2E from send", latency.e2e_from_send),
        )
    )  # fmt: skip
    errors = "".join(
        f"<tr><td>{entry.name}</td><td>{entry.count:,}</td><td>{entry.percent:.2f} %</td><td>{_figure(entry.first_at_s)}</td>"
        f"<td>{html.escape(entry.meaning)}</td><td>{html.escape(entry.example)}</td></tr>"
        for entry in result.errors
    )
    error_table = (
        f"<div class=scroll><table><tr><th>class</th><th>count</th><th>share</th><th>first at s</th><th>meaning</th>"
        f"<th>first example</th></tr>{errors}</table></div>"
        if errors
        else "<p>No request failed.</p>"
    )
    name = html.escape(result.name)
    details = result.model_dump_json(indent=1, exclude={"series", "samples", "latency", "errors"})
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{result.verdict.value}: {name}</title><style>{_STYLE}</style></head><body>"
        f'<h1><span class="badge" style="background:{colour}">{result.verdict.value.upper()}</span> {name}</h1>'
        f'<p class="soft">{html.escape(result.workload.model)} at {html.escape(result.engine.url)}, {result.times.started_at}, '
        f"workload {result.workload.fingerprint}</p>"
        f"{_items(lines)}"
        + (f"<h2>Why</h2>{_items(result.reasons)}" if result.reasons else "")
        + (f"<h2>Warnings</h2>{_items(result.warnings)}" if result.warnings else "")
        + f'<div class="charts">{"".join(charts)}</div>'
        f"<h2>Latency in ms from the due time <span class=soft>[95 % interval]</span></h2><div class=scroll><table>"
        f"<tr><th></th><th>n</th><th>mean</th><th>p50</th><th>p90</th><th>p95</th><th>p99</th><th>max</th></tr>{rows}</table></div>"
        f"<h2>Errors</h2>{error_table}<h2>Everything else</h2><pre>{html.escape(details)}</pre></body></html>"
    )
