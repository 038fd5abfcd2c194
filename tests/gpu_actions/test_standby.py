"""A standby on real processes and a real HAProxy: made beside tp, woken by a fallback, put to sleep by a restore."""

import asyncio
import os
import signal

import pytest

from gpu_actions.action import PlanRefused
from gpu_actions.fallback.action import SPEC as FALLBACK
from gpu_actions.restore.action import SPEC as RESTORE
from gpu_actions.serving.condition import Condition
from gpu_actions.standby.action import SPEC as STANDBY
from gpu_actions.standby.action import needs_care
from gpu_actions.tier.preflight import gather_facts
from gpu_actions.tier.sleep import keeps_too_much
from gpu_actions.tier.standby import StandbyCost, is_asleep
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import Site, data_of, statuses, summary_of

SLEEPS = {"fallback_tier": {"standby": "sleep"}, "fallback": {"wake_timeout_s": 2, "capture_budget_s": 2}}


QUICK = {
    "stages_percent": [100],
    "hold_s": 0.3,
    "keep_fallback_warm_s": 0.2,
    "load": {"duration_s": 1, "target_qps": 5},
}


async def with_standby(site_with: MakeSite, **changes: object) -> Site:
    site = await site_with(**SLEEPS, **changes)
    end = await site.run(await site.plan(STANDBY))
    assert statuses(end) == [(step, "done") for step in ("scope", "launch", "warm", "sleep")]
    assert data_of(end, "sleep")["host_gib"] > 0
    assert "GiB of host memory" in data_of(end, "sleep")["card"]["Standby"]
    return site


async def asleep(site: Site) -> bool:
    return await is_asleep(site.host.fallback, await site.host.fallback.unit.state())


async def test_a_hung_tier_is_replaced_by_its_woken_standby(site_with: MakeSite) -> None:
    site = await with_standby(site_with)
    before = (await site.host.fallback.unit.state()).main_pid
    await site.freeze_rank()
    plan = await site.plan(FALLBACK, skip_validation=True)
    assert "wake the standby" in [step.title for step in plan.steps]
    end = await site.run(plan)
    assert end.ended.status == "succeeded"
    assert "standby woken in" in summary_of(end, "launch")
    assert data_of(end, "warm")["woken"] is True
    assert data_of(end, "warm")["startup_s"] < 2, "counted from the wake-up, not from the process's start"
    assert (await site.host.fallback.unit.state()).main_pid == before
    await site.check_serving("fallback")


@pytest.mark.parametrize("how", [pytest.param("refuse", marks=pytest.mark.heavy), "hang", "die"])
async def test_a_standby_that_does_not_wake_is_replaced_by_a_cold_start(
    site_with: MakeSite, how: str
) -> None:
    site = await with_standby(site_with)
    before = (await site.host.fallback.unit.state()).main_pid
    (site.folder / "wake_fallback").write_text(how)
    await site.freeze_rank()
    end = await site.run(await site.plan(FALLBACK, skip_validation=True))
    assert end.ended.status == "succeeded"
    launches = [step.outcome for step in end.steps if step.outcome.step_id == "launch"]
    assert [outcome.status for outcome in launches] == ["failed", "done"]
    assert "did not wake" in launches[0].summary
    if how == "die":
        assert "OutOfMemoryError" in launches[0].summary
    assert data_of(end, "warm")["woken"] is False
    assert (await site.host.fallback.unit.state()).main_pid != before
    await site.check_serving("fallback")


async def test_a_standby_that_died_between_plan_and_wake_is_replaced_by_a_cold_start(
    site_with: MakeSite,
) -> None:
    site = await with_standby(site_with)
    await site.freeze_rank()
    plan = await site.plan(FALLBACK, skip_validation=True)
    await site.host.fallback.unit.stop()
    end = await site.run(plan)
    assert end.ended.status == "succeeded"
    launches = [step.outcome.summary for step in end.steps if step.outcome.step_id == "launch"]
    assert "the standby of fallback is gone" in launches[0]
    await site.check_serving("fallback")


def test_the_cost_of_a_standby_names_the_headroom_that_it_takes_from_tp() -> None:
    cost = StandbyCost(host_gib=14.9, host_free_gib=210, gpu_gib=0.75, gpu_index=3, gpu_free_gib=5.1)
    assert cost.text == (
        "14.9 GiB of host memory (210 GiB still available), 0.8 GiB of GPU memory kept, "
        "headroom on GPU 3 5.1 GiB instead of 5.8"
    )


