"""The limits that a knee offers, and how the fallback takes them: its plan, its outcome, and the doctor."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bot.cli.doctor.hosts import check_knee
from gpu_actions.action import StepContext
from gpu_actions.host import Host
from gpu_actions.loadtest.action import SPEC as LOADTEST
from gpu_actions.loadtest.knee_action import knee
from gpu_actions.loadtest.knee_limits import fallback_limits, keep_knee, latest_knee, limits_of
from gpu_actions.loadtest.knee_result import KNEE_JSON, KneeResult, KneeTrial
from gpu_actions.loadtest.result import EngineFacts, HostFacts, RunVerdict, Workload
from gpu_actions.plan import Step
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import data_of, make_site, summary_of


def knee_of(
    places: int, answer_ms: float, *, ttft_ms: float = 50, slo_ttft_ms: float = 1000, **changes: Any
) -> KneeResult:
    """Return the knee of a server with so many places, at which a request waits 400 ms in the engine for a place."""
    rate = places / (answer_ms / 1000)
    wait_ms = 400.0

    def trial(qps: float, waits_ms: float) -> KneeTrial:
        return KneeTrial(
            rate_qps=qps, is_full=True, started_s=0, window_s=8, ended_early=False, held=True, sent=100, ok=100,
            ttft_p50_ms=ttft_ms + waits_ms, ttft_p99_ms=slo_ttft_ms, e2e_p50_ms=answer_ms + waits_ms, e2e_p99_ms=2000,
            completed_qps=qps, output_tokens_per_s=1,
        )  # fmt: skip

    work = Workload(
        model="m", api="completions", arrival="poisson", target_qps=rate, max_new_tokens=4, prompt_len_min=1,
        prompt_len_max=1, prompt_unit="bytes", ignore_eos=True, gpus=0, tensor_parallel=1,
    )  # fmt: skip
    fields: dict[str, Any] = {
        "name": "knee", "verdict": RunVerdict.PASSED, "knee_qps": rate, "held_qps": rate, "broke_at_qps": rate * 1.04,
        "capacity_qps": rate, "slo_ttft_ms": slo_ttft_ms, "slo_e2e_ms": 10_000, "max_error_percent": 1,
        "started_at": "2026-11-12T03:00:00+00:00", "seconds": 70, "budget_s": 75, "max_qps": 500, "workload": work,
        "host": HostFacts(hostname="h", kernel="k", cpus=2, serves_the_target=True), "engine": EngineFacts(url="http://h"),
        "trials": (trial(3, 0), trial(rate, wait_ms)),
    }  # fmt: skip
    return KneeResult(**{**fields, **changes})


@pytest.mark.parametrize(("places", "answer_ms"), [(2, 500), (8, 300), (16, 300), (64, 2000)])
def test_the_offered_concurrency_is_the_number_of_places_whatever_waits_in_the_engine(
    places: int, answer_ms: float
) -> None:
    offered = limits_of(knee_of(places, answer_ms))
    assert offered is not None
    assert offered.max_concurrent == places
    wait_s = offered.max_queue / (places / (answer_ms / 1000))
    assert wait_s + 0.05 <= 1.0, "the last one in the queue still holds the TTFT limit"


@pytest.mark.parametrize(
    "changes", [{"verdict": RunVerdict.VOID}, {"reached_cap": True}, {"knee_qps": None, "held_qps": None}]
)
def test_a_knee_that_is_not_known_offers_no_limits(changes: dict[str, Any]) -> None:
    assert limits_of(knee_of(8, 300, **changes)) is None


def with_folder(host: Host, folder: Path, **back_pressure: Any) -> Host:
    router = type(host.config.router).model_validate({"url": host.router.url, "back_pressure": back_pressure})
    config = host.config.model_copy(update={"router": router})
    return dataclasses.replace(host, baselines_dir=folder, config=config)


async def test_the_settings_win_over_the_knee_and_both_are_said(tmp_path: Path) -> None:
    site = make_site(tmp_path, fb=["--max-num-seqs", "16"])
    host = with_folder(site.host, tmp_path)
    assert fallback_limits(host).notes == (
        "limits of the settings: no knee of the tier fallback was measured",
    )
    assert [check.status for check in await check_knee(host)] == ["warning"]
    keep_knee(host, "fallback", knee_of(24, 300))
    limits = fallback_limits(host)
    assert limits.given == {"max_concurrent": 24, "max_queue": 68}
    assert limits.notes[0] == (
        "max_concurrent 24 from the knee of 2026-11-12 (80 requests/s, TTFT p99 1000 ms); the settings name none (default 16)"
    )
    assert limits.notes[-1] == "proposed: start the fallback's engine with --max-num-seqs 24 (now 16)"
    (check,) = await check_knee(host)
    assert (check.status, "max_concurrent 24" in check.detail) == ("ok", True)
    named = with_folder(site.host, tmp_path, max_concurrent=16, max_queue=32)
    limits = fallback_limits(named)
    assert (dict(limits.given), limits.pressure.max_concurrent) == ({}, 16)
    assert "max_concurrent is 16 in the settings and stays so" in limits.warnings[0]
    (check,) = await check_knee(named)
    assert (check.status, "offers 24" in check.detail) == ("warning", True)


async def test_a_knee_of_another_model_or_size_does_not_count(tmp_path: Path) -> None:
    host = with_folder(make_site(tmp_path).host, tmp_path)
    other = knee_of(24, 300)
    work = other.workload.model_copy(update={"tensor_parallel": 8})
    keep_knee(host, "fallback", other.model_copy(update={"workload": work}))
    assert "8 ranks" in latest_knee(host, "fallback").problem
    assert fallback_limits(host).given == {}


def test_a_small_knee_leaves_room_for_long_contexts(tmp_path: Path) -> None:
    host = with_folder(make_site(tmp_path).host, tmp_path)
    keep_knee(host, "fallback", knee_of(3, 300))
    pressure = fallback_limits(host).pressure
    assert (pressure.max_concurrent, pressure.long_share) == (3, 1)
    named = with_folder(host, tmp_path, long_share=4)
    assert fallback_limits(named).pressure.max_concurrent == 16, "a named share is never replaced"


async def test_a_fallback_takes_the_limits_of_its_knee_and_says_so_in_plan_and_outcome(
    site_with: MakeSite,
) -> None:
    site = await site_with()
    site.host = dataclasses.replace(site.host, baselines_dir=site.folder / "baselines")
    keep_knee(site.host, "fallback", knee_of(24, 300))
    plan = await site.plan(skip_validation=True)
    (step,) = [one for one in plan.steps if one.id == "backpressure"]
    assert "max_concurrent 24" in step.details
    assert any("from the knee of 2026-11-12" in line for line in step.details)
    end = await site.run(plan)
    assert end.ended.status == "succeeded"
    in_force = data_of(end, "backpressure")["in_force"]
    assert (in_force["max_concurrent"], in_force["max_queue"]) == (24, 68)
    assert "max_concurrent 24 from the knee" in summary_of(end, "backpressure")
    again = await site.host.router.apply_back_pressure("fallback")
    assert again["max_concurrent"] == 24, "a clean-up keeps them"


@pytest.mark.parametrize(("target", "is_kept"), [("fallback", True), ("router", False)])
async def test_a_knee_is_kept_for_the_fallback_only_if_no_router_limited_it(
    tmp_path: Path, target: str, is_kept: bool
) -> None:
    host = with_folder(make_site(tmp_path).host, tmp_path)
    args = {"tier": "fallback", "target": target, "spec": {}, "max_qps": 500, "budget_s": 75}
    step = Step(id="knee", verb="loadtest.knee", title="knee", args=args)
    (tmp_path / "knee").mkdir()
    (tmp_path / "knee" / KNEE_JSON).write_text(knee_of(24, 300).model_dump_json())
    done = await knee(StepContext(run_id="lt-1", host=host, step=step, outputs={}, workdir=tmp_path))
    assert "at most 24 requests at once" in done.data["thread_text"]
    assert (latest_knee(host, "fallback").result is not None) is is_kept


@pytest.mark.heavy
async def test_a_knee_measured_on_the_running_fallback_sets_the_limits_of_the_next_one(
    site_with: MakeSite,
) -> None:
    site = await site_with(fb=["--slots", "8", "--token-s", "0.1"])
    site.host = dataclasses.replace(site.host, baselines_dir=site.folder / "baselines")
    await site.host.fallback.unit.start()
    await site.host.fallback.engine.wait_ready(timeout_s=30)
    searched = await site.run(
        await site.plan(LOADTEST, target="fallback", find="knee", slo_ttft_ms=1500, duration=75)
    )
    assert "limits that fit: at most" in data_of(searched, "knee")["thread_text"], summary_of(
        searched, "knee"
    )
    knee_qps = data_of(searched, "knee")["knee_qps"]
    assert knee_qps == pytest.approx(8 / 0.4, rel=0.2), "8 places, answers of 4 tokens of 0.1 s"
    await site.host.fallback.unit.stop(grace_s=0)
    plan = await site.plan(skip_validation=True)
    (step,) = [one for one in plan.steps if one.id == "backpressure"]
    assert 7 <= step.args["wanted"]["max_concurrent"] <= 10
    end = await site.run(plan)
    assert data_of(end, "backpressure")["in_force"]["max_concurrent"] == step.args["wanted"]["max_concurrent"]
