"""The search for the knee: which rates it tries, and what it finds on servers whose capacity is known."""

import asyncio
import json
import math
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from gpu_actions.loadtest.child import find_knee_in_child
from gpu_actions.loadtest.cli import main
from gpu_actions.loadtest.knee import find_knee, sustained_rate
from gpu_actions.loadtest.knee_result import KneeProgress, KneeTrial, knee_lines, read_knee
from gpu_actions.loadtest.knee_search import ENOUGH, KneeSearch
from gpu_actions.loadtest.result import RunVerdict
from gpu_actions.loadtest.run import measure
from gpu_actions.loadtest.target import LoadTestRefused
from tests.gpu_actions.loadtest.conftest import StartServer


def simulated(capacity: float, knee: float, start: float, highest: float = 500) -> tuple[KneeSearch, int]:
    """Search on a service that holds up to `knee` and completes `capacity`. Return the search and its full trials."""
    search = KneeSearch(start, lowest=0.375, highest=highest)
    full = 0
    for _ in range(60):
        tried = search.next() or search.repeat()
        if tried is None:
            return search, full
        full += tried.is_full
        search.note(tried, held=tried.rate <= knee, completed=min(tried.rate, capacity))
    raise AssertionError("the search does not end")


@given(knee=st.floats(0.5, 480), headroom=st.floats(1, 5), start=st.floats(0.4, 500))
@hypothesis_settings(max_examples=300)
def test_a_search_always_ends_with_the_knee_enclosed(knee: float, headroom: float, start: float) -> None:
    search, _ = simulated(knee * headroom, knee, start)
    assert search.held is not None
    assert search.failed is not None
    assert search.held <= knee < search.failed
    assert search.failed / search.held <= ENOUGH


def test_a_knee_near_the_capacity_takes_few_full_trials() -> None:
    for knee in (5, 20, 53, 160, 300):
        assert simulated(knee / 0.98, knee, 3)[1] <= 5, "the last one repeats the lowest rate that failed"


def test_a_service_that_holds_the_highest_rate_is_tried_there_in_full_and_no_higher() -> None:
    search, full = simulated(1000, 1000, 3, highest=60)
    assert (search.held, search.failed, full) == (60, None, 1)


def test_a_service_that_holds_nothing_ends_the_search_at_the_lowest_rate() -> None:
    search, _ = simulated(0.1, 0.1, 3)
    assert (search.held, search.failed) == (None, 0.375)


def test_a_short_trial_that_held_by_luck_is_corrected_by_a_full_one() -> None:
    search = KneeSearch(3, lowest=0.375, highest=500)
    luck = True
    while (tried := search.next() or search.repeat()) is not None:
        held = tried.rate <= 10 or (not tried.is_full and tried.rate <= 12 and luck)
        search.note(tried, held=held, completed=10)
    assert search.held is not None
    assert search.held <= 10 < (search.failed or math.inf)


@pytest.mark.heavy
async def test_the_knee_of_a_known_server_is_enclosed_by_the_rates_that_hold_and_break(
    start_server: StartServer,
) -> None:
    """4 places of 200 ms are 20 requests/s. The bounds are loose: benchmarks/loadtest_knee.py measures within 10 %."""
    server = start_server(slots=4, ttft_ms=50, itl_ms=50)
    shown: list[KneeProgress] = []
    load = server.spec(max_new_tokens=4, slo_ttft_ms=1000, target_qps=5)
    began = monotonic()
    result = await find_knee(load, max_qps=80, budget_s=45, progress=shown.append)
    assert monotonic() - began < 50
    assert result.verdict is RunVerdict.PASSED, knee_lines(result)
    assert result.knee_qps is not None
    assert result.broke_at_qps is not None
    assert 14 <= result.knee_qps <= 24
    assert result.knee_qps < result.broke_at_qps <= 80
    overloaded = [one for one in result.trials if one.rate_qps > 40]
    assert all(one.ended_early and one.window_s < 3 for one in overloaded), "an overload ends early"
    assert len({progress.text.split(",")[0] for progress in shown}) >= len(result.trials) - 1
    assert [progress.fraction for progress in shown] == sorted(progress.fraction for progress in shown)


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_run_that_its_judge_ends_drops_what_is_in_flight(
    start_server: StartServer, processes: int
) -> None:
    server = start_server(slots=2, ttft_ms=400, itl_ms=1)
    began = monotonic()
    result = await measure(
        server.spec(target_qps=60, duration_s=20, timeout_s=30, processes=processes),
        judge=lambda progress: "too slow" if progress.elapsed_s > 1 else None,
    )
    assert monotonic() - began < 12, "not the 30 s that its requests may take"
    assert result.verdict is not RunVerdict.PASSED
    assert "too slow" in result.reasons
    assert result.partial_reason == "too slow"
    assert result.requests.unfinished > 20, (result.errors, result.requests)
    assert result.requests.sent == result.requests.ok + result.requests.failed


