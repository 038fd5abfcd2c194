"""Compare a run with a baseline: a verdict per metric with a 95 % interval, never a bare percentage.

Latency: bootstrap of the relative change over the requests of each run, with the spread between the baseline's runs added on
both sides, so that a run is not called worse for differences that runs of one healthy service show anyway. Served share:
Newcombe's interval of the difference of two shares (Statistics in Medicine 1998, method 10). Throughput: the prediction
interval of one more run of the baseline (Student's t), since one run has one figure; a baseline of one run has none.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field

from gpu_actions.loadtest.baseline import (
    Baseline,
    BaselineRun,
    BaselineStore,
    Reference,
    RunSet,
    baseline_run,
    differing_fields,
    unusable_state,
)
from gpu_actions.loadtest.result import LoadTestResult, RunVerdict
from gpu_actions.loadtest.statistics import wilson_interval
from gpu_actions.models import Artifact, Frozen
from gpu_actions.system.files import artifact_of, write_atomically

COMPARISON_NAME = "comparison.json"
BOOTSTRAP_DRAWS = 1000
SAMPLING_DRAWS = 100
MOST_DRAWN = 100_000
"""Requests drawn at once: some megabytes of memory."""
BOOTSTRAP_SEED = 20
TOLERANCE_PERCENT = 10.0
"""A smaller change needs no action; the runbook acts on a sustained 30 %."""
FLOOR_MS = 2.0
"""The resolution of the load test itself: a smaller change of a latency is no change."""
SERVED_TOLERANCE_POINTS = 1.0
SERVED = "served_percent"
LATENCIES = (
    ("ttft_p50", "ttft_ms", 0.50, True),
    ("ttft_p99", "ttft_ms", 0.99, False),
    ("tpot_p50", "tpot_ms", 0.50, True),
    ("e2e_p50", "e2e_ms", 0.50, True),
    ("e2e_p99", "e2e_ms", 0.99, False),
)
"""Name, sample, quantile, and whether an inconclusive answer is decisive: tails rarely have enough samples."""
THROUGHPUTS = (("achieved_qps", "requests/s"), ("output_tokens_per_s", "tokens/s"))
STUDENT_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Of 1 to 9 degrees of freedom."""
SAME_LENGTH = 0.1
ENOUGH_RUNS = 5
"""The spread of fewer runs is poorly known: its 95 % interval reaches to 6 times the estimate for 3 runs, to 3 times for 5."""


class Change(StrEnum):
    """The verdict on a metric, or on the whole comparison."""

    MATCHES = "matches"
    IMPROVED = "improved"
    REGRESSED = "regressed"
    INCONCLUSIVE = "inconclusive"
    REFUSED = "refused"


class MetricComparison(Frozen):
    """One metric. A rise is worse for latencies, better for served_percent and throughput. The interval is 95 %."""

    metric: str
    unit: str
    baseline: float | None
    candidate: float | None
    change: float | None = Field(description="percent; percentage points for served_percent")
    low: float | None = None
    high: float | None = None
    decisive: bool = Field(
        description="whether an inconclusive answer here makes the whole comparison inconclusive"
    )
    verdict: Change
    note: str = ""

    def figures(self) -> str:
        """Return both values, the change and its interval: `100.0 → 135.0 ms, +35.0 % [+20.1, +50.2]`."""
        if self.baseline is None or self.candidate is None or self.change is None:
            return self.note
        unit, change_unit = ("%", "points") if self.metric == SERVED else (f" {self.unit}", "%")
        text = f"{self.baseline:.1f} → {self.candidate:.1f}{unit}, {self.change:+.1f} {change_unit}"
        return (
            text if self.low is None or self.high is None else f"{text} [{self.low:+.1f}, {self.high:+.1f}]"
        )


class Comparison(Frozen):
    """The outcome of a comparison. `reasons` are for people."""

    verdict: Change
    baseline_name: str
    reasons: tuple[str, ...]
    metrics: tuple[MetricComparison, ...] = ()

    @property
    def passed(self) -> bool:
        """True if a restore may go on by itself: nothing regressed, and nothing decisive is inconclusive."""
        return self.verdict in {Change.MATCHES, Change.IMPROVED}

    @property
    def exit_code(self) -> int:
        """0 matches or improved, 1 regressed, 3 inconclusive or refused."""
        return 0 if self.passed else 1 if self.verdict is Change.REGRESSED else 3


