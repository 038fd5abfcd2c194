"""Baselines and comparisons, on results with known samples."""

from pathlib import Path

import numpy
import pytest

from gpu_actions.loadtest.assemble import workload_of
from gpu_actions.loadtest.baseline import (
    PUBLISHED,
    Baseline,
    BaselineError,
    BaselineStore,
    Reference,
    make_baseline,
    published,
    run_set,
)
from gpu_actions.loadtest.comparison import Change, Comparison, MetricComparison, compare, comparison_text
from gpu_actions.loadtest.energy import EnergyMeter
from gpu_actions.loadtest.result import (
    ClientFacts,
    CrossCheck,
    EngineFacts,
    HostFacts,
    Latency,
    Lateness,
    Limits,
    LoadTestResult,
    Rates,
    Requests,
    RunVerdict,
    Samples,
    Saturation,
    Times,
    Warmup,
)
from gpu_actions.loadtest.schedule import make_schedule
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.statistics import describe, thin_out


def a_result(
    seed: int = 0,
    *,
    ttft_ms: float = 100,
    n: int = 180,
    failed: int = 0,
    host: str = "h1",
    verdict: RunVerdict = RunVerdict.PASSED,
    partial: bool = False,
    tokens_per_s: float = 12,
    measured_s: float = 60,
    **spec_fields: object,
) -> LoadTestResult:
    """Return a result whose TTFTs are gamma-distributed around `ttft_ms`, like those of a real service."""
    spec = LoadSpec.model_validate({"url": "http://127.0.0.1:1", "model": "m", **spec_fields})
    generator = numpy.random.default_rng(seed)
    ttft = numpy.sort(generator.gamma(9, ttft_ms / 9, n))
    e2e, tpot = ttft + 60, numpy.sort(generator.gamma(100, 0.2, n))
    latency = Latency(
        **dict.fromkeys(("ttft", "e2e", "itl", "tpot", "ttft_from_send", "e2e_from_send"), describe(ttft))
    )
    return LoadTestResult(
        name="r", verdict=verdict, reasons=() if verdict is RunVerdict.PASSED else ("because",), partial=partial,
        workload=workload_of(spec, make_schedule(spec), "bytes"),
        limits=Limits(slo_ttft_ms=1, slo_e2e_ms=1, max_error_percent=1, timeout_s=1, stall_s=1, max_lateness_p99_ms=5),
        host=HostFacts(hostname=host, kernel="k", cpus=2, serves_the_target=True),
        engine=EngineFacts(url=spec.url),
        times=Times(started_at=f"t{seed}", ended_at="t", planned_s=60, measured_s=measured_s, warmup_s=0, drain_s=0),
        requests=Requests(scheduled=n + failed, sent=n + failed, ok=n, good=n, failed=failed, unfinished=0, unsent=0,
                          retried_on_stale_connection=0),
        rates=Rates(target_qps=3, offered_qps=3, achieved_qps=3, goodput_qps=3, goodput_percent=100,
                    output_tokens_per_s=tokens_per_s, total_tokens_per_s=20, output_tokens=720, prompt_tokens=1),
        latency=latency,
        lateness=Lateness(p50_ms=0, p99_ms=0, max_ms=0, limit_ms=5, over=False),
        saturation=Saturation(over_saturated=False, backlog_growth_qps=0, sustained_qps=None, shed_percent=0, summary=""),
        energy=EnergyMeter().over(0, 1, output_tokens=1, price_usd_per_kwh=0.1),
        cross_check=CrossCheck(agrees=None, client_requests_ok=n, client_output_tokens=1, summary=""),
        warmup=Warmup(requests=0, ok=0),
        client=ClientFacts(version="0", processes=1, event_loop="e", connections=1, cpu_s=0, cpu_us_per_request=0,
                           max_rss_mib=1, seed=seed),
        samples=Samples(ttft_ms=thin_out(ttft), e2e_ms=thin_out(numpy.sort(e2e)), tpot_ms=thin_out(tpot)),
    )  # fmt: skip


@pytest.fixture
def baseline() -> Baseline:
    return make_baseline("healthy", [a_result(seed) for seed in (1, 2, 3)])


def test_a_run_of_the_same_service_matches(baseline: Baseline) -> None:
    """180 requests whose latency varies by a third make some healthy runs inconclusive, but never regressed."""
    verdicts = [compare(a_result(seed), baseline).verdict for seed in range(10, 15)]
    assert verdicts.count(Change.REGRESSED) == 0
    assert verdicts.count(Change.MATCHES) >= 3
    large = make_baseline("large", [a_result(seed, n=1000) for seed in (1, 2, 3)])
    assert {compare(a_result(seed, n=1000), large).verdict for seed in (4, 5)} == {Change.MATCHES}


