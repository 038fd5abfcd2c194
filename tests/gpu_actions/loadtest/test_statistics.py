"""Percentiles, intervals, the record, energy, and the check against the engine's counters."""

import math
import random
import statistics

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_actions.loadtest.cross_check import EngineCounters, cross_check, sum_metric
from gpu_actions.loadtest.energy import EnergyMeter
from gpu_actions.loadtest.outcomes import Outcome
from gpu_actions.loadtest.records import LogHistogram, Records
from gpu_actions.loadtest.session import own_rows
from gpu_actions.loadtest.statistics import (
    MAX_SAMPLES,
    SHARES,
    describe,
    describe_histogram,
    order_interval,
    percentile_rank,
    reach_confidence_percent,
    thin_out,
    unbounded_text,
    wilson_interval,
)


def test_confidence_of_a_p99_is_45_percent_at_60_samples_and_95_at_299() -> None:
    assert reach_confidence_percent(60, 0.99) == pytest.approx(45.3, abs=0.1)
    assert reach_confidence_percent(298, 0.99) < 95 <= reach_confidence_percent(299, 0.99)  # type: ignore[operator]


@pytest.mark.parametrize(("n", "share"), [(60, 0.5), (400, 0.9), (1500, 0.99), (5000, 0.5), (5000, 0.99)])
def test_the_interval_encloses_the_true_quantile_in_95_of_100_samples(n: int, share: float) -> None:
    generator = numpy.random.default_rng(5)
    low, high = order_interval(n, share)
    assert low is not None
    assert high is not None
    held = 0
    for _ in range(600):
        sample = numpy.sort(generator.random(n))
        held += bool(sample[low - 1] <= share <= sample[high - 1])
    assert 0.92 <= held / 600 <= 0.995


def test_the_upper_end_of_an_interval_is_open_when_the_sample_is_too_small() -> None:
    low, high = order_interval(60, 0.99)
    assert low is not None
    assert high is None


@pytest.mark.parametrize("n", [5, 10, 20, 60, 150, 400])
@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_intervals_of_small_samples_keep_their_coverage_because_an_end_out_of_reach_stays_open(
    n: int, share: float
) -> None:
    """Simulated with skewed latencies; the exact coverage is at least 95 %, so 2,000 samples show at least 93.5 %."""
    low, high = order_interval(n, share)
    generator = numpy.random.default_rng(n)
    samples = numpy.sort(generator.lognormal(0, 1, (2000, n)), axis=1)
    truth = math.exp(statistics.NormalDist().inv_cdf(share))
    above = numpy.ones(2000, bool) if low is None else samples[:, low - 1] <= truth
    below = numpy.ones(2000, bool) if high is None else samples[:, high - 1] >= truth
    assert (above & below).mean() >= 0.935


@pytest.mark.parametrize(
    ("n", "share", "expected"),
    [
        (0, 0.5, (None, None)),
        (1, 0.5, (None, None)),
        (5, 0.5, (None, None)),
        (6, 0.5, (1, 6)),  # Conover, table A3: 6 samples bound the median by their ends
        (10, 0.5, (2, 9)),
        (60, 0.99, (58, None)),
        (368, 0.99, (360, 368)),
        (2000, 0.5, (956, 1045)),
        (2001, 0.5, (956, 1046)),
        (2001, 0.9995, (1998, None)),
        (2001, 0.9971, (1990, 2001)),
        (2001, 0.9972, (1990, None)),
        (2002, 0.0011, (None, 7)),
        (2002, 0.0029, (1, 12)),
    ],
)
def test_the_ranks_that_enclose_a_quantile(
    n: int, share: float, expected: tuple[int | None, int | None]
) -> None:
    assert order_interval(n, share) == expected


@pytest.mark.parametrize(
    ("n", "share", "rank"), [(1, 0.01, 1), (10, 0.9, 9), (10, 0.91, 10), (100, 0.99, 99), (3, 0.001, 1)]
)
def test_the_nearest_rank_of_a_share(n: int, share: float, rank: int) -> None:
    assert percentile_rank(n, share) == rank


def test_a_distribution_states_its_ends_its_mean_and_how_far_they_reach() -> None:
    found = describe([5, 3, 1, 2, 4, 6], [9.0, 7.0])
    assert (found.count, found.censored, found.mean_ms, found.max_ms) == (8, 2, 3.5, 9.0)
    assert found.p50.model_dump() == {
        "value_ms": 4.0,
        "low_ms": 1.0,
        "high_ms": None,  # the upper end is a request that had not ended
        "confidence_percent": 100 * (1 - 0.5**8),
        "at_least": False,
    }
    assert (found.p90.value_ms, found.p90.at_least, found.p90.low_ms) == (9.0, True, 5.0)
    closed = describe([float(value) for value in range(1, 11)])
    assert (closed.p50.low_ms, closed.p50.high_ms, closed.max_ms, closed.mean_ms) == (2.0, 9.0, 10.0, 5.5)