async def test_a_restore_puts_the_fallback_to_sleep_again(site_with: MakeSite) -> None:
    site = await with_standby(site_with, restore=QUICK)
    end = await site.run(await site.plan(FALLBACK, skip_validation=True))
    assert end.ended.status == "succeeded"
    async with site.traffic() as seen:
        end = await site.run(await site.plan(RESTORE, accept_no_baseline=True))
    assert end.ended.status == "succeeded", [step.outcome.summary for step in end.steps]
    assert (seen.lost, await asleep(site)) == ([], True)
    assert "the fallback is asleep" in summary_of(end, "finish")
    weights = await site.weights()
    assert (weights["tp"], weights["fallback"][0]) == ((100, "ready"), 0)


async def test_a_cancelled_fallback_leaves_the_standby_asleep(site_with: MakeSite) -> None:
    site = await with_standby(site_with)
    stop = asyncio.Event()
    stop.set()
    end = await site.run(await site.plan(FALLBACK, skip_validation=True), stop=stop)
    assert end.ended.status == "cancelled"
    assert await asleep(site)
    assert (await site.weights())["tp"] == (100, "ready")


async def test_the_daily_test_wakes_the_standby_and_puts_it_to_sleep_again(site_with: MakeSite) -> None:
    site = await with_standby(site_with)
    before = (await site.host.fallback.unit.state()).main_pid
    plan = await site.plan(STANDBY)
    assert "put it to sleep again" in plan.title
    end = await site.run(plan)
    assert end.ended.status == "succeeded"
    assert await asleep(site)
    assert (await site.host.fallback.unit.state()).main_pid == before


async def test_a_standby_is_made_only_beside_a_tier_that_serves(site_with: MakeSite) -> None:
    site = await site_with(**SLEEPS)
    await site.freeze_rank()
    with pytest.raises(PlanRefused, match="this is no time for a standby"):
        await site.plan(STANDBY)


async def test_without_the_setting_there_is_no_standby(site_with: MakeSite) -> None:
    site = await site_with()
    with pytest.raises(PlanRefused, match=r"set tiers\.fallback\.standby to sleep or resident"):
        await site.plan(STANDBY)


async def test_an_engine_without_sleep_mode_says_which_flag_is_missing(site_with: MakeSite) -> None:
    site = await site_with(fb=["--no-sleep"], **SLEEPS)
    end = await site.run(await site.plan(STANDBY))
    assert end.ended.status == "failed"
    assert "--enable-sleep-mode" in summary_of(end, "sleep")
    assert not (await site.host.fallback.unit.state()).active, "no half-made standby is left"


async def test_what_a_standby_needs_is_seen(site_with: MakeSite) -> None:
    site = await with_standby(site_with)
    host = site.host
    facts = await gather_facts(host)
    assert (facts.fallback.condition, needs_care(host, facts)) == (Condition.ASLEEP, "")
    assert needs_care(host, facts, ruled_out=frozenset({""})) == "triage excludes its GPU"
    await host.fallback.engine.wake(timeout_s=5)
    assert needs_care(host, await gather_facts(host)) == "it is awake"
    await host.fallback.unit.stop()
    assert needs_care(host, await gather_facts(host)) == "its process does not run"
    pids = await site.rank_pids()
    os.kill(pids[0], signal.SIGSTOP)
    assert needs_care(host, await gather_facts(host)) == "", "an incident comes first"


async def test_a_resident_standby_takes_the_traffic_without_a_start(site_with: MakeSite) -> None:
    site = await site_with(fallback_tier={"standby": "resident"}, restore=QUICK)
    end = await site.run(await site.plan(STANDBY))
    assert statuses(end)[-1] == ("cost", "done")
    assert "still available" in data_of(end, "cost")["card"]["Standby"]
    before = (await site.host.fallback.unit.state()).main_pid
    await site.freeze_rank()
    end = await site.run(await site.plan(FALLBACK, skip_validation=True))
    assert end.ended.status == "succeeded"
    assert "was running already" in summary_of(end, "launch")
    end = await site.run(await site.plan(RESTORE, accept_no_baseline=True))
    assert end.ended.status == "succeeded", [step.outcome.summary for step in end.steps]
    assert "the fallback is resident" in summary_of(end, "finish")
    assert (await site.host.fallback.unit.state()).main_pid == before


@pytest.mark.parametrize(
    ("before_gib", "after_gib", "too_much"),
    [
        (9.9, 1.19, False),
        (9.9, 5.5, True),
        (60.0, 29.0, False),
        (60.0, 31.0, True),
        (0.8, 0.7, False),  # a toy model: the CUDA context is all it had
        (None, 1.0, False),
        (9.9, None, False),
    ],
)
def test_a_sleeping_engine_may_keep_its_cuda_context(
    before_gib: float | None, after_gib: float | None, too_much: bool
) -> None:
    assert keeps_too_much(before_gib, after_gib) is too_much