def test_a_large_spread_between_the_baselines_runs_widens_the_interval() -> None:
    """A service whose runs differ by 30 % has not regressed when one more run is 15 % slower."""
    uneven = make_baseline(
        "uneven", [a_result(seed, ttft_ms=ms, n=1000) for seed, ms in ((1, 85), (2, 100), (3, 115))]
    )
    assert compare(a_result(4, ttft_ms=115, n=1000), uneven).verdict is not Change.REGRESSED
    even = make_baseline("even", [a_result(seed, n=1000) for seed in (1, 2, 3)])
    assert compare(a_result(4, ttft_ms=115, n=1000), even).verdict is Change.REGRESSED


def test_a_service_a_third_slower_regressed_and_the_interval_excludes_zero(baseline: Baseline) -> None:
    comparison = compare(a_result(11, ttft_ms=135), baseline)
    assert comparison.verdict is Change.REGRESSED
    assert comparison.exit_code == 1
    assert not comparison.passed
    metric = next(metric for metric in comparison.metrics if metric.metric == "ttft_p50")
    assert metric.low is not None
    assert metric.high is not None
    assert 0 < metric.low < 35 < metric.high
    assert "ttft_p50 regressed" in comparison.reasons[0]


def throughput(comparison: Comparison) -> MetricComparison:
    return next(metric for metric in comparison.metrics if metric.metric == "output_tokens_per_s")


def test_a_lower_throughput_is_a_regression_though_latency_is_fine() -> None:
    runs = [a_result(seed, tokens_per_s=rate) for seed, rate in ((1, 11.9), (2, 12), (3, 12.1))]
    steady = make_baseline("steady", runs)
    comparison = compare(a_result(4, tokens_per_s=9), steady)
    assert comparison.verdict is Change.REGRESSED
    assert "output_tokens_per_s regressed: 12.0 → 9.0 tokens/s, -25.0 %" in comparison.reasons[0]
    assert throughput(compare(a_result(4, tokens_per_s=15), steady)).verdict is Change.IMPROVED
    assert throughput(compare(a_result(4, tokens_per_s=11.5), steady)).verdict is Change.MATCHES


def test_a_throughput_that_swings_between_healthy_runs_is_not_called_regressed() -> None:
    runs = [a_result(seed, tokens_per_s=rate) for seed, rate in ((1, 9), (2, 12), (3, 15))]
    metric = throughput(compare(a_result(4, tokens_per_s=9), make_baseline("uneven", runs)))
    assert metric.verdict is Change.INCONCLUSIVE
    # Student's t with 2 degrees of freedom: 4.303 * 3 * sqrt(4 / 3) / 12 = 124 %
    assert (metric.low, metric.high) == (pytest.approx(-149.2, abs=0.2), pytest.approx(99.2, abs=0.2))


def test_one_run_has_no_interval_of_throughput_and_runs_of_different_length_are_not_compared(
    baseline: Baseline,
) -> None:
    alone = compare(a_result(4, tokens_per_s=9), run_set("other", a_result(1)))
    assert throughput(alone).verdict is Change.INCONCLUSIVE
    assert throughput(alone).low is None
    short = throughput(compare(a_result(4, tokens_per_s=9, measured_s=20), baseline))
    assert (short.verdict, short.change) == (Change.MATCHES, None)
    assert "different length" in short.note


def test_a_comparison_with_few_runs_says_so(baseline: Baseline) -> None:
    assert "healthy has only 3 runs" in compare(a_result(4), baseline).reasons[-1]
    many = make_baseline("many", [a_result(seed) for seed in range(1, 6)])
    assert not any("only" in reason for reason in compare(a_result(9), many).reasons)


def test_lost_requests_are_a_regression_though_latency_is_fine(baseline: Baseline) -> None:
    comparison = compare(a_result(12, failed=20), baseline)
    assert comparison.verdict is Change.REGRESSED
    assert "served_percent" in comparison.reasons[0]


def test_a_handful_of_requests_is_inconclusive_not_a_pass(baseline: Baseline) -> None:
    comparison = compare(a_result(5, n=6, ttft_ms=112), baseline)
    assert comparison.verdict is Change.INCONCLUSIVE
    assert comparison.exit_code == 3


