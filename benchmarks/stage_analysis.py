"""Simulate the stages of restores: how often a tier of each kind is stepped back, and after how many requests.

    python -m benchmarks.stage_analysis [--restores 10000] [--chart docs/images/stage-analysis.png]

Every simulated restore goes through all stages and is read after each of its requests, the worst case for a test that is
repeated. It is compared with the earlier rule: a point estimate from ten requests on.
"""

import argparse
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import NormalDist

import numpy as np

from gpu_actions.config.policies import RestorePolicy
from gpu_actions.restore.analysis import (
    CONTROL_MARGIN,
    ERROR_ALPHA,
    FIRST_STAGE_SHARE,
    LATENCY_ALPHA,
    LEAST_FAILED_SHARE,
    SLOW_SHARE,
)
from gpu_actions.restore.compared import BEFORE_TOLERANCE, MARGIN, REFERENCE_SHARE
from gpu_actions.restore.sequential import (
    Counts,
    boundary,
    checkpoints,
    exceeds,
    last_checkpoint,
    upper_bound,
)

POLICY = RestorePolicy()
STAGE_REQUESTS = (200, 400, 800, 1600)
LIMIT = POLICY.max_error_percent / 100
OLD_FIRST, OLD_LIMIT = 10, 0.01
NEVER = 10**9
BATCH = 2_000

SIGMA = 0.5
"""Of the logarithm of a time to the first token, in the cases that compare with a reference."""
BEFORE = last_checkpoint(5_000)
PERCENTILE = NormalDist().inv_cdf(1 - REFERENCE_SHARE)

Rates = tuple[float, float]
CASES: dict[str, Rates] = {
    "healthy: 0.1 % errors, p99 at half its limit": (0.001, 0.001),
    "at both limits: 0.5 % errors, p99 at its limit": (LIMIT, SLOW_SHARE),
    "2 % errors": (0.02, 0.001),
    "5 % errors": (0.05, 0.001),
    "20 % errors": (0.2, 0.001),
    "5 % of the first tokens over the limit": (0.001, 0.05),
    "every second first token over the limit": (0.001, 0.5),
}
TIMES: dict[str, float] = {
    "TTFT as before the incident": 1.0,
    "TTFT 20 % longer than before (cold caches)": 1.2,
    "TTFT p95 doubled": 2.0,
    "TTFT as the fallback's": -1.0,
    "TTFT twice the fallback's": -2.0,
}
"""How many times as long as its reference a tier's time to the first token is; negative: against the fallback, now."""

FAILURES: dict[str, Rates] = {
    "1 % errors on both, 10 % allowed": (0.01, 0.01),
    "8 % errors, 1 % on the fallback, 10 % allowed": (0.08, 0.01),
}
"""Share of failed requests of the tier, and of the fallback in the same minutes."""


def convicted_at(bad: np.ndarray, limit: float, alpha: float) -> np.ndarray:
    """Return the request (from 1) after which each row is convicted, NEVER if it is not."""
    limits = np.empty(bad.shape[1], dtype=int)
    begin = 0
    for end, share in checkpoints():
        limits[begin:end] = boundary(end, limit, alpha * share)
        begin = end
        if end >= len(limits):
            break
    return first_of(np.cumsum(bad, axis=1) >= limits)


def convicted_before(bad: np.ndarray) -> np.ndarray:
    """Apply the earlier rule: more than 1 % of at least ten requests. Return as `convicted_at`."""
    counts = np.cumsum(bad, axis=1)
    requests = np.arange(1, bad.shape[1] + 1)
    return first_of((requests >= OLD_FIRST) & (counts > requests * OLD_LIMIT))


def first_of(found: np.ndarray) -> np.ndarray:
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, NEVER)


