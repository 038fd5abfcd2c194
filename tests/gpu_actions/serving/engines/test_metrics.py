"""Parsing of engines' Prometheus pages, and the arithmetic of histograms."""

import itertools
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client import Histogram as PrometheusHistogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gpu_actions.serving.engines.metrics import (
    FIGURES,
    histogram_above,
    histogram_count,
    histogram_delta,
    histogram_percentile,
    lengths_delta,
    parse_samples,
)
from gpu_actions.serving.interfaces import EngineMetrics, Histogram, TokenHistogram
from gpu_actions.serving.registry import ENGINES, engine_of_page

VLLM_PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:generation_tokens_total{engine="0",model_name="m"} 1.2345e+06
vllm:generation_tokens_created{engine="0",model_name="m"} 1.795427076e+09
vllm:prompt_tokens_total{engine="0",model_name="m"} 100.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 4.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 5.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="1.0",model_name="m"} 3.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 4.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 4.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 5.5
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.1",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="1.0",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="+Inf",model_name="m"} 1.0
vllm:time_to_first_token_seconds_sum{engine="1",model_name="m"} 0.05
python_gc_objects_collected_total{generation="0"} 11111.0
"""


def read(page: str, *, kind: str = "vllm", model: str = "m") -> EngineMetrics:
    engine = (engine_of_page(page) if kind == "openai" else None) or ENGINES[kind]
    return engine.read_page(page, model=model, taken_at_s=1.0)


def test_label_sets_are_summed_and_the_fullest_cache_counts() -> None:
    metrics = read(VLLM_PAGE)
    assert (metrics.running, metrics.waiting) == (5, 7)
    assert (metrics.generation_tokens, metrics.prompt_tokens) == (1_234_500, 100)
    assert metrics.requests_finished == 9
    assert metrics.kv_cache_usage == 0.75
    assert metrics.ttft == Histogram(bounds_s=(0.1, 1.0, math.inf), counts=(2, 4, 5), total_s=5.55)
    assert metrics.missing == ("itl", "e2e", "queue", "prompt_lengths", "answer_lengths")


def test_lengths_of_requests_are_read_and_a_restarted_engine_starts_anew() -> None:
    def page(short: int, long: int) -> EngineMetrics:
        return read(
            f'vllm:request_prompt_tokens_bucket{{le="10.0"}} {short}\n'
            f'vllm:request_prompt_tokens_bucket{{le="+Inf"}} {short + long}\n'
            f"vllm:request_prompt_tokens_sum {5 * short + 50 * long}\n"
        )

    before, after = page(4, 1).prompt_lengths, page(6, 4).prompt_lengths
    assert before is not None
    assert after is not None
    assert lengths_delta(before, after) == TokenHistogram(
        bounds_tokens=(10, math.inf), counts=(2, 5), total_tokens=160
    )
    assert lengths_delta(after, before) == before


def test_among_several_models_only_the_requested_one_counts() -> None:
    page = 'vllm:num_requests_running{model_name="m"} 1\nvllm:num_requests_running{model_name="other"} 40\n'
    assert read(page).running == 1
    assert read(page, model="unknown").running == 41
    assert read(page + "vllm:num_requests_waiting 2\n", model="").running == 41


def test_the_generic_kind_finds_the_names_of_every_known_engine() -> None:
    assert read("sglang:num_running_reqs 4\nsglang:token_usage 0.5\n", kind="openai").running == 4
    assert read("vllm:num_requests_running 6\n", kind="openai").running == 6
    assert len(read("up 1\n", kind="openai").missing) == len(FIGURES)


SGLANG_PAGE = """\
sglang:num_running_reqs{model_name="m"} 2
sglang:generation_tokens_total{model_name="m"} 64
sglang:time_to_first_token_seconds_bucket{le="+Inf",model_name="m"} 3
sglang:inter_token_latency_seconds_bucket{le="+Inf",model_name="m"} 97
"""


def test_progress_is_what_changes_with_every_token() -> None:
    assert read(VLLM_PAGE).progress == 1_234_500
    assert read(SGLANG_PAGE, kind="sglang").progress == read(SGLANG_PAGE, kind="openai").progress == 100
    assert read(SGLANG_PAGE.splitlines()[1], kind="sglang").progress == 64, "without its histograms"
    assert read("sglang:num_running_reqs 1\n", kind="sglang").progress is None


def test_an_older_metric_name_is_used_if_the_new_one_is_missing() -> None:
    assert read("vllm:gpu_cache_usage_perc 0.4\n").kv_cache_usage == 0.4


@pytest.mark.parametrize("page", ["vllm:num_requests_running{ 4", "vllm:num_requests_running four"])
def test_a_page_that_is_not_prometheus_text_is_an_error(page: str) -> None:
    with pytest.raises(ValueError, match=r"num_requests_running|four"):
        read(page)


LABEL_VALUES = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=12) | st.sampled_from(
    ['a"b', "a\\b", "a\nb", "a\\nb", "}", "{x=}", 'x",y="z']
)


@given(
    labels=st.dictionaries(st.sampled_from(["model_name", "engine", "reason"]), LABEL_VALUES, min_size=1),
    value=st.floats(allow_nan=False),
    observed=st.lists(st.floats(0, 100), max_size=20),
)
def test_pages_of_prometheus_client_are_read_as_its_own_parser_reads_them(
    labels: dict[str, str], value: float, observed: list[float]
) -> None:
    registry = CollectorRegistry()
    Gauge("vllm:gauge", "g", list(labels), registry=registry).labels(**labels).set(value)
    Counter("vllm:counter", "c", list(labels), registry=registry).labels(**labels).inc(3)
    histogram = PrometheusHistogram("vllm:seconds", "h", list(labels), registry=registry).labels(**labels)
    for second in observed:
        histogram.observe(second)
    page = generate_latest(registry).decode()
    ours = sorted((s.name, sorted(s.labels.items()), s.value) for s in parse_samples(page, ("vllm:",)))
    theirs = sorted(
        (s.name, sorted(s.labels.items()), s.value)
        for family in text_string_to_metric_families(page)
        for s in family.samples
    )
    assert ours == theirs


def test_reading_a_large_page_is_faster_than_the_library_parser() -> None:
    page = "".join(VLLM_PAGE.replace('engine="0"', f'engine="{number}"') for number in range(2, 60))

    def best_of_three(work: object) -> float:
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            work()  # type: ignore[operator]
            times.append(time.perf_counter() - begun)
        return min(times)

    ours = best_of_three(lambda: read(page))
    theirs = best_of_three(lambda: list(text_string_to_metric_families(page)))
    assert ours < theirs


BOUNDS = (0.1, 0.5, 1.0, math.inf)


@pytest.mark.parametrize(
    ("counts", "q", "expected"),
    [
        ((10, 10, 10, 10), 0.5, 0.05),
        ((0, 10, 10, 10), 0.5, 0.3),
        ((0, 10, 10, 10), 1.0, 0.5),
        ((5, 5, 10, 10), 0.75, 0.75),
        ((5, 5, 10, 10), 0.5, 0.1),
        ((0, 0, 0, 10), 0.5, 1.0),
        ((9, 9, 9, 10), 0.99, 1.0),
        ((0, 0, 10, 10), 0.0, 0.5),
        ((0, 0, 0, 0), 0.5, None),
    ],
)
def test_percentiles_are_linear_within_their_bucket(
    counts: tuple[float, ...], q: float, expected: float | None
) -> None:
    value = histogram_percentile(Histogram(bounds_s=BOUNDS, counts=counts, total_s=0), q)
    assert value == expected if expected is None else value == pytest.approx(expected)


def test_a_quantile_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match="99"):
        histogram_percentile(Histogram(bounds_s=BOUNDS, counts=(1, 1, 1, 1), total_s=0), 99)


@given(st.lists(st.floats(0.0001, 0.9999), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_percentile_is_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    bounds = (0.1, 0.2, 0.4, 0.8, 1.0, math.inf)
    counts = tuple(float(sum(value <= bound for value in values)) for bound in bounds)
    estimate = histogram_percentile(Histogram(bounds_s=bounds, counts=counts, total_s=0), q)
    true = sorted(values)[max(0, math.ceil(q * len(values) - 1e-9) - 1)]
    assert estimate is not None
    edges = (0.0, *bounds)
    low, high = next((a, b) for a, b in itertools.pairwise(edges) if a < true <= b)
    assert low - 1e-9 <= estimate <= high + 1e-9


@given(
    st.lists(st.integers(0, 50), min_size=4, max_size=4), st.lists(st.integers(0, 50), min_size=4, max_size=4)
)
def test_a_delta_has_exactly_the_observations_in_between(first: list[int], second: list[int]) -> None:
    def cumulative(numbers: list[int]) -> tuple[float, ...]:
        return tuple(float(sum(numbers[: position + 1])) for position in range(len(numbers)))

    before = Histogram(bounds_s=BOUNDS, counts=cumulative(first), total_s=2.0)
    after = Histogram(
        bounds_s=BOUNDS, counts=cumulative([a + b for a, b in zip(first, second, strict=True)]), total_s=5.0
    )
    delta = histogram_delta(before, after)
    assert delta.counts == cumulative(second)
    assert histogram_count(delta) == sum(second)
    assert delta.total_s == 3.0


def test_after_a_restart_of_the_engine_everything_counts_as_new() -> None:
    before = Histogram(bounds_s=BOUNDS, counts=(5, 6, 7, 8), total_s=9)
    after = Histogram(bounds_s=BOUNDS, counts=(1, 1, 1, 2), total_s=1)
    assert histogram_delta(before, after) == after


def test_histograms_with_different_buckets_are_not_subtracted() -> None:
    before = Histogram(bounds_s=(1.0, math.inf), counts=(1, 1), total_s=1)
    with pytest.raises(ValueError, match="different buckets"):
        histogram_delta(before, Histogram(bounds_s=BOUNDS, counts=(1, 1, 1, 1), total_s=1))


@pytest.mark.parametrize(
    ("counts", "limit_s", "above"),
    [
        ((2, 5, 9, 9), 0.5, 4),
        ((2, 5, 9, 9), 0.3, 4),  # within a bucket its upper bound counts
        ((2, 5, 9, 9), 1.0, 0),
        ((2, 5, 9, 9), 30.0, 0),
        ((2, 5, 9, 10), 30.0, None),
        ((2, 5, 9, 10), 1.0, 1),
        ((0, 0, 0, 0), 30.0, 0),
    ],
)
def test_observations_above_a_limit_are_counted_or_not_known(
    counts: tuple[float, ...], limit_s: float, above: int | None
) -> None:
    histogram = Histogram(bounds_s=(0.1, 0.5, 1.0, math.inf), counts=counts, total_s=1.0)
    assert histogram_above(histogram, limit_s) == above