def compare(
    candidate: LoadTestResult,
    baseline: Baseline | RunSet | Reference,
    *,
    tolerance_percent: float = TOLERANCE_PERCENT,
) -> Comparison:
    """Compare a run with a baseline. Pure. Unlike things are refused with the reason, not compared.

    A metric regressed when its whole interval is on the bad side of 0 and the change is above the tolerance and the floor. It
    matches when the interval ends below the tolerance. In between it is inconclusive.
    """
    if isinstance(baseline, Reference):
        refusals = [
            f"{baseline.name} is an unverified reference and never the judge; record a baseline of this host"
        ]
    elif not (refusals := _refusals(candidate, baseline)):
        return _compare(candidate, baseline, tolerance_percent)
    return Comparison(verdict=Change.REFUSED, baseline_name=baseline.name, reasons=tuple(refusals))


def compare_with_current(result: LoadTestResult, store: BaselineStore, folder: Path) -> Comparison | None:
    """Compare a run with the baseline in force and write comparison.json. Return None where no baseline is in force.

    Takes half a second of numpy. Raises BaselineError for a baseline that cannot be read.
    """
    baseline = store.current_for(result)
    if baseline is None:
        return None
    comparison = compare(result, baseline)
    write_atomically(folder / COMPARISON_NAME, comparison.model_dump_json(indent=1))
    return comparison


def comparison_file(folder: Path, title: str) -> Artifact:
    """Return the file that `compare_with_current` wrote."""
    return artifact_of(folder / COMPARISON_NAME, source="gpu_actions.loadtest.comparison", title=title)


def _refusals(candidate: LoadTestResult, baseline: Baseline | RunSet) -> list[str]:
    refusals = []
    if state := unusable_state(candidate):
        refusals.append(f"the run of {candidate.times.started_at} is {state}")
    if differences := differing_fields(candidate.workload, baseline.workload):
        refusals.append(f"the workloads differ: {'; '.join(differences)}")
    if candidate.host.hostname != baseline.host.hostname:
        refusals.append(f"the hosts differ: {candidate.host.hostname} against {baseline.host.hostname}")
    return refusals


def _compare(candidate: LoadTestResult, baseline: Baseline | RunSet, tolerance: float) -> Comparison:
    run = baseline_run(candidate)
    metrics = [_served(run, baseline.runs)]
    metrics += [
        _throughput(name, unit, run, baseline.runs, tolerance, candidate.rates.target_qps)
        for name, unit in THROUGHPUTS
    ]
    metrics += [_latency(*latency, run, baseline.runs, tolerance) for latency in LATENCIES]
    regressed, inconclusive, improved = (
        [metric for metric in metrics if metric.verdict is verdict]
        for verdict in (Change.REGRESSED, Change.INCONCLUSIVE, Change.IMPROVED)
    )
    failed = candidate.verdict is RunVerdict.FAILED
    verdict = Change.IMPROVED if improved else Change.MATCHES
    if regressed or failed:
        verdict = Change.REGRESSED
    elif any(metric.decisive for metric in inconclusive):
        verdict = Change.INCONCLUSIVE
    reasons = [
        f"{metric.metric} {metric.verdict.value}: {metric.figures()}"
        for metric in (*regressed, *inconclusive, *improved)
    ]
    reasons += [f"the run failed its own limits: {'; '.join(candidate.reasons)}"] if failed else []
    reasons = reasons or ["every metric is within the tolerance"]
    if len(baseline.runs) == 1:
        reasons.append(
            f"{baseline.name} is a single run: the intervals leave out how much runs of one healthy service differ"
        )
    elif len(baseline.runs) < ENOUGH_RUNS:
        reasons.append(
            f"{baseline.name} has only {len(baseline.runs)} runs: how much runs of one healthy service differ is known "
            f"roughly; {ENOUGH_RUNS} or more make this verdict firmer"
        )
    return Comparison(
        verdict=verdict, baseline_name=baseline.name, reasons=tuple(reasons), metrics=tuple(metrics)
    )


