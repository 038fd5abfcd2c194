"""The sequential test of a rate: its error does not grow with reading, and a clear fault is convicted by the 200th request."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_actions.config.policies import RestorePolicy
from gpu_actions.restore.analysis import ERROR_ALPHA, FIRST_STAGE_SHARE, StageVerdict, Window, judge_stage
from gpu_actions.restore.sequential import (
    Counts,
    boundary,
    checkpoints,
    exceeds,
    last_checkpoint,
    upper_bound,
)

POLICY = RestorePolicy()
RESTORES = 4000
STAGE_REQUESTS = 800


def tail(requests: int, limit: float, count: int) -> float:
    return sum(
        math.comb(requests, k) * limit**k * (1 - limit) ** (requests - k) for k in range(count, requests + 1)
    )


@given(requests=st.integers(1, 120), limit=st.floats(0.001, 0.6), alpha=st.floats(1e-6, 0.3))
def test_the_boundary_is_the_smallest_count_within_the_error(
    requests: int, limit: float, alpha: float
) -> None:
    count = boundary(requests, limit, alpha)
    assert tail(requests, limit, count) <= alpha * (1 + 1e-9)
    assert count == 0 or tail(requests, limit, count - 1) > alpha * (1 - 1e-9)


def test_the_checkpoints_share_the_error_and_most_of_it_is_spent_by_the_200th_request() -> None:
    first = list(itertools.islice(checkpoints(), 60))
    assert [requests for requests, _ in first[:5]] == [25, 50, 100, 200, 400]
    assert sum(share for _, share in first) == pytest.approx(1)
    assert sum(share for requests, share in first if requests <= 200) > 0.8


@given(
    total=st.integers(1, 2000), bad=st.integers(0, 2000), more=st.integers(1, 50), limit=st.floats(0.001, 0.5)
)
@settings(max_examples=60)
def test_more_bad_ones_never_acquit(total: int, bad: int, more: int, limit: float) -> None:
    if exceeds(Counts(bad=min(bad, total), total=total), limit, 0.01):
        assert exceeds(Counts(bad=min(bad + more, total), total=total), limit, 0.01)


@pytest.mark.parametrize(
    ("bad", "total", "low", "high"),
    [(0, 0, 1, 1), (0, 200, 0.01, 0.06), (20, 200, 0.1, 0.2), (400, 400, 1, 1)],
)
def test_an_upper_bound_is_above_the_observed_rate(bad: int, total: int, low: float, high: float) -> None:
    assert low <= upper_bound(Counts(bad=bad, total=total), 0.001) <= high


@pytest.mark.parametrize(
    ("requests", "checkpoint"), [(0, 0), (24, 0), (25, 25), (49, 25), (199, 100), (200, 200), (401, 400)]
)
def test_a_checkpoint_counts_once_it_is_reached(requests: int, checkpoint: int) -> None:
    assert last_checkpoint(requests) == checkpoint


@pytest.mark.parametrize("bad", [1, 7, 20, 40, 77, 130])
def test_an_upper_bound_is_as_close_as_its_bisection_promises(bad: int) -> None:
    high = upper_bound(Counts(bad=bad, total=200), 0.001)
    assert tail(200, 1 - high, 200 - bad) <= 0.8 * 0.001
    assert tail(200, 1 - high + 1 / 4096, 200 - bad) > 0.8 * 0.001


def test_where_nothing_may_fail_the_first_failure_convicts() -> None:
    assert exceeds(Counts(bad=1, total=1), 0, 0.001)
    assert not exceeds(Counts(bad=0, total=1), 0, 0.001)


def convicted(bad: np.ndarray, limit: float, alpha: float) -> np.ndarray:
    """Return for each row of request outcomes whether any reading, one after each request, convicts it."""
    requests = bad.shape[1]
    limits = np.empty(requests, dtype=int)
    begin = 0
    for end, share in checkpoints():
        limits[begin:end] = boundary(end, limit, alpha * share)
        begin = end
        if end >= requests:
            break
    found: np.ndarray = (np.cumsum(bad, axis=1) >= limits[:requests]).any(axis=1)
    return found


def test_a_tier_at_its_limit_is_convicted_as_rarely_as_promised_although_it_is_read_after_each_request() -> (
    None
):
    rng = np.random.default_rng(1)
    limit, alpha = POLICY.max_error_percent / 100, ERROR_ALPHA * FIRST_STAGE_SHARE
    rate = convicted(rng.random((RESTORES, STAGE_REQUESTS)) < limit, limit, alpha).mean()
    assert rate <= alpha + 3.3 * math.sqrt(alpha * (1 - alpha) / RESTORES)


@pytest.mark.parametrize("seed", range(3))
def test_five_percent_errors_are_convicted_by_the_200th_request_of_the_first_stage(seed: int) -> None:
    rng = np.random.default_rng(seed)
    limit, alpha = POLICY.max_error_percent / 100, ERROR_ALPHA * FIRST_STAGE_SHARE
    assert convicted(rng.random((RESTORES, 200)) < 0.05, limit, alpha).mean() >= 0.95


def test_the_stage_itself_keeps_the_promise() -> None:
    """The same through `judge_stage`, read after every tenth request."""
    rng = np.random.default_rng(5)
    stage = partial(Window, percent=POLICY.stages_percent[0], seconds=60.0)

    def is_stepped_back(rate: float, requests: int) -> bool:
        errors = np.cumsum(rng.random(requests) < rate)
        return any(
            judge_stage(stage(requests=n, errors=int(errors[n - 1])), POLICY).verdict is StageVerdict.FAILED
            for n in range(10, requests + 1, 10)
        )

    assert sum(is_stepped_back(0.004, 400) for _ in range(200)) <= 6
    assert sum(is_stepped_back(0.05, 200) for _ in range(200)) >= 180