def test_a_faster_service_improved(baseline: Baseline) -> None:
    assert compare(a_result(12, ttft_ms=60), baseline).verdict is Change.IMPROVED


def test_a_change_below_the_resolution_of_the_tool_is_no_change() -> None:
    quick = make_baseline("quick", [a_result(seed, ttft_ms=3) for seed in (1, 2, 3)])
    comparison = compare(a_result(11, ttft_ms=4), quick)
    metric = next(metric for metric in comparison.metrics if metric.metric == "ttft_p50")
    assert metric.change is not None
    assert metric.change > 20
    assert metric.verdict is Change.MATCHES


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_new_tokens": 8}, "max_new_tokens: 8 against 4"),
        ({"target_qps": 5}, "target_qps: 5.0 against 3.0"),
        ({"prompt_len_max": 128}, "prompt_len_max: 128 against 64"),
        ({"model": "other"}, "model: other against m"),
        ({"tensor_parallel": 2}, "tensor_parallel: 2 against not stated"),
        ({"host": "h2"}, "hosts differ: h2 against h1"),
        ({"verdict": RunVerdict.VOID}, "is void"),
        ({"partial": True}, "is partial"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_with_the_difference(
    baseline: Baseline, fields: dict[str, object], words: str
) -> None:
    comparison = compare(a_result(9, **fields), baseline)  # type: ignore[arg-type]
    assert comparison.verdict is Change.REFUSED
    assert words in " ".join(comparison.reasons)
    assert comparison.metrics == ()


def test_a_run_that_failed_its_own_limits_never_passes(baseline: Baseline) -> None:
    assert not compare(a_result(10, verdict=RunVerdict.FAILED), baseline).passed


def test_the_published_figures_ship_unverified_and_never_judge() -> None:
    reference = published()
    assert not reference.verified
    assert any(figure.target_qps == 180 and figure.p99_ms == 213 for figure in reference.figures)
    assert compare(a_result(1), reference).verdict is Change.REFUSED


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([a_result(1), a_result(2)], "at least 3 runs"),
        ([a_result(1), a_result(1), a_result(2)], "same run"),
        ([a_result(1), a_result(2), a_result(3, verdict=RunVerdict.FAILED)], "run 3 is failed"),
        ([a_result(1), a_result(2), a_result(3, partial=True)], "run 3 is partial"),
        ([a_result(1), a_result(2), a_result(3, target_qps=4)], "target_qps: 3.0 against 4.0"),
        ([a_result(1), a_result(2), a_result(3, host="h2")], "run 3 was made on h2"),
    ],
)
def test_unusable_runs_do_not_become_a_baseline(results: list[LoadTestResult], words: str) -> None:
    with pytest.raises(BaselineError, match=words):
        make_baseline("b", results)


def test_the_store_keeps_the_names_and_the_baseline_in_force_of_each_workload(
    tmp_path: Path, baseline: Baseline
) -> None:
    store = BaselineStore(tmp_path / "b")
    assert store.names() == [PUBLISHED]
    assert store.current_for(a_result(1)) is None
    store.save(baseline)
    assert store.get("healthy") == baseline
    assert store.current_for(a_result(4)) == baseline, (
        "the first of its workload and host is in force at once"
    )
    second = make_baseline("second", [a_result(seed) for seed in (4, 5, 6)])
    store.save(second)
    assert store.current_for(a_result(4)) == baseline
    store.set_current("second")
    assert store.current_for(a_result(4)) == second
    assert store.current_for(a_result(4, host="h2")) is None
    assert isinstance(store.get(PUBLISHED), Reference)


def test_the_store_refuses_to_overwrite_and_to_read_what_is_not_a_baseline(
    tmp_path: Path, baseline: Baseline
) -> None:
    store = BaselineStore(tmp_path)
    store.save(baseline)
    with pytest.raises(BaselineError, match="already"):
        store.save(baseline)
    store.save(baseline, replace=True)
    with pytest.raises(BaselineError, match="never the judge"):
        store.set_current(PUBLISHED)
    with pytest.raises(BaselineError, match="there are: healthy"):
        store.get("helathy")
    with pytest.raises(BaselineError):
        store.get("../../etc/passwd")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(BaselineError, match="record it again"):
        store.get("bad")


def test_the_text_of_a_comparison_shows_figures_with_their_interval(baseline: Baseline) -> None:
    text = comparison_text(compare(a_result(11, ttft_ms=135), baseline))
    assert text.startswith("REGRESSED against healthy\n")
    assert "95 % interval" in text
    assert " .. +" in text