def test_a_request_that_runs_on_counts_at_least_as_much_as_the_slowest_that_ended() -> None:
    found = describe([1.0, 80.0], [30.0])
    assert (found.max_ms, found.p99.value_ms, found.p99.at_least) == (80.0, 80.0, True)
    never = describe([], [30.0, 20.0])
    assert (never.count, never.censored, never.mean_ms, never.max_ms) == (2, 2, None, 30.0)
    assert (never.p50.value_ms, never.p50.at_least) == (20.0, True)


def test_whole_numbers_and_text_of_numbers_are_read_as_milliseconds() -> None:
    assert describe(numpy.array(["10", "9"])).max_ms == 10.0
    assert describe([1.0], numpy.array(["10", "9"])).max_ms == 10.0
    assert thin_out(["10", "9.00049"]) == (10.0, 9.0)


def test_a_histogram_is_described_in_milliseconds() -> None:
    histogram = LogHistogram()
    assert describe_histogram(histogram).mean_ms is None
    histogram.extend([0.1] * 6 + [0.4] * 4)
    found = describe_histogram(histogram)
    assert (found.count, found.censored) == (10, 0)
    assert found.mean_ms == pytest.approx(220)
    assert found.p50.value_ms == pytest.approx(100, rel=0.005)
    assert (found.p90.value_ms, found.max_ms) == (
        pytest.approx(400, rel=0.005),
        pytest.approx(400, rel=0.005),
    )
    assert (found.p50.at_least, found.p50.low_ms) == (False, pytest.approx(100, rel=0.005))
    assert found.p50.high_ms == pytest.approx(400, rel=0.005)


def test_a_long_sample_is_thinned_out_evenly_and_keeps_its_ends() -> None:
    assert thin_out([1.00049, 2.0, 3.0006]) == (1.0, 2.0, 3.001)
    whole = [float(value) for value in range(MAX_SAMPLES)]
    assert thin_out(whole) == tuple(whole)
    thin = thin_out([float(value) for value in range(10 * MAX_SAMPLES)])
    assert (len(thin), thin[0], thin[1], thin[-1]) == (MAX_SAMPLES, 0.0, 10.0, 10.0 * MAX_SAMPLES - 1)


def test_percentiles_that_so_few_requests_cannot_bound_are_named_with_the_number_that_can() -> None:
    assert unbounded_text(describe(range(60))) == (
        "p95 and p99 cannot be bounded from above by 60 requests: p99 needs 368"
    )
    assert unbounded_text(describe(range(1))) == (
        "p50 and p90 and p95 and p99 cannot be bounded from above by 1 request: p99 needs 368"
    )
    assert "by 2 requests: " in unbounded_text(describe(range(2)))
    assert unbounded_text(describe(range(71))).startswith("p95 and p99 cannot")
    assert unbounded_text(describe(range(72))).startswith("p99 cannot")
    assert unbounded_text(describe(range(367))).startswith("p99 cannot")
    assert unbounded_text(describe(range(368))) == unbounded_text(describe([])) == ""


def test_a_single_sample_bounds_only_the_99th_percentile_and_only_from_below() -> None:
    assert [order_interval(1, share) for _, share in SHARES] == [
        (None, None),
        (None, None),
        (None, None),
        (1, None),
    ]
    assert reach_confidence_percent(0, 0.99) is None


def test_without_samples_every_figure_is_null_and_never_zero() -> None:
    empty = describe([])
    assert (empty.count, empty.mean_ms, empty.max_ms, empty.p50.value_ms, empty.p99.value_ms) == (
        0,
        None,
        None,
        None,
        None,
    )


def test_requests_that_never_ended_rank_above_all_that_did() -> None:
    distribution = describe([1.0] * 90, [500.0] * 10)
    assert distribution.p90.value_ms == 1.0
    assert (distribution.p95.value_ms, distribution.p95.at_least) == (500.0, True)
    assert distribution.censored == 10


@given(
    values=st.lists(st.floats(2e-6, 900), min_size=1, max_size=200), share=st.sampled_from([0.5, 0.9, 0.99])
)
@settings(max_examples=100)
def test_a_histogram_quantile_is_within_half_a_percent_of_the_exact_one(
    values: list[float], share: float
) -> None:
    histogram = LogHistogram()
    histogram.extend(values)
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    assert histogram.quantile(share) == pytest.approx(exact, rel=0.005)
    assert histogram.max_s == max(values)


