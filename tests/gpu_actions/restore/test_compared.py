"""The returning tier against the fallback and against itself before the incident, judged as the stages judge it."""

import random
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import pytest

from gpu_actions.config.policies import RestorePolicy
from gpu_actions.restore.analysis import StageVerdict, Window, judge_stage
from gpu_actions.restore.compared import (
    BEFORE,
    FALLBACK,
    ITL,
    MIN_REFERENCE,
    PACE,
    TTFT,
    Thresholds,
    bound_95,
    compare,
    percentile_95,
    thresholds_before,
    thresholds_now,
)
from gpu_actions.restore.sequential import Counts
from gpu_actions.serving.interfaces import Histogram, ServedAnswer

POLICY = RestorePolicy()
SIGMA = 0.5


def answers(server: str, count: int, *, seed: int, times: float = 1.0) -> list[ServedAnswer]:
    """Return answers whose times are log-normal with a median of 0.2 s to the first byte and 2 s in all."""
    draw = random.Random(seed)
    return [
        ServedAnswer(
            server=server,
            ended_s=float(n),
            first_byte_s=0.2 * times * draw.lognormvariate(0, SIGMA),
            seconds=2.0 * times * draw.lognormvariate(0, SIGMA),
            size=4096,
        )
        for n in range(count)
    ]


def judged(canary: Sequence[ServedAnswer], control: Sequence[ServedAnswer], thresholds: Thresholds) -> Any:
    window = Window(
        percent=POLICY.stages_percent[0],
        seconds=300,
        requests=len(canary),
        compared=compare(thresholds, canary, control),
    )
    return judge_stage(window, POLICY)


def test_a_doubled_time_to_the_first_token_is_convicted_before_200_requests() -> None:
    before = thresholds_before(answers("tp", 2000, seed=1))
    caught = sum(
        judged(answers("tp", 200, seed=seed, times=2), [], before).verdict is StageVerdict.FAILED
        for seed in range(2, 202)
    )
    assert caught >= 195


def test_a_tier_as_before_the_incident_and_as_fast_as_the_fallback_passes() -> None:
    convicted = 0
    for seed in range(200):
        control = answers("fallback", 2200, seed=3 * seed)
        thresholds = thresholds_now(
            control[:200], None, thresholds_before(answers("tp", 300, seed=3 * seed + 1))
        )
        canary = answers("tp", 200, seed=3 * seed + 2)
        convicted += judged(canary, control[200:], thresholds).verdict is StageVerdict.FAILED
    assert convicted <= 2


def test_a_tier_that_is_slower_than_the_fallback_is_convicted_and_the_reason_names_both() -> None:
    control = answers("fallback", 2200, seed=1)
    thresholds = thresholds_now(control[:200], None, Thresholds())
    found = judged(answers("tp", 200, seed=2, times=4), control[200:], thresholds)
    assert found.verdict is StageVerdict.FAILED
    assert any(reason.startswith(TTFT) and "of the fallback" in reason for reason in found.reasons)
    assert any(reason.startswith(PACE) for reason in found.reasons)


def test_without_answers_of_the_control_nothing_is_convicted_against_it() -> None:
    control = answers("fallback", 200, seed=1)
    thresholds = thresholds_now(control, None, Thresholds())
    assert judged(answers("tp", 200, seed=2, times=4), [], thresholds).verdict is StageVerdict.PASSED


def test_a_reference_with_too_few_answers_is_not_compared_with() -> None:
    few = answers("tp", MIN_REFERENCE - 1, seed=1)
    assert percentile_95([0.1] * (MIN_REFERENCE - 1)) is None
    thresholds = thresholds_now(few, None, thresholds_before(few))
    assert compare(thresholds, few, few) == ()


def test_the_95th_percentile_leaves_a_twentieth_above_it() -> None:
    values = [NormalDist().inv_cdf((n + 0.5) / 1000) for n in range(1000)]
    threshold = percentile_95(values)
    assert threshold is not None
    assert sum(value > threshold for value in values) == pytest.approx(50, abs=2)


def histogram(*counts: float) -> Histogram:
    return Histogram(bounds_s=(0.01, 0.1, 1.0, float("inf")), counts=counts, total_s=1)


def test_the_time_between_tokens_is_compared_at_a_bound_of_the_histograms() -> None:
    assert bound_95(histogram(10, 96, 100, 100)) == 0.1
    assert bound_95(histogram(10, 20, 30, 100)) is None, "most are beyond the last bound"
    assert bound_95(histogram(1, 2, 3, 4)) is None, "too few"
    thresholds = Thresholds(control_itl_s=0.1)
    (one,) = compare(
        thresholds,
        answers("tp", 200, seed=1),
        answers("fallback", 200, seed=2),
        canary_itl=histogram(0, 50, 100, 100),
        control_itl=histogram(0, 96, 100, 100),
    )
    assert (one.measure, one.against) == (ITL, FALLBACK)
    assert (one.canary.bad, one.reference.bad) == (50, 4)


@pytest.mark.parametrize(("stalled", "verdict"), [(8, StageVerdict.PASSED), (160, StageVerdict.FAILED)])
def test_a_stall_of_the_engine_counts_by_answers_and_not_by_their_tokens(
    stalled: int, verdict: StageVerdict
) -> None:
    """200 answers of 100 gaps each: gaps of one answer are not independent, so 8 slow answers prove no more than 8."""
    gaps = 200 * 100
    late = histogram(0, gaps - stalled * 100, gaps, gaps)
    (one,) = compare(
        Thresholds(control_itl_s=0.1),
        answers("tp", 200, seed=1),
        answers("fallback", 200, seed=2),
        canary_itl=late,
        control_itl=histogram(0, gaps, gaps, gaps),
    )
    assert one.canary == Counts(bad=stalled, total=200)
    window = Window(percent=5, seconds=60, requests=200, compared=(one,))
    assert judge_stage(window, POLICY).verdict is verdict


def test_few_long_answers_convict_no_tier_by_their_many_gaps() -> None:
    """As real vLLMs on a busy machine: 12 % of 4,194 gaps were over the threshold, and 0.4 % of the fallback's."""
    (one,) = compare(
        Thresholds(control_itl_s=0.1),
        answers("tp", 46, seed=1),
        answers("fallback", 15, seed=2),
        canary_itl=histogram(0, 3685, 4194, 4194),
        control_itl=histogram(0, 1399, 1404, 1404),
    )
    assert one.canary == Counts(bad=6, total=46)
    window = Window(percent=25, seconds=13, requests=300, compared=(one,))
    assert judge_stage(window, POLICY).verdict is not StageVerdict.FAILED


def test_the_reference_before_the_incident_has_the_share_of_its_percentile() -> None:
    thresholds = thresholds_before(answers("tp", 400, seed=1))
    found = [one for one in compare(thresholds, answers("tp", 10, seed=2), []) if one.against == BEFORE]
    assert {one.measure for one in found} == {TTFT, PACE}
    assert {(one.reference.bad, one.reference.total) for one in found} == {(20, 400)}