def _served(run: BaselineRun, baseline: Sequence[BaselineRun]) -> MetricComparison:
    base_ok, base_sent = sum(one.ok for one in baseline), sum(one.sent for one in baseline)
    share, base_share = (run.ok / run.sent if run.sent else 0.0), (base_ok / base_sent if base_sent else 0.0)
    low, high = wilson_interval(run.ok, run.sent)
    base_low, base_high = wilson_interval(base_ok, base_sent)
    change = share - base_share
    lower = 100 * (change - math.hypot(share - low, base_high - base_share))
    upper = 100 * (change + math.hypot(high - share, base_share - base_low))
    points = 100 * change
    if upper < 0 and points < -SERVED_TOLERANCE_POINTS:
        verdict = Change.REGRESSED
    elif lower > 0 and points > SERVED_TOLERANCE_POINTS:
        verdict = Change.IMPROVED
    elif points >= -SERVED_TOLERANCE_POINTS:
        verdict = Change.MATCHES  # a small sample cannot exclude a loss of 1 %, but it lost none
    else:
        verdict = Change.INCONCLUSIVE
    return MetricComparison(
        metric=SERVED, unit="percentage points", baseline=100 * base_share, candidate=100 * share, change=points,
        low=lower, high=upper, decisive=True, verdict=verdict, note="Newcombe interval",
    )  # fmt: skip


def _throughput(
    name: str,
    unit: str,
    run: BaselineRun,
    baseline: Sequence[BaselineRun],
    tolerance: float,
    target_qps: float,
) -> MetricComparison:
    def at_target(one: BaselineRun) -> float:
        """Return the rate as if exactly the target had been offered: older runs differ in how much they offered."""
        return float(getattr(one, name)) * (target_qps / one.offered_qps if one.offered_qps else 1.0)

    if any(abs(one.measured_s - run.measured_s) > SAME_LENGTH * run.measured_s for one in baseline):
        # Requests that are answered after the end do not count, and they weigh more in a short run.
        return MetricComparison(
            metric=name, unit=unit, baseline=None, candidate=None, change=None, decisive=False, verdict=Change.MATCHES,
            note="not compared: the runs are of different length",
        )  # fmt: skip
    value, runs = at_target(run), [at_target(one) for one in baseline]
    base, count = sum(runs) / len(runs), len(runs)
    change = 100 * (value / base - 1) if base > 0 else 0.0
    low = high = None
    if count > 1 and base > 0:
        spread = math.sqrt(sum((one - base) ** 2 for one in runs) / (count - 1))
        t = STUDENT_T_975[min(count - 1, len(STUDENT_T_975)) - 1]
        margin = 100 * t * spread * math.sqrt(1 + 1 / count) / base
        low, high = change - margin, change + margin
    verdict = Change.MATCHES
    if change < -tolerance:
        verdict = Change.REGRESSED if high is not None and high < 0 else Change.INCONCLUSIVE
    elif change > tolerance and low is not None and low > 0:
        verdict = Change.IMPROVED
    note = "one run: no interval" if low is None else f"prediction interval of {count} runs"
    return MetricComparison(
        metric=name, unit=unit, baseline=base, candidate=value, change=change, low=low, high=high, decisive=True,
        verdict=verdict, note=note,
    )  # fmt: skip


