"""The texts of `/loadtest compare` and `/loadtest baseline`: the verdict, what to do, then one line per metric."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bot.presenter.message import Lines, Message, Part, compose, section, table
from bot.presenter.mrkdwn import code, one_line
from bot.presenter.render_context import RenderContext
from bot.presenter.vocabulary import count
from gpu_actions.config.policies import token_range
from gpu_actions.loadtest.comparison import Change, Comparison, MetricComparison

if TYPE_CHECKING:
    from bot.incidents.loadtest_results import KnownBaseline
    from gpu_actions.loadtest.baseline import Baseline, Reference

SIGNS = {
    Change.MATCHES: ":large_green_circle:",
    Change.IMPROVED: ":large_green_circle:",
    Change.REGRESSED: ":red_circle:",
    Change.INCONCLUSIVE: ":large_yellow_circle:",
    Change.REFUSED: ":no_entry:",
}
NEXT = {
    Change.MATCHES: "As good as before. No action needed.",
    Change.IMPROVED: "Better than before. If it stays that way, record a new baseline.",
    Change.REGRESSED: "Find the cause before you send traffic here: triage shows what changed on the host.",
    Change.INCONCLUSIVE: "There is not enough data to tell. Run it again, longer or at a higher rate.",
    Change.REFUSED: "These two cannot be compared. Repeat the test with the same options on the same host.",
}
METRIC_NAMES = {
    "served_percent": "served",
    "achieved_qps": "answered",
    "output_tokens_per_s": "output tokens",
    "ttft_p50": "TTFT p50",
    "ttft_p99": "TTFT p99",
    "tpot_p50": "TPOT p50",
    "e2e_p50": "E2E p50",
    "e2e_p99": "E2E p99",
}

_UNITS = {"served_percent": "points"}
"""The unit of a change, where it is not percent."""


def comparison_message(run: str, comparison: Comparison) -> Message:
    title = f"{comparison.verdict.value.upper()}: {run} against {comparison.baseline_name}"
    first = f"{SIGNS[comparison.verdict]} *{one_line(title)}*\n{NEXT[comparison.verdict]}"
    lines = tuple(_metric(metric) for metric in comparison.metrics)
    shown = tuple(metric.metric for metric in comparison.metrics)  # a reason about a metric repeats its line
    reasons = (f"• {one_line(reason, 500)}" for reason in comparison.reasons if not reason.startswith(shown))
    parts: list[Part] = [
        section(first),
        *_worst(comparison),
        Lines(lines, noun="metrics", small=True),
        Lines(tuple(reasons), noun="reasons", small=True),
    ]
    return compose(one_line(title), parts)


def _worst(comparison: Comparison) -> list[Part]:
    """Return the metrics that matter most as a table of at most four rows: what regressed or cannot be told comes first."""
    compared = [metric for metric in comparison.metrics if metric.change is not None]
    if not compared:
        return []
    order = (Change.REGRESSED, Change.INCONCLUSIVE, Change.REFUSED, Change.IMPROVED, Change.MATCHES)
    compared.sort(key=lambda metric: (order.index(metric.verdict), not metric.decisive))
    rows = [
        [
            METRIC_NAMES.get(metric.metric, metric.metric),
            f"{metric.change:+.0f} {_UNITS.get(metric.metric, '%')}",
            metric.verdict.value,
        ]
        for metric in compared[:3]
    ]
    return [table([["Metric", "change", "verdict"], *rows])]


def baselines_message(known: "Sequence[KnownBaseline]", context: RenderContext) -> Message:
    """Return all baselines, one line each; a star marks those in force."""
    in_force = sum(one.in_force for one in known)
    first = f"{count(in_force, 'baseline')} in force" if in_force else "No baseline is recorded yet"
    how = f"To record one while the host is healthy: {context.command('loadtest', 'baseline record NAME')} (three runs)."
    return compose(first, [section(f"*{first}*\n{how}"), Lines(tuple(map(_line, known)), noun="baselines")])


def baseline_message(known: "KnownBaseline", context: RenderContext, *, done: str = "") -> Message:
    """Return one baseline: its workload and its runs. `done` is what has just been done with it."""
    entry = known.entry
    if entry is None:
        return compose(known.name, [section(f":no_entry: {one_line(known.problem, 800)}")])
    first = done or f"{code(known.name)} is {'' if known.in_force else 'not '}in force for its workload"
    if entry.kind == "reference":
        return _reference(entry)
    if not known.in_force:
        first += f"; to put it in force: {context.command('loadtest', f'baseline set {known.name}')}"
    work = entry.workload
    lines = [
        f"*Load* {work.target_qps:g} requests/s, {token_range(work.min_new_tokens, work.max_new_tokens)} new tokens, prompts "
        f"{work.prompt_len_min}-{work.prompt_len_max}, {work.arrival} arrivals",
        f"*Of* {one_line(work.model)} on {one_line(entry.host.hostname)}, recorded {one_line(entry.recorded_at)}",
        *(
            f"*Run {number}* {run.ok} of {run.sent} served in {run.measured_s:.0f} s, {run.achieved_qps:.1f} requests/s"
            f"{_ms(', TTFT p99', run.ttft_p99_ms)}{_ms(', E2E p99', run.e2e_p99_ms)}"
            for number, run in enumerate(entry.runs, start=1)
        ),
    ]
    return compose(first, [section(f"{first}."), Lines(tuple(lines), noun="lines")])


def _reference(entry: "Reference") -> Message:
    checked = "verified" if entry.verified else "unverified"
    first = f"{code(entry.name)} is a published reference, {checked}: it is never in force."
    lines = [
        f"*{one_line(figure.label)}*"
        + (f" {figure.achieved_qps:g} requests/s" if figure.achieved_qps is not None else "")
        + _ms(", p99", figure.p99_ms)
        + (f" {one_line(figure.finding)}" if figure.finding else "")
        for figure in entry.figures
    ]
    source = f"{one_line(entry.source)}. {one_line(entry.note, 500)}"
    return compose(first, [section(f"{first}\n{source}"), Lines(tuple(lines), noun="figures")])


def _line(known: "KnownBaseline") -> str:
    entry: Baseline | Reference | None = known.entry
    if entry is None:
        return f":warning: {code(known.name)} {one_line(known.problem)}"
    if entry.kind == "reference":
        return f":books: {code(known.name)} unverified reference, never in force"
    load = f"{one_line(entry.workload.model)} at {entry.workload.target_qps:g} requests/s on {one_line(entry.host.hostname)}"
    return f"{':star:' if known.in_force else ':white_circle:'} {code(known.name)} {load}, {len(entry.runs)} runs"


def _metric(metric: MetricComparison) -> str:
    name = METRIC_NAMES.get(metric.metric, metric.metric)
    if metric.change is None:
        return f":white_circle: *{name}* {one_line(metric.note)}"
    return f"{SIGNS[metric.verdict]} *{name}* {one_line(metric.figures())}: {metric.verdict.value}"


def _ms(label: str, value: float | None) -> str:
    return "" if value is None else f"{label} {value:.0f} ms"
