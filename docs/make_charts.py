"""Draws the charts of the documents from recorded figures: `python docs/make_charts.py`.

`fallback-times.png` from the validation on 2 x H100, `load-generators.png` from the tables of docs/benchmarks/loadtest.md.
"""

import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

DOCS = Path(__file__).parent
RECORD = DOCS / "validation" / "2026-11-23-h100-x2" / "validation.json"
COLOURS = {"done": "#009e73", "warning": "#e69f00"}


def fallback_times() -> None:
    """A bar a step of the real fallback, one after the other."""
    record = json.loads(RECORD.read_text())["runbook"]
    rows = [re.match(r"(\S+)\s+(\S+)\s+([\d.]+) s", line) for line in record["fallback"]["steps"]]
    steps = [(row.group(1), row.group(2), float(row.group(3))) for row in rows if row]
    figure, axes = pyplot.subplots(figsize=(9, 3.6), dpi=110)
    at = 0.0
    for number, (name, status, seconds) in enumerate(steps):
        axes.barh(number, max(seconds, 0.08), left=at, color=COLOURS[status], height=0.7)
        axes.text(at + seconds + 0.4, number, f"{seconds:.1f} s", va="center", fontsize=8)
        at += seconds
        if name == "route":
            axes.axvline(at, color="#0072b2", linestyle="--", linewidth=1)
            axes.text(at + 0.3, -0.9, "served again", color="#0072b2", fontsize=8, va="center")
    axes.set_yticks(range(len(steps)), [name for name, _, _ in steps])
    axes.invert_yaxis()
    axes.set_xlim(0, at + 4)
    axes.set(
        xlabel="seconds since the fallback's start", title="A fallback on 2 x H100, rank 1 stopped under load"
    )
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(DOCS / "images" / "fallback-times.png")


def load_generators() -> None:
    """The highest rate and the CPU a request of each client."""
    table = (DOCS / "benchmarks" / "loadtest.md").read_text()
    rows = re.findall(
        r"^\| \**(ours|vLLM|aiohttp|httpx|aiperf|guidellm)[^|]*\| \**([\d,]+)/s[^|]*\|[^|]*\| \**([\d.]+) ms",
        table,
        re.MULTILINE,
    )
    names = [name for name, _, _ in rows]
    colours = ["#009e73" if name == "ours" else "#999999" for name in names]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 2.8), dpi=110)
    left.bar(names, [float(rate.replace(",", "")) for _, rate, _ in rows], color=colours)
    left.set(title="requests/s with p99 lateness under 5 ms")
    right.bar(names, [float(cpu) for _, _, cpu in rows], color=colours)
    right.set(title="CPU a request, ms")
    for panel in (left, right):
        panel.grid(axis="y", alpha=0.3)
        panel.margins(y=0.12)
        panel.bar_label(panel.containers[0], fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "images" / "load-generators.png")


if __name__ == "__main__":
    fallback_times()
    load_generators()