def test_merged_histograms_equal_the_histogram_of_all_values() -> None:
    values = [random.Random(2).expovariate(50) for _ in range(2000)]
    whole, left, right = LogHistogram(), LogHistogram(), LogHistogram()
    whole.extend(values)
    left.extend(values[:700])
    right.extend(values[700:])
    left.merge(right)
    assert left.bins == whole.bins
    assert left.count == whole.count


@given(size=st.integers(0, 50), workers=st.integers(1, 5))
def test_rows_of_several_workers_add_up_to_the_whole_record(size: int, workers: int) -> None:
    whole = Records(size)
    for worker in range(workers):
        part = Records(size)
        rows = own_rows(size, worker, workers)
        for row in rows:
            part.first_s[row], part.tokens[row], part.outcome[row] = row / 7, row, Outcome.OK
        whole.load_rows(rows, part.dump_rows(rows))
    assert list(whole.first_s) == [row / 7 for row in range(size)]
    assert list(whole.tokens) == list(range(size))
    assert all(outcome == Outcome.OK for outcome in whole.outcome)


def test_wilson_interval_matches_its_published_example() -> None:
    # Newcombe 1998, table I: 81 of 263
    low, high = wilson_interval(81, 263)
    assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 0, 0.0, 1.0), (0, 1, 0.0, 0.7935), (1, 1, 0.2065, 1.0), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0)],
)  # fmt: skip
def test_the_ends_of_a_wilson_interval_stay_within_0_and_1(
    successes: int, n: int, low: float, high: float
) -> None:
    found = wilson_interval(successes, n)
    assert found == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert found[0] >= 0 and found[1] <= 1


def test_a_counter_is_summed_over_its_labels() -> None:
    page = '# TYPE a_total counter\na_total{x="1 2"} 3.0\na_total{x="}"} 4\na_total_other 9\nb 1\na_total 1e1 17000\n'
    assert sum_metric(page, ("a_total",)) == 17.0
    assert sum_metric(page, ("c",)) is None


@pytest.mark.parametrize(
    ("before", "after", "agrees", "words"),
    [
        ((0, 0), (10, 40), True, "agree"),
        ((5, 5), (15, 25), False, "the engine counted 20 tokens, the client got 40"),
        ((0, 0), (30, 90), False, "other traffic"),
        ((9, 9), (1, 1), False, "restarted"),
    ],
)
def test_counts_are_checked_against_the_engine(
    before: tuple[int, int], after: tuple[int, int], agrees: bool, words: str
) -> None:
    check = cross_check(
        EngineCounters(requests=before[0], output_tokens=before[1]),
        EngineCounters(requests=after[0], output_tokens=after[1]),
        ok=10, tokens=40, unaccounted_tokens=0,
    )  # fmt: skip
    assert check.agrees is agrees
    assert words in check.summary


def test_counters_that_cannot_be_read_are_not_checked() -> None:
    check = cross_check(
        EngineCounters(problem="no page"), EngineCounters(), ok=1, tokens=4, unaccounted_tokens=0
    )
    assert check.agrees is None
    assert "no page" in check.summary


def test_energy_is_integrated_over_the_measured_part_only() -> None:
    meter = EnergyMeter()
    meter.samples = [(at * 0.5, 400.0) for at in range(41)]
    energy = meter.over(2.25, 12.25, output_tokens=2000, price_usd_per_kwh=0.16)
    assert energy.joules == pytest.approx(4000)
    assert energy.joules_per_output_token == pytest.approx(2.0)
    assert energy.usd_per_million_output_tokens == pytest.approx(2e6 / 3.6e6 * 0.16)
    assert energy.method == "integrated power samples"


def test_the_drivers_energy_counter_is_preferred() -> None:
    meter = EnergyMeter()
    meter.samples = [(at * 0.5, 400.0) for at in range(41)]
    meter._counters = [(at * 0.5, 1000.0 + at * 100.0) for at in range(41)]
    energy = meter.over(2.25, 12.25, output_tokens=0, price_usd_per_kwh=0.16)
    assert energy.joules == pytest.approx(2000)
    assert energy.method == "energy counter"
    assert energy.joules_per_output_token is None


def test_without_a_driver_energy_is_null_with_the_reason() -> None:
    meter = EnergyMeter(("GPU-that-is-not-here",))
    meter.start()
    meter.stop()
    energy = meter.over(0, 1, output_tokens=1, price_usd_per_kwh=0.16)
    assert energy.joules is None
    assert energy.missing
