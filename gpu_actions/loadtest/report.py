"""A result for people: five lines for the thread, a self-contained page, a picture. The JSON is the source of all three.

The page has no script and no outside reference; its charts are inline SVG that follow the reader's light or dark theme.
"""

import sys
from pathlib import Path

from gpu_actions.loadtest.page import page_html
from gpu_actions.loadtest.result import Distribution, LoadTestResult, Percentile, RunVerdict
from gpu_actions.system.files import write_atomically
from gpu_actions.system.processes import run_process

RENDER_TIMEOUT_S = 60
JSON_NAME, HTML_NAME, PNG_NAME, TEXT_NAME = "load_test.json", "report.html", "report.png", "summary.txt"


def milliseconds(percentile: Percentile) -> str:
    """A percentile for a phone: `12.3 ms`, `>= 60,000 ms` when the request had not ended, `none` without a sample."""
    if percentile.value_ms is None:
        return "none"
    sign = ">= " if percentile.at_least else ""
    digits = 1 if percentile.value_ms < 1000 else 0
    return f"{sign}{percentile.value_ms:,.{digits}f} ms"


def interval(percentile: Percentile) -> str:
    """The 95 % interval of a percentile, with its open end said in words."""
    if percentile.low_ms is None and percentile.high_ms is None:
        return "no interval"
    low = "?" if percentile.low_ms is None else f"{percentile.low_ms:,.1f}"
    high = "open" if percentile.high_ms is None else f"{percentile.high_ms:,.1f}"
    return f"{low} to {high}"


def _latency_part(label: str, distribution: Distribution) -> str:
    return f"{label} p50 {milliseconds(distribution.p50)}, p99 {milliseconds(distribution.p99)}"


def summary_lines(result: LoadTestResult) -> tuple[str, str, str, str, str]:
    """Exactly five lines: verdict, latency, rates, errors and client, energy."""
    requests, rates = result.requests, result.rates
    load = f"{result.times.planned_s:g} s at {rates.target_qps:g} QPS"
    first = f"{result.verdict.value.upper()}: {result.name}, {requests.ok} of {requests.sent} requests served ({load})"
    if result.partial:
        first += ", PARTIAL"
    if result.reasons:
        first += f": {result.reasons[0]}" + (
            f" (+{len(result.reasons) - 1} more)" if len(result.reasons) > 1 else ""
        )
    confidence = result.latency.ttft.p99.confidence_percent
    second = f"{_latency_part('TTFT', result.latency.ttft)}; {_latency_part('E2E', result.latency.e2e)} from the due time"
    if confidence is not None and confidence < 95:
        second += f" (p99 seen with {confidence:.0f} % confidence, n={result.latency.ttft.count})"
    goodput = "none" if rates.goodput_percent is None else f"{rates.goodput_percent:.1f} %"
    third = (
        f"offered {rates.offered_qps:.2f} QPS, achieved {rates.achieved_qps:.2f}, good {goodput}; "
        f"{rates.output_tokens_per_s:,.0f} output tokens/s; {result.saturation.summary}"
    )
    errors = ", ".join(f"{entry.count} {entry.name}" for entry in result.errors[:4]) or "no errors"
    late = "none" if result.lateness.p99_ms is None else f"{result.lateness.p99_ms:.1f} ms"
    fourth = f"{errors}; client lateness p99 {late}; {result.cross_check.summary}"
    energy = result.energy
    if energy.joules is None:
        fifth = f"energy: {energy.missing}"
    else:
        token = (
            ""
            if energy.joules_per_output_token is None
            else f", {energy.joules_per_output_token:.3g} J/token"
        )
        cost = energy.usd_per_million_output_tokens
        fifth = f"energy {energy.joules:,.0f} J at {energy.mean_watts:,.0f} W{token}" + (
            "" if cost is None else f", ${cost:.3g} of electricity per million tokens"
        )
    return first, second, third, fourth, fifth


def summary_text(result: LoadTestResult) -> str:
    """The five lines as text."""
    return "\n".join(line.replace("\n", " ") for line in summary_lines(result)) + "\n"


async def write_reports(result: LoadTestResult, out_dir: Path) -> None:
    """Write all four files. The JSON goes first and whole; a picture that fails is said on standard error, not an error."""
    json_path = write_atomically(out_dir / JSON_NAME, result.model_dump_json(indent=1))
    write_atomically(out_dir / TEXT_NAME, summary_text(result))
    write_atomically(out_dir / HTML_NAME, page_html(result, summary_lines(result)))
    argv = [sys.executable, "-m", "gpu_actions.loadtest.render", str(json_path), str(out_dir / PNG_NAME)]
    rendered = await run_process(argv, timeout_s=RENDER_TIMEOUT_S)
    if rendered.exit_code != 0:
        reason = "took too long" if rendered.timed_out else rendered.stderr.strip()[-300:]
        sys.stderr.write(
            f"the picture {PNG_NAME} could not be made ({reason}); the other files are complete\n"
        )


def colour_of(verdict: RunVerdict) -> str:
    """The verdict's colour, the same in page and picture."""
    return {RunVerdict.PASSED: "#1a7f37", RunVerdict.FAILED: "#cf222e", RunVerdict.VOID: "#9a6700"}[verdict]