async def test_a_search_in_a_child_is_stopped_with_what_is_known_and_has_its_files(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(ttft_ms=5, itl_ms=1)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(7, stop.set)
    result = await find_knee_in_child(
        server.spec(slo_ttft_ms=1000), tmp_path, lambda now: None, max_qps=60, budget_s=60, stop=stop
    )
    assert result.verdict is RunVerdict.VOID
    assert any("stopped by request" in reason for reason in result.reasons)
    assert read_knee(tmp_path / "knee.json") == result
    assert (tmp_path / "summary.txt").read_text().startswith("VOID")
    with Image.open(tmp_path / "knee.png") as picture:
        assert picture.size == (1100, 495)


def test_a_service_that_is_down_has_no_knee_and_a_wrong_model_is_refused(
    start_server: StartServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "--find-knee",
        "--quiet",
        "--model",
        "truth",
        "--no-energy",
        "--output-json",
        str(tmp_path / "out.json"),
    ]
    assert main([*argv, "--url", "http://127.0.0.1:9"]) == 1
    assert "nothing listens" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["knee_qps"] is None
    assert main([*argv, "--url", start_server().url, "--model", "other"]) == 2
    assert main([*argv, "--url", start_server().url, "--arrival", "ramp"]) == 2
    assert main([*argv, "--url", start_server().url, "--knee-budget-s", "5"]) == 2


async def test_a_wrong_model_is_refused_by_the_child_too(start_server: StartServer, tmp_path: Path) -> None:
    with pytest.raises(LoadTestRefused, match="is not served"):
        await find_knee_in_child(start_server().spec(model="other"), tmp_path, max_qps=60, budget_s=60)


def trial(
    rate: float, *, held: bool, completed: float, window_s: float = 8, is_full: bool = True
) -> KneeTrial:
    return KneeTrial(
        rate_qps=rate, is_full=is_full, started_s=0, window_s=window_s, ended_early=False, held=held, sent=1, ok=1,
        ttft_p50_ms=1, ttft_p99_ms=1, e2e_p50_ms=1, e2e_p99_ms=1, completed_qps=completed, output_tokens_per_s=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("broke", "sustained"),
    [
        (trial(56, held=False, completed=52), 52),
        (trial(56, held=False, completed=20), 50),  # it collapsed; the trial that held shows more
        (trial(90, held=False, completed=40), None),  # too far above the knee to say anything about it
        (trial(56, held=False, completed=40, window_s=2), None),
        (trial(56, held=False, completed=40, is_full=False), None),
    ],
)
def test_the_knee_is_not_above_what_is_completed_beside_a_full_queue(
    broke: KneeTrial, sustained: float | None
) -> None:
    assert sustained_rate([trial(54, held=True, completed=50), broke], 54) == sustained


def test_a_rate_that_failed_in_a_moments_stall_is_tried_once_more() -> None:
    search, stalls, tried_rates = KneeSearch(3, lowest=0.375, highest=500), 1, []
    while (tried := search.next() or search.repeat()) is not None:
        tried_rates.append(tried.rate)
        has_stall = tried.is_full and stalls > 0
        stalls -= has_stall
        search.note(tried, held=tried.rate <= 100 and not has_stall, completed=min(tried.rate, 102))
    assert search.held is not None
    assert search.failed is not None
    assert search.held <= 100 < search.failed
    assert search.failed / search.held <= ENOUGH
    assert len(tried_rates) < 20
