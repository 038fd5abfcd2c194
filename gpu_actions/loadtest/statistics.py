"""Percentiles with honest intervals, from samples in which some requests never ended.

Order-statistic intervals are distribution-free: the number of samples below the true p-quantile is binomial(n, p)
(David and Nagaraja, Order Statistics, 7.1; Conover, Practical Nonparametric Statistics, 3.2). They hold at any sample size,
where a bootstrap of a tail only repeats the largest samples seen. numpy is imported where it is used, after the load is over.
"""

import math
from collections.abc import Callable
from typing import Any

from gpu_actions.loadtest.records import LogHistogram
from gpu_actions.loadtest.result import Distribution, Percentile

SHARES = (("p50", 0.50), ("p90", 0.90), ("p95", 0.95), ("p99", 0.99))
EXACT_BINOMIAL_LIMIT = 2000
MAX_SAMPLES = 2000
Z_95 = 1.959964


def order_interval(n: int, share: float) -> tuple[int | None, int | None]:
    """Return the ranks (from 1) that enclose the true quantile with 95 % confidence, None for an end out of reach.

    Each end takes half of the remaining chance. Up to 2,000 samples the binomial is summed exactly, above that the normal
    approximation with continuity correction is within one rank.
    """
    if n == 0:
        return None, None
    if n > EXACT_BINOMIAL_LIMIT:
        spread = Z_95 * math.sqrt(n * share * (1 - share))
        low, high = math.floor(n * share - spread), math.ceil(n * share + spread) + 1
        return (low if low >= 1 else None), (high if high <= n else None)
    tail = 0.025
    low_rank: int | None = None
    high_rank: int | None = None
    cumulative = 0.0
    log_share, log_rest = math.log(share), math.log1p(-share)
    for below in range(n + 1):
        # P(exactly `below` samples are below the quantile)
        log_ways = math.lgamma(n + 1) - math.lgamma(below + 1) - math.lgamma(n - below + 1)
        cumulative += math.exp(log_ways + below * log_share + (n - below) * log_rest)
        if cumulative <= tail:
            low_rank = below + 1
        if high_rank is None and cumulative >= 1 - tail:
            high_rank = below + 1
            break
    return low_rank, (high_rank if high_rank is not None and high_rank <= n else None)


def reach_confidence_percent(n: int, share: float) -> float | None:
    """Return the chance that the largest of n samples is above the true quantile: for p99, 45 % at 60 and 95 % at 299."""
    return 100.0 * (1 - share**n) if n else None


def unbounded_text(distribution: Distribution) -> str:
    """Return which percentiles so few requests cannot bound from above, with how many would; empty if all are bounded."""
    n = distribution.count
    open_ended = [(name, share) for name, share in SHARES if n and order_interval(n, share)[1] is None]
    if not open_ended:
        return ""
    name, share = open_ended[-1]
    return (
        f"{' and '.join(name for name, _ in open_ended)} cannot be bounded from above by {n} request{'s' * (n > 1)}: "
        f"{name} needs {requests_to_bound(share)}"
    )


def requests_to_bound(share: float) -> int:
    """Return the fewest requests whose largest is above the quantile with 97.5 %, so that its 95 % interval is closed."""
    return math.ceil(math.log(0.025) / math.log(share))


def percentile_rank(n: int, share: float) -> int:
    """Return the nearest rank (from 1)."""
    return min(n, max(1, math.ceil(share * n - 1e-9)))


def describe(values_ms: Any, censored_at_ms: Any = ()) -> Distribution:
    """Return the distribution of a numpy array of milliseconds.

    `censored_at_ms`: how long each request that never ended had been running. They rank above all that ended, and a
    percentile that falls on one of them is a lower bound.
    """
    import numpy

    ended = numpy.sort(numpy.asarray(values_ms, dtype=float))
    running = numpy.sort(numpy.asarray(censored_at_ms, dtype=float))

    def at_rank(rank: int) -> tuple[float, bool]:
        if rank <= len(ended):
            return float(ended[rank - 1]), False
        bound = float(running[rank - len(ended) - 1])
        return max(bound, float(ended[-1]) if len(ended) else bound), True

    mean_ms = float(ended.mean()) if len(ended) else None  # of those that ended
    return _distribution(len(ended) + len(running), at_rank, mean_ms, censored=len(running))


def describe_histogram(histogram: LogHistogram) -> Distribution:
    """Return the distribution of a histogram of seconds. Values are within 0.25 %."""
    n = histogram.count
    mean_ms = histogram.sum_s / n * 1000 if n else None
    return _distribution(n, lambda rank: (histogram.at_rank(rank) * 1000, False), mean_ms)


def _distribution(
    n: int, at_rank: Callable[[int], tuple[float, bool]], mean_ms: float | None, *, censored: int = 0
) -> Distribution:
    """Build a distribution from a function of the rank (from 1) that returns a value and whether it is a lower bound."""
    if n == 0:
        return Distribution(count=0, **{name: Percentile(value_ms=None) for name, _ in SHARES})
    shares = {}
    for name, share in SHARES:
        value, at_least = at_rank(percentile_rank(n, share))
        low, high = order_interval(n, share)
        high_ms, high_is_open = (None, True) if high is None else at_rank(high)
        shares[name] = Percentile(
            value_ms=value,
            low_ms=None if low is None else at_rank(low)[0],
            high_ms=None if high_is_open else high_ms,
            confidence_percent=reach_confidence_percent(n, share),
            at_least=at_least,
        )
    return Distribution(count=n, censored=censored, mean_ms=mean_ms, max_ms=at_rank(n)[0], **shares)


def thin_out(sorted_values: Any) -> tuple[float, ...]:
    """Return at most 2,000 evenly spaced order statistics (first and last kept), rounded to a microsecond."""
    import numpy

    values = numpy.asarray(sorted_values, dtype=float)
    if len(values) > MAX_SAMPLES:
        values = values[numpy.linspace(0, len(values) - 1, MAX_SAMPLES).round().astype(int)]
    return tuple(float(value) for value in values.round(3))


def wilson_interval(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a share, 0..1; (0, 1) without a sample."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
