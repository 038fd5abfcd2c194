"""Draws the charts of the documents from recorded figures: `python docs/make_charts.py`.

`fallback-times.png`, `standby-starts.png` and `hangs.png` from validations on H100s, `load-generators.png` from the tables of
docs/benchmarks/loadtest.md.
"""

import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

DOCS = Path(__file__).parent
RECORD = DOCS / "validation" / "2026-11-23-h100-x2" / "validation.json"
STANDBY = DOCS / "validation" / "2026-11-27-h100-x2"
CAMPAIGNS = {
    "2 and 4 ranks on the CPU": [DOCS / "benchmarks" / "hangs-cpu.json"],
    "2 and 4 ranks on H100s": [
        STANDBY.with_name("2026-11-27-h100-x4") / name
        for name in ("hangs.json", "hangs-2.json", "hangs-3.json")
    ],
}
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


def standby_starts() -> None:
    """Seconds to the first token and GPU memory held meanwhile, for each way to have a fallback ready."""
    starts = json.loads((STANDBY / "standby.json").read_text())["standby"]["8 GiB"]
    cycles = json.loads((STANDBY / "checkpoint.json").read_text())["checkpoint"]["one_process"]
    asleep = starts["asleep"]
    rows = {
        "cold": ([run["first_token_s"] for run in starts["cold"]], 0.0),
        "page-cached": ([run["first_token_s"] for run in starts["page_cached"]], 0.0),
        "cuda-checkpoint": ([run["first_answer_s"] for run in cycles], cycles[0]["gpu_gib_kept"]),
        "asleep": ([run["first_token_s"] for run in asleep], asleep[0]["gpu_gib_kept"]),
        "resident": ([starts["resident"]["first_token_s"]], starts["resident"]["gpu_gib"]),
    }
    medians = [sorted(seconds)[len(seconds) // 2] for seconds, _ in rows.values()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3), dpi=110, sharey=True)
    left.barh(list(rows), medians, color="#0072b2")
    left.set(xscale="log", xlim=(0.01, 30), title="first token after, s (logarithmic)")
    right.barh(list(rows), [gib for _, gib in rows.values()], color="#e69f00")
    right.set(xlim=(0, 12), title="GPU memory held meanwhile, GiB")
    left.bar_label(left.containers[0], [f"{s:.2g}" for s in medians], padding=3, fontsize=8)
    right.bar_label(right.containers[0], fmt="%.2g", padding=3, fontsize=8)
    left.invert_yaxis()
    figure.tight_layout()
    figure.savefig(DOCS / "images" / "standby-starts.png")


def hangs() -> None:
    """When the culprit of each injected hang was named, in each campaign."""
    figure, panels = pyplot.subplots(1, len(CAMPAIGNS), figsize=(9, 4), dpi=110, sharex=True, sharey=True)
    kinds: list[str] = []
    for panel, (title, paths) in zip(panels, CAMPAIGNS.items(), strict=True):
        rows = [row for path in paths for row in json.loads(path.read_text())["hangs"]]
        kinds += [fault for fault in dict.fromkeys(row["fault"] for row in rows) if fault not in kinds]
        for good, colour in ((True, COLOURS["done"]), (False, "#d55e00")):
            shown = [row for row in rows if row["named_s"] is not None and row["right"] is good]
            panel.scatter(
                [row["named_s"] for row in shown],
                [kinds.index(row["fault"]) for row in shown],
                color=colour,
                alpha=0.7 if len(rows) < 100 else 0.2,
                s=18,
                label="right rank" if good else "wrong rank",
            )
        panel.axvline(10, color="#0072b2", linestyle="--", linewidth=1)
        panel.set(title=title, xlabel="seconds from the injection to a named rank", xlim=(0, 31))
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(kinds)), kinds)
    panels[0].invert_yaxis()
    panels[-1].legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "images" / "hangs.png")


if __name__ == "__main__":
    fallback_times()
    hangs()
    standby_starts()
    load_generators()