def restores(rng: np.random.Generator, count: int, rates: Rates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return per restore the request of the first stage that convicts it, and whether any stage does;
    then whether any stage convicts it by the earlier rule."""
    first, ever, before = [], [], []
    for begin in range(0, count, BATCH):
        rows = min(BATCH, count - begin)
        at_any, old_any = np.full(rows, NEVER), np.full(rows, NEVER)
        for number, requests in enumerate(STAGE_REQUESTS):
            share = FIRST_STAGE_SHARE if number == 0 else (1 - FIRST_STAGE_SHARE) / len(STAGE_REQUESTS)
            failed = rng.random((rows, requests)) < rates[0]
            slow = rng.random((rows, requests)) < rates[1]
            at = np.minimum(
                convicted_at(failed, LIMIT, ERROR_ALPHA * share),
                convicted_at(slow, SLOW_SHARE, LATENCY_ALPHA * share),
            )
            if number == 0:
                first.append(at)
            at_any = np.minimum(at_any, at)
            old_any = np.minimum(old_any, np.minimum(convicted_before(failed), convicted_before(slow)))
        ever.append(at_any < NEVER)
        before.append(old_any < NEVER)
    return np.concatenate(first), np.concatenate(ever), np.concatenate(before)


def compared(rng: np.random.Generator, count: int, times: float) -> tuple[np.ndarray, np.ndarray]:
    """Return as `restores`, for one comparison of `compared`. The fallback answers as many requests as tp in each stage."""
    control = times < 0
    tolerance = 1.0 if control else BEFORE_TOLERANCE
    above = 1 - NormalDist().cdf(PERCENTILE + (math.log(tolerance) - math.log(abs(times))) / SIGMA)
    first, ever = [], []
    for begin in range(0, count, BATCH):
        rows = min(BATCH, count - begin)
        at_any = np.full(rows, NEVER)
        for number, requests in enumerate(STAGE_REQUESTS):
            share = FIRST_STAGE_SHARE if number == 0 else (1 - FIRST_STAGE_SHARE) / len(STAGE_REQUESTS)
            alpha = LATENCY_ALPHA * share
            bad = rng.random((rows, requests)) < above
            if control:
                at = convicted_against(bad, rng.random((rows, requests)) < REFERENCE_SHARE, alpha)
            else:
                reference = Counts(bad=round(REFERENCE_SHARE * BEFORE), total=BEFORE)
                at = convicted_at(bad, MARGIN * max(REFERENCE_SHARE, upper_bound(reference, alpha)), alpha)
            if number == 0:
                first.append(at)
            at_any = np.minimum(at_any, at)
        ever.append(at_any < NEVER)
    return np.concatenate(first), np.concatenate(ever)


def failing(rng: np.random.Generator, count: int, rates: Rates) -> tuple[np.ndarray, np.ndarray]:
    """Return as `restores`, for failures against those of the fallback since the first stage, read every 25 requests."""
    first, ever = np.full(count, NEVER), np.zeros(count, dtype=bool)
    also, of = np.zeros(count, dtype=int), 0
    for number, (percent, requests) in enumerate(zip(POLICY.stages_percent, STAGE_REQUESTS, strict=True)):
        share = FIRST_STAGE_SHARE if number == 0 else (1 - FIRST_STAGE_SHARE) / len(STAGE_REQUESTS)
        alpha, bad = LATENCY_ALPHA * share, np.zeros(count, dtype=int)
        for seen in range(25, requests + 1, 25):
            control = 25 * (100 - percent) // percent
            bad += rng.binomial(25, rates[0], count)
            also += rng.binomial(control, rates[1], count)
            of += control
            pairs, which = np.unique(np.column_stack((bad, also)), axis=0, return_inverse=True)
            proved = np.array(
                [
                    exceeds(
                        Counts(bad=int(found), total=seen),
                        limit_of(int(failed), of, alpha, CONTROL_MARGIN, LEAST_FAILED_SHARE),
                        alpha,
                    )
                    for found, failed in pairs
                ]
            )[which.reshape(-1)]
            ever |= proved
            if number == 0:
                first[proved & (first == NEVER)] = seen
    return first, ever


def convicted_against(bad: np.ndarray, reference: np.ndarray, alpha: float) -> np.ndarray:
    """Return as `convicted_at`, with the limit that the reference's answers so far allow, read every 25 requests."""
    at = np.full(len(bad), NEVER)
    counts, seen = np.cumsum(bad, axis=1), np.cumsum(reference, axis=1)
    for requests in range(25, bad.shape[1] + 1, 25):
        rows = np.flatnonzero(at == NEVER)
        pairs, which = np.unique(
            np.column_stack((counts[rows, requests - 1], seen[rows, requests - 1])),
            axis=0,
            return_inverse=True,
        )
        proved = [
            exceeds(
                Counts(bad=int(found), total=requests),
                limit_of(int(of), requests, alpha, MARGIN, REFERENCE_SHARE),
                alpha,
            )
            for found, of in pairs
        ]
        at[rows[np.array(proved, dtype=bool)[which.reshape(-1)]]] = requests
    return at


@cache
def limit_of(bad: int, total: int, alpha: float, margin: float, least: float) -> float:
    return min(1.0, margin * max(least, upper_bound(Counts(bad=bad, total=total), alpha)))


def draw(curves: dict[str, np.ndarray], path: Path) -> None:
    """Draw the share of restores that the first stage has stepped back, by its number of requests."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=110)
    requests = np.arange(1, STAGE_REQUESTS[0] + 1)
    for name, at in curves.items():
        share = np.searchsorted(np.sort(at), requests, side="right") / len(at)
        axes.plot(requests, 100 * share, label=name)
    axes.axhline(95, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="requests on the returning tier in the first stage", ylabel="restores stepped back, %")
    axes.set(
        title="Stage analysis: 10,000 restores a line, read after every request",
        xlim=(0, 200),
        ylim=(-2, 102),
    )
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restores", type=int, default=10_000)
    parser.add_argument("--chart", type=Path)
    options = parser.parse_args()
    rng = np.random.default_rng(2026)
    curves: dict[str, np.ndarray] = {}
    percent: Callable[[np.ndarray], str] = lambda found: f"{100 * found.mean():.2f} %"  # noqa: E731
    print(
        "| tier | stepped back by the 200th request of stage 1 | in the whole restore | by the earlier rule | median request |"
    )

    print("|---|---|---|---|---|")
    for name, rates in CASES.items():
        first, ever, before = restores(rng, options.restores, rates)
        caught = first[first < NEVER]
        median = f"{np.median(caught):.0f}" if len(caught) > len(first) / 2 else "-"
        print(
            f"| {name} | {percent(first < NEVER)} | {percent(ever)} | {percent(before)} | {median} |",
            flush=True,
        )
        curves[name] = first
        if name.startswith(("healthy", "at both")):
            assert ever.mean() <= 0.01 + 3 * math.sqrt(0.01 / options.restores), name
    against = [
        (name, compared(rng, options.restores, times), abs(times) == 1) for name, times in TIMES.items()
    ]
    against += [
        (name, failing(rng, options.restores, rates), rates[0] == rates[1])
        for name, rates in FAILURES.items()
    ]
    for name, (first, ever), is_healthy in against:
        caught = first[first < NEVER]
        median = f"{np.median(caught):.0f}" if len(caught) > len(first) / 2 else "-"
        print(f"| {name} | {percent(first < NEVER)} | {percent(ever)} | - | {median} |", flush=True)
        curves[name] = first
        if is_healthy:
            assert ever.mean() <= 0.01 + 3 * math.sqrt(0.01 / options.restores), name
    if options.chart:
        draw(curves, options.chart)


if __name__ == "__main__":
    main()
