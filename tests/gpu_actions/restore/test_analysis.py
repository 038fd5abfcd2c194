"""The judgement of a stage and what follows from it, as tables and properties."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.config.policies import RestorePolicy
from gpu_actions.restore.analysis import (
    PRESS,
    Judged,
    Orders,
    StageVerdict,
    Then,
    Window,
    decide_stage,
    describe,
    judge_stage,
    take_orders,
    weights_for,
)
from gpu_actions.restore.compared import Compared
from gpu_actions.restore.sequential import Counts, upper_bound
from gpu_actions.restore.shift import read_orders

POLICY = RestorePolicy(
    max_error_percent=1, max_ttft_p99_ms=500, max_e2e_p99_ms=2000, max_queue=8, min_requests_per_stage=20
)


def slow(bad: int) -> Counts:
    return Counts(bad=bad, total=100)


def window(**changes: Any) -> Window:
    return Window(
        **{"percent": 25, "seconds": 60, "requests": 100, "ttft_p99_ms": 100, "e2e_p99_ms": 900, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({}, StageVerdict.PASSED, ""),
        ({"errors": 1}, StageVerdict.PASSED, ""),
        ({"errors": 2}, StageVerdict.PASSED, ""),
        ({"errors": 4}, StageVerdict.INCONCLUSIVE, "4 of 100 requests failed (4.0 %), the limit is 1 %"),
        ({"errors": 12}, StageVerdict.FAILED, "12 of 100 requests failed (12.0 %), the limit is 1 %"),
        (  # answers that the stage before began and that broke off in this one
            {"requests": 6, "carried": 27, "errors": 22},
            StageVerdict.FAILED,
            "22 of 33 requests failed (66.7 %), the limit is 1 %",
        ),
        ({"ttft_p99_ms": 501, "slow_ttft": slow(2)}, StageVerdict.PASSED, ""),
        ({"ttft_p99_ms": 501, "slow_ttft": slow(4)}, StageVerdict.INCONCLUSIVE, "TTFT p99 is 501 ms"),
        ({"ttft_p99_ms": 501, "slow_ttft": slow(15)}, StageVerdict.FAILED, "TTFT p99 is 501 ms"),
        ({"e2e_p99_ms": 2001, "slow_e2e": slow(15)}, StageVerdict.FAILED, "E2E p99 is 2001 ms"),
        (
            {"refused": 30, "control": slow(0)},
            StageVerdict.INCONCLUSIVE,
            "30 of 100 requests got 4xx (30.0 %)",
        ),
        ({"refused": 60, "control": slow(0)}, StageVerdict.FAILED, "60 of 100 requests got 4xx (60.0 %)"),
        ({"refused": 30, "control": slow(25)}, StageVerdict.PASSED, ""),
        ({"refused": 30, "control": Counts()}, StageVerdict.INCONCLUSIVE, "30 of 100 requests got 4xx"),
        ({"refused": 1, "control": Counts()}, StageVerdict.PASSED, ""),
        ({"queue_peak": 8}, StageVerdict.PASSED, ""),
        ({"queue_peak": 9}, StageVerdict.FAILED, "its queue reached 9, the limit is 8"),
        ({"requests": 20}, StageVerdict.PASSED, ""),
        ({"hung": True}, StageVerdict.FAILED, "token counter does not move"),
        ({"died": "is gone"}, StageVerdict.FAILED, "its process is gone"),
        ({"xids": ("xid 79",)}, StageVerdict.FAILED, "new in the kernel log: xid 79"),
        ({"application_xids": ("xid 31",)}, StageVerdict.PASSED, ""),
        ({"ttft_p99_ms": None, "missing": ("ttft",)}, StageVerdict.INCONCLUSIVE, "not measured: ttft"),
        ({"requests": 19}, StageVerdict.INCONCLUSIVE, "19 requests are too few to judge, 20 are needed"),
        ({"requests": 19, "ttft_p99_ms": 9000}, StageVerdict.INCONCLUSIVE, "too few"),
        ({"requests": 2, "errors": 1}, StageVerdict.INCONCLUSIVE, "too few"),
        ({"requests": 5, "errors": 5}, StageVerdict.FAILED, "5 of 5 requests failed (100.0 %)"),
        ({"requests": 0, "hung": True}, StageVerdict.FAILED, "token counter does not move"),
        (
            {"looked_into": 19},
            StageVerdict.INCONCLUSIVE,
            "the router looks into no answer, and 19 probes are too few",
        ),
        ({"looked_into": 20}, StageVerdict.PASSED, ""),
    ],
)
def test_a_stage_is_judged_by_its_window(changes: dict[str, Any], verdict: StageVerdict, reason: str) -> None:
    judged = judge_stage(window(**changes), POLICY)
    assert judged.verdict is verdict
    assert reason in "; ".join(judged.reasons)


FAULTS = {"died": "is gone", "hung": True, "xids": ("xid 79", "xid 48", "xid 95", "xid 13")}


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        (
            FAULTS,
            (
                "its process is gone",
                "it holds requests and its token counter does not move",
                "new in the kernel log: xid 79, xid 48, xid 95",
            ),
        ),
        (
            {"refused": 60, "control": slow(0)},
            ("60 of 100 requests got 4xx (60.0 %), on the fallback 0 of 100 requests (0.0 %)",),
        ),
        (
            {"ttft_p99_ms": None, "slow_ttft": slow(15)},
            ("15 of 100 requests were over 500 ms (15.0 %), the limit is 1 %",),
        ),
        (
            {"slow_e2e": slow(15)},
            ("E2E p99 is 900 ms, 15 of 100 requests were over 2000 ms (15.0 %), the limit is 1 %",),
        ),
        ({"missing": ("ttft", "e2e")}, ("not measured: ttft, e2e",)),
    ],
)
def test_a_stage_names_its_reasons(changes: dict[str, Any], reasons: tuple[str, ...]) -> None:
    assert judge_stage(window(**changes), POLICY).reasons == reasons


@pytest.mark.parametrize(
    ("requests", "errors", "enough", "verdict", "reasons"),
    [
        (0, 0, 0, StageVerdict.PASSED, ("no request came, no fault was seen",)),
        (1, 0, 0, StageVerdict.PASSED, ()),
        (0, 0, 1, StageVerdict.INCONCLUSIVE, ("0 requests are too few to judge, 1 are needed",)),
        (1, 0, 1, StageVerdict.PASSED, ()),
        (1, 1, 1, StageVerdict.INCONCLUSIVE, ("1 of 1 requests failed (100.0 %), the limit is 1 %",)),
    ],
)
def test_a_stage_with_hardly_any_traffic(
    requests: int, errors: int, enough: int, verdict: StageVerdict, reasons: tuple[str, ...]
) -> None:
    seen = window(requests=requests, errors=errors)
    assert judge_stage(seen, POLICY, min_requests=enough) == Judged(verdict=verdict, reasons=reasons)


def of_200(bad: int) -> Counts:
    return Counts(bad=bad, total=200)


def slower(bad: int, before: int = 0) -> Compared:
    """Return a comparison in which this many of 200 answers are late, and of 200 of the fallback."""
    return Compared(
        measure="TTFT", against="the fallback", threshold_s=0.5, canary=of_200(bad), reference=of_200(before)
    )


HALF = RestorePolicy(max_error_percent=50, stages_percent=(5, 25, 50, 100))
BUDGET = {"errors": 0.006, "slow_ttft": 0.00025, "slow_e2e": 0.00025, "refused": 0.00025, "compared": 0.00025}
RATES: dict[str, Callable[[int], dict[str, Any]]] = {
    "errors": lambda bad: {"errors": bad},
    "slow_ttft": lambda bad: {"slow_ttft": of_200(bad)},
    "slow_e2e": lambda bad: {"slow_e2e": of_200(bad)},
    "refused": lambda bad: {"refused": bad, "control": of_200(80)},
    "compared": lambda bad: {"compared": (slower(bad, 80),)},
}


@pytest.mark.parametrize(("percent", "share"), [(5, 0.75), (25, 0.25 / 4), (100, 0.25 / 4)])
@pytest.mark.parametrize("rate", RATES)
def test_each_test_of_a_stage_convicts_by_its_200th_request_within_its_share_of_the_error(
    rate: str, percent: int, share: float
) -> None:
    """The docstring of `analysis` promises the budget, that of `sequential` that 0.8 of it is spent at the 200th request."""
    alpha = BUDGET[rate] * share
    of_the_reference = upper_bound(of_200(80), alpha)
    assert binomial_tail(200, 1 - of_the_reference, 120) <= 0.8 * alpha  # it may have that share
    assert binomial_tail(200, 1 - of_the_reference + 1 / 4096, 120) > 0.8 * alpha
    limit = {
        "errors": 0.5,
        "refused": max(0.5, 1.5 * of_the_reference),
        "compared": 1.25 * of_the_reference,
    }.get(rate, 0.01)
    fewest = next(bad for bad in range(201) if binomial_tail(200, limit, bad) <= 0.8 * alpha)
    for bad, failed in ((fewest - 1, False), (fewest, True)):
        judged = judge_stage(window(percent=percent, requests=200, **RATES[rate](bad)), HALF)
        assert (judged.verdict is StageVerdict.FAILED) is failed, judged


def binomial_tail(requests: int, rate: float, count: int) -> float:
    """Return the probability of at least so many."""
    terms = range(count, requests + 1)
    return math.fsum(math.comb(requests, k) * rate**k * (1 - rate) ** (requests - k) for k in terms)


def test_a_comparison_that_convicts_is_named() -> None:
    judged = judge_stage(window(requests=200, compared=(slower(2), slower(190))), POLICY)
    assert judged.reasons == ("TTFT over 0.5 s in 190 of 200 answers, in 0 of 200 of the fallback",)


def test_no_traffic_passes_where_only_faults_matter() -> None:
    assert judge_stage(window(requests=0), POLICY, min_requests=0).verdict is StageVerdict.PASSED
    assert judge_stage(window(requests=0, hung=True), POLICY, min_requests=0).verdict is StageVerdict.FAILED


def test_a_tier_that_fails_more_than_the_fallback_steps_back_although_the_settings_allow_it() -> None:
    lax = POLICY.model_copy(update={"max_error_percent": 20.0})
    failing = window(requests=400, errors=30, control_failed=Counts(bad=2, total=4000))
    judged = judge_stage(failing, lax)
    assert judged.verdict is StageVerdict.FAILED
    assert "30 of 400 requests failed (7.5 %), on the fallback 2 of 4000" in "; ".join(judged.reasons)
    both = failing.model_copy(update={"control_failed": Counts(bad=300, total=4000)})
    assert judge_stage(both, lax).verdict is StageVerdict.PASSED


@given(
    requests=st.integers(0, 500),
    errors=st.integers(0, 50),
    ttft=st.one_of(st.none(), st.floats(0, 10_000)),
    worse=st.integers(1, 50),
)
def test_more_errors_never_turn_a_failed_stage_into_a_passed_one(
    requests: int, errors: int, ttft: float | None, worse: int
) -> None:
    before = judge_stage(window(requests=requests, errors=errors, ttft_p99_ms=ttft), POLICY)
    after = judge_stage(window(requests=requests, errors=errors + worse, ttft_p99_ms=ttft), POLICY)
    if before.verdict is StageVerdict.FAILED:
        assert after.verdict is StageVerdict.FAILED


def test_the_description_names_what_could_not_be_measured() -> None:
    line = describe(window(missing=("kernel log (denied)",), ttft_p99_ms=None))
    assert "not measured: kernel log (denied)" in line
    assert "TTFT" not in line


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"errors": 2, "queue_peak": 3},
            "100 requests, 2 errors, TTFT p99 100 ms, E2E p99 900 ms, queue at most 3",
        ),
        (
            {"probes": 7, "ttft_p99_ms": None, "e2e_p99_ms": None},
            "100 requests (7 of them probes), 0 errors, queue at most 0",
        ),
        (
            {
                "compared": (
                    slower(0).model_copy(update={"against": "tp before the incident"}),
                    slower(0),
                    slower(1),
                ),
                "application_xids": ("xid 31", "xid 13", "xid 43", "xid 45"),
                "missing": ("ttft", "kernel log"),
            },
            "100 requests, 0 errors, TTFT p99 100 ms, E2E p99 900 ms, queue at most 0, "
            "compared with the fallback and tp before the incident, "
            "application faults in the kernel log: xid 31, xid 13, xid 43, not measured: ttft, kernel log",
        ),
    ],
)
def test_the_description_is_one_line(changes: dict[str, Any], line: str) -> None:
    assert describe(window(**changes)) == line


PASSED, FAILED = (
    Judged(verdict=StageVerdict.PASSED),
    Judged(verdict=StageVerdict.FAILED, reasons=("bad", "worse")),
)
FEW = Judged(verdict=StageVerdict.INCONCLUSIVE, reasons=("few",))


@pytest.mark.parametrize(
    ("judged", "orders", "elapsed_s", "then", "why"),
    [
        (PASSED, Orders(), 10, Then.WAIT, "observing, 10 of 60 s"),
        (PASSED, Orders(), 60, Then.PASS, ""),
        (PASSED, Orders(go_on=True), 10, Then.PASS, "a person pressed next"),
        (PASSED, Orders(holding=True), 600, Then.WAIT, f"paused by a person: {PRESS}"),
        (PASSED, Orders(abort=True), 600, Then.STEP_BACK, "a person pressed abort"),
        (FAILED, Orders(), 1, Then.STEP_BACK, "bad; worse"),
        (FAILED, Orders(go_on=True), 1, Then.STEP_BACK, "bad; worse"),
        (FAILED, Orders(holding=True), 1, Then.STEP_BACK, "bad; worse"),
        (FEW, Orders(), 10, Then.WAIT, "observing, 10 of 60 s"),
        (FEW, Orders(), 61, Then.WAIT, f"few: {PRESS}"),
        (FEW, Orders(), 159, Then.WAIT, f"few: {PRESS}"),
        (FEW, Orders(), 160, Then.STEP_BACK, "few, and nobody decided within 100 s"),
        (FEW, Orders(go_on=True), 61, Then.PASS, "a person pressed next"),
        (FEW, Orders(holding=True), 161, Then.WAIT, f"paused by a person: {PRESS}"),
    ],
)
def test_the_next_move_of_a_stage_and_why(
    judged: Judged, orders: Orders, elapsed_s: float, then: Then, why: str
) -> None:
    found = decide_stage(judged, orders, elapsed_s=elapsed_s, hold_s=60, inconclusive_wait_s=100)
    assert found == (then, why)


@pytest.mark.parametrize(
    ("signals", "orders"),
    [
        ((), Orders()),
        (("next",), Orders(seen=1, go_on=True)),
        (("hold",), Orders(seen=1, holding=True)),
        (("hold", "next"), Orders(seen=2, go_on=True)),
        (("next", "hold"), Orders(seen=2, holding=True)),
        (("hold", "abort"), Orders(seen=2, holding=True, abort=True)),
        (("stop",), Orders(seen=1, abort=True)),
        (("abort", "hold"), Orders(seen=2, holding=True, abort=True)),
        (("abort", "next"), Orders(seen=2, go_on=True, abort=True)),
    ],
)
def test_the_latest_signal_counts(signals: tuple[str, ...], orders: Orders) -> None:
    assert take_orders(Orders(), signals) == orders


async def test_a_next_counts_only_if_it_came_after_its_question(tmp_path: Path) -> None:
    signals: list[str] = []

    async def given_so_far() -> tuple[str, ...]:
        return tuple(signals)

    def step(name: str) -> Any:
        return SimpleNamespace(step=SimpleNamespace(id=name), workdir=tmp_path, signals=given_so_far)

    signals += ["hold", "next"]  # during an earlier step, which asks nothing
    assert (await read_orders(step("compare"))).go_on is False
    assert (await read_orders(step("compare"))).go_on is False
    signals.append("next")
    assert (await read_orders(step("compare"))).go_on is True
    assert (await read_orders(step("shift-5"))).go_on is False
    signals.append("abort")
    assert (await read_orders(step("shift-25"))).abort is True


@given(st.lists(st.sampled_from(["hold", "next", "abort"]), max_size=8), st.integers(0, 8))
def test_signals_read_in_two_parts_equal_those_read_at_once(signals: list[str], cut: int) -> None:
    whole = take_orders(Orders(), tuple(signals))
    assert take_orders(take_orders(Orders(), tuple(signals[:cut])), tuple(signals)) == whole


@pytest.mark.parametrize("percent", [0, 1, 5, 25, 50, 99, 100])
def test_the_weights_of_a_stage_match_its_share_and_are_never_all_zero(percent: int) -> None:
    tp, fallback = weights_for(percent, tp_weight=200, fallback_weight=90)
    assert tp + fallback > 0
    assert 100 * tp / (tp + fallback) == percent
    assert max(tp, fallback) <= 256


@pytest.mark.parametrize(
    ("percent", "standby", "weights"),
    [(25, 0, (25, 75)), (1, 1, (2, 198)), (99, 1, (198, 2)), (2, 1, (2, 98))],
)
def test_weights_are_doubled_only_beside_a_stand_by(
    percent: int, standby: int, weights: tuple[int, int]
) -> None:
    found = weights_for(percent, tp_weight=200, fallback_weight=90, standby_weight=standby)
    assert found == weights


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_share_beyond_all_requests_is_refused(percent: int) -> None:
    with pytest.raises(ValueError, match=f"{percent} is not a percentage"):
        weights_for(percent, tp_weight=200, fallback_weight=90)


@pytest.mark.parametrize("percent", [1, 5, 25, 50, 99])
def test_no_stage_but_the_last_one_makes_a_tier_a_stand_by(percent: int) -> None:
    tp, fallback = weights_for(percent, tp_weight=200, fallback_weight=90, standby_weight=1)
    assert min(tp, fallback) > 1
    assert 100 * tp / (tp + fallback) == percent
    assert weights_for(100, tp_weight=200, fallback_weight=90, standby_weight=1) == (200, 1)
