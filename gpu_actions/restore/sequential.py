"""Exact sequential tests of a proportion: decide at any moment whether a rate is above its limit. Pure.

A stage of a restore is read every half second. A fixed test repeated at each reading convicts a healthy tier sooner or later
(in 57 % of simulated restores, docs/restore.md), so the boundary here is group-sequential with error spending (Lan and DeMets,
Biometrika 1983; Jennison and Turnbull, "Group Sequential Methods", 2000, chapter 12): the error `alpha` is divided among
checkpoints of 25, 50, 100, 200, 400 ... requests, and each checkpoint gets the smallest count whose exact binomial tail stays
within its share.

Reading between two checkpoints costs nothing: a count never falls, so a count that has reached the next checkpoint's boundary
early would also be beyond it at the checkpoint. By the union bound the probability that a tier at its limit is ever convicted
is at most `alpha`, however often it is read.
"""

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache

from gpu_actions.models import Frozen

FIRST_CHECKPOINT = 25
DECISIVE_CHECKPOINT = 200
"""Most of the error is spent here, so that a clear fault is convicted by its 200th request."""

DECISIVE_SHARE = 0.8
EARLY_SHARE = 0.05
"""Shares of `alpha` of the decisive checkpoint and of all before it; the later ones divide the rest by halves."""


class Counts(Frozen):
    """How many of `total` observations were `bad` (failed, or slower than the limit)."""

    bad: int = 0
    total: int = 0


def checkpoints() -> Iterator[tuple[int, float]]:
    """Yield each checkpoint's number of requests with its share of `alpha`; the shares sum to 1."""
    early = int(math.log2(DECISIVE_CHECKPOINT / FIRST_CHECKPOINT))
    for index in range(early):
        yield FIRST_CHECKPOINT * 2**index, EARLY_SHARE / early
    yield DECISIVE_CHECKPOINT, DECISIVE_SHARE
    rest, requests = 1 - DECISIVE_SHARE - EARLY_SHARE, DECISIVE_CHECKPOINT
    while True:
        rest, requests = rest / 2, requests * 2
        yield requests, rest


@lru_cache(maxsize=4096)
def boundary(requests: int, limit: float, alpha: float) -> int:
    """Return the smallest count k with P(Binomial(requests, limit) >= k) <= alpha; `requests + 1` where none exists.

    Summed downward in logarithms from 40 standard deviations (and 40 counts) above the mean: what is beyond is far below any
    `alpha`, and a stage of 100,000 requests must not block the event loop.
    """
    if limit <= 0:
        return 1
    if limit >= 1:
        return requests + 1
    log_p, log_q = math.log(limit), math.log1p(-limit)
    highest = requests * limit + 40 * math.sqrt(requests * limit * (1 - limit)) + 40
    tail = 0.0
    for count in range(min(requests, math.ceil(highest)), -1, -1):
        log_pmf = (
            math.lgamma(requests + 1)
            - math.lgamma(count + 1)
            - math.lgamma(requests - count + 1)
            + count * log_p
            + (requests - count) * log_q
        )
        tail += math.exp(log_pmf)
        if tail > alpha:
            return count + 1
    return 0


def exceeds(counts: Counts, limit: float, alpha: float) -> bool:
    """Return True when the counts prove a rate above `limit` at error `alpha`, over all readings together."""
    for requests, share in checkpoints():
        if requests >= counts.total:
            return counts.total > 0 and counts.bad >= boundary(requests, limit, alpha * share)
    raise AssertionError("the checkpoints never end")


def last_checkpoint(requests: int) -> int:
    """Return the latest checkpoint that so many requests have reached; 0 before the first one."""
    reached = itertools.takewhile(lambda one: one[0] <= requests, checkpoints())
    return max((size for size, _ in reached), default=0)


def upper_bound(counts: Counts, alpha: float) -> float:
    """Return a rate that the true rate is below at error `alpha`, over all readings together; 1 with few observations.

    At each checkpoint the lower tail is tested. Between two of them the count of bad ones has only grown since the earlier one,
    so the count of now is no less than it was there.
    """
    size = last_checkpoint(counts.total)
    share = next((share for requests, share in checkpoints() if requests >= size), 0.0)
    if counts.bad >= size:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        convicted = size - counts.bad >= boundary(size, 1 - middle, alpha * share)
        low, high = (low, middle) if convicted else (middle, high)
    return high