def _latency(
    name: str,
    sample: str,
    quantile: float,
    decisive: bool,
    run: BaselineRun,
    baseline: Sequence[BaselineRun],
    tolerance_percent: float,
) -> MetricComparison:
    import numpy

    ours, *theirs = (numpy.asarray(getattr(one.samples, sample)) for one in (run, *baseline))
    if any(not len(values) for values in (ours, *theirs)):
        return MetricComparison(
            metric=name, unit="ms", baseline=None, candidate=None, change=None, decisive=False, verdict=Change.MATCHES,
            note="no sample: nothing to compare (one token has no time per token)" if sample == "tpot_ms" else "no sample",
        )  # fmt: skip
    generator = numpy.random.default_rng(BOOTSTRAP_SEED)
    value = _pooled([ours], quantile)
    base = _pooled(theirs, quantile)
    effects = _run_effects(generator, theirs, quantile)
    shifts = effects[generator.integers(0, len(effects), BOOTSTRAP_DRAWS)]
    base_shifts = effects[generator.integers(0, len(effects), (BOOTSTRAP_DRAWS, len(theirs)))].mean(axis=1)
    drawn = _draws(generator, [ours], quantile, BOOTSTRAP_DRAWS)
    drawn_base = _draws(generator, theirs, quantile, BOOTSTRAP_DRAWS)
    draws = drawn / numpy.maximum(drawn_base, 1e-9) * numpy.exp(shifts - base_shifts)
    low, high = (100 * (float(edge) - 1) for edge in numpy.quantile(draws, (0.025, 0.975)))
    change = 100 * (value / max(base, 1e-9) - 1)
    note = f"bootstrap, {len(ours)} against {sum(map(len, theirs))} requests in {len(theirs)} runs"
    tiny = abs(value - base) < FLOOR_MS
    if low > 0 and change > tolerance_percent and not tiny:
        verdict = Change.REGRESSED
    elif high < 0 and change < -tolerance_percent and not tiny:
        verdict = Change.IMPROVED
    elif high <= tolerance_percent or (tiny and base * high / 100 < 2 * FLOOR_MS):
        verdict = Change.MATCHES
    else:
        verdict = Change.INCONCLUSIVE
    return MetricComparison(
        metric=name, unit="ms", baseline=base, candidate=value, change=change, low=low, high=high, decisive=decisive,
        verdict=verdict, note=note,
    )  # fmt: skip


def _pooled(samples: Sequence[Any], quantile: float) -> float:
    import numpy

    return float(numpy.quantile(numpy.concatenate(samples), quantile))


def _draws(generator: Any, samples: Sequence[Any], quantile: float, count: int) -> Any:
    """Draw for the bootstrap: requests with replacement within each run. Return the quantile of each draw."""
    import numpy

    rows = max(1, MOST_DRAWN // sum(map(len, samples)))
    found = []
    for done in range(0, count, rows):
        height = min(rows, count - done)
        drawn = [values[generator.integers(0, len(values), (height, len(values)))] for values in samples]
        found.append(numpy.quantile(numpy.concatenate(drawn, axis=1), quantile, axis=1))
    return numpy.concatenate(found)


def _run_effects(generator: Any, runs: Sequence[Any], quantile: float) -> Any:
    """Return how far runs of one service differ, as logarithms of their ratio to the mean, less what sampling explains.

    The variance between runs includes that of the requests within them. The effects are shrunk by that share, to 0 when the
    runs differ no more than samples do.
    """
    import numpy

    if len(runs) == 1:
        return numpy.zeros(1)
    centres = numpy.log([max(_pooled([values], quantile), 1e-9) for values in runs])
    effects = centres - centres.mean()
    between = float(effects.var(ddof=1))
    within = 0.0
    for values in runs:
        draws = numpy.maximum(_draws(generator, [values], quantile, SAMPLING_DRAWS), 1e-9)
        within += float(numpy.log(draws).var(ddof=1)) / len(runs)
    return effects * math.sqrt(max(0.0, 1 - within / between)) if between > 0 else effects


def comparison_text(comparison: Comparison) -> str:
    """Return the verdict, the reasons and a row per metric, for a terminal or a thread."""
    lines = [f"{comparison.verdict.value.upper()} against {comparison.baseline_name}", *comparison.reasons]
    if comparison.metrics:
        lines.append(
            f"{'metric':<20}{'baseline':>10}{'this run':>10}{'change':>9}  95 % interval     verdict"
        )
    for metric in comparison.metrics:
        if metric.baseline is None or metric.candidate is None:
            lines.append(f"{metric.metric:<20}{metric.note}")
            continue
        span = "" if metric.low is None else f"{metric.low:+.1f} .. {metric.high:+.1f}"
        row = f"{metric.metric:<20}{metric.baseline:>10.1f}{metric.candidate:>10.1f}{metric.change:>+9.1f}"
        lines.append(f"{row}  {span:<17} {metric.verdict.value}")
    return "\n".join(lines) + "\n"
