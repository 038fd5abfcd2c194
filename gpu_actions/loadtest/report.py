"""A result for people: five lines for the thread, a page and a picture. The JSON is the source of all three."""

import sys
from collections.abc import Mapping
from pathlib import Path

from gpu_actions.loadtest.page import page_html
from gpu_actions.loadtest.result import Distribution, Energy, LoadTestResult, Percentile
from gpu_actions.loadtest.statistics import unbounded_text
from gpu_actions.models import Artifact
from gpu_actions.system.files import artifact_of, write_atomically
from gpu_actions.system.processes import run_process
from gpu_actions.system.redact import redact, redacted_json, redacted_tail

RENDER_TIMEOUT_S = 60
SOURCE = "python -m gpu_actions.loadtest"
JSON_NAME, HTML_NAME, PNG_NAME, TEXT_NAME = "load_test.json", "report.html", "report.png", "summary.txt"


def milliseconds(percentile: Percentile) -> str:
    """Format a percentile: `12.3 ms`, `>= 60,000 ms` when the request had not ended, `none` without a sample."""
    if percentile.value_ms is None:
        return "none"
    digits = 1 if percentile.value_ms < 1000 else 0
    return f"{'>= ' if percentile.at_least else ''}{percentile.value_ms:,.{digits}f} ms"


def _latency(label: str, distribution: Distribution) -> str:
    return f"{label} p50 {milliseconds(distribution.p50)}, p99 {milliseconds(distribution.p99)}"


def _energy(energy: Energy) -> str:
    if energy.joules is None:
        return f"energy: {energy.missing}"
    text = f"energy {energy.joules:,.0f} J at {energy.mean_watts:,.0f} W"
    if energy.joules_per_output_token is not None:
        text += f", {energy.joules_per_output_token:.3g} J/token"
    if energy.usd_per_million_output_tokens is not None:
        text += f", ${energy.usd_per_million_output_tokens:.3g} of electricity per million tokens"
    return text


def summary_lines(result: LoadTestResult) -> tuple[str, str, str, str, str]:
    """Return exactly five lines: verdict, latency, rates, errors and client, energy."""
    requests, rates, latency, reasons = result.requests, result.rates, result.latency, result.reasons
    verdict = (
        f"{result.verdict.value.upper()}: {result.name}, {requests.ok} of {requests.sent} requests served "
        f"({result.times.planned_s:g} s at {rates.target_qps:g} QPS){', PARTIAL' if result.partial else ''}"
    )
    if reasons:
        verdict += f": {reasons[0]}" + (f" (+{len(reasons) - 1} more)" if len(reasons) > 1 else "")
    times = f"{_latency('TTFT', latency.ttft)}; {_latency('E2E', latency.e2e)} from the due time"
    if unbounded := unbounded_text(latency.ttft):
        times += f" ({unbounded})"
    goodput = "none" if rates.goodput_percent is None else f"{rates.goodput_percent:.1f} %"
    throughput = (
        f"offered {rates.offered_qps:.2f} QPS, achieved {rates.achieved_qps:.2f}, good {goodput}; "
        f"{rates.output_tokens_per_s:,.0f} output tokens/s; {result.saturation.summary}"
    )
    errors = ", ".join(f"{entry.count} {entry.name}" for entry in result.errors[:4]) or "no errors"
    late = "none" if result.lateness.p99_ms is None else f"{result.lateness.p99_ms:.1f} ms"
    client = f"{errors}; client lateness p99 {late}; {result.cross_check.summary}"
    return verdict, times, throughput, client, _energy(result.energy)


def summary_text(result: LoadTestResult) -> str:
    """Return the five lines as text."""
    return redact("\n".join(line.replace("\n", " ") for line in summary_lines(result)) + "\n").text


def summary_table(result: LoadTestResult) -> list[list[str]]:
    """Return the latency figures as four rows for a narrow screen: a head, then one row a metric."""
    latency = result.latency
    rows = [("TTFT", latency.ttft), ("E2E", latency.e2e), ("Per token", latency.tpot)]
    figures = [[name, _short_ms(each.p50.value_ms), _short_ms(each.p99.value_ms)] for name, each in rows]
    return [["Latency", "p50", "p99"], *figures]


def _short_ms(value_ms: float | None) -> str:
    if value_ms is None:
        return "-"
    return f"{value_ms:.1f} ms" if value_ms < 10 else f"{value_ms:,.0f} ms"


async def write_reports(result: LoadTestResult, out_dir: Path) -> None:
    """Write all four files, the JSON first."""
    json_path = write_atomically(out_dir / JSON_NAME, redacted_json(result.model_dump_json()))
    write_atomically(out_dir / TEXT_NAME, summary_text(result))
    write_atomically(out_dir / HTML_NAME, page_html(result, summary_lines(result)))
    await draw_in_child("picture", json_path, out_dir / PNG_NAME)


async def draw_in_child(module: str, json_path: Path, png_path: Path) -> None:
    """Draw a result with a module of this package. A picture that fails is reported on standard error and is not an error."""
    argv = [sys.executable, "-m", f"gpu_actions.loadtest.{module}", str(json_path), str(png_path)]
    drawn = await run_process(argv, timeout_s=RENDER_TIMEOUT_S)
    if drawn.exit_code != 0:
        reason = "took too long" if drawn.timed_out else redacted_tail(drawn.stderr.strip(), 300)
        sys.stderr.write(
            f"the picture {png_path.name} could not be drawn ({reason}); the other files are complete\n"
        )


def files_of(folder: Path, titles: Mapping[str, str], *, source: str = SOURCE) -> tuple[Artifact, ...]:
    """Return the files of a result that exist. Pictures are shown in the thread itself."""
    return tuple(
        artifact_of(folder / name, source=source, title=title, inline=name.endswith(".png"))
        for name, title in titles.items()
        if (folder / name).is_file()
    )
