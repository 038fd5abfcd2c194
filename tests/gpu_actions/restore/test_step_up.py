"""Stepping up the ladder on real processes and a real HAProxy: a bigger rung takes the traffic beside the smaller one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_actions.action import PlanRefused
from gpu_actions.models import GpuHealth, Verdict, VerdictKind
from gpu_actions.restore.action import SPEC as RESTORE
from gpu_actions.restore.check import rung_problems
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.target import target_of_host
from gpu_actions.tier import stop as stop_module
from gpu_actions.tier.gpu_memory import read_gpus
from gpu_actions.tier.launch import environment_of
from gpu_actions.triage.judge import judge
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.fakes import build_fake_nvml, fake_nvml
from tests.gpu_actions.site import At, Site, data_of, statuses, summary_of

__all__ = ["build_fake_nvml", "fake_nvml"]

Install = Callable[..., Path]
QUICK = {"stages_percent": [50, 100], "hold_s": 1, "keep_fallback_warm_s": 0.2}


async def on_small_rung(make: MakeSite, **restore: object) -> Site:
    """Return a host with the ladder big, small, fallback, of which small serves after a fallback."""
    site = await make(
        ladder={"big": {"max_concurrent": 64}, "small": {"max_concurrent": 32}}, restore={**QUICK, **restore}
    )
    plan = await site.plan(skip_validation=True, rung="small")
    quick = [step for step in plan.steps if step.id not in ("capture", "drain")]
    end = await site.run(plan.model_copy(update={"steps": tuple(quick)}))
    assert (end.ended.status, site.host.rung) == ("succeeded", "small")
    return site


async def test_a_bigger_rung_takes_the_traffic_in_judged_stages_and_no_request_is_lost(
    site_with: MakeSite,
) -> None:
    site = await on_small_rung(site_with)
    with pytest.raises(PlanRefused, match="rung fallback is not above rung small"):
        await site.plan(RESTORE, rung="fallback")
    plan = await site.plan(RESTORE, rung="big")
    assert plan.title.startswith("Step up from rung small to rung big: beside it, then 50 % -> 100 %")
    async with site.traffic() as seen:
        end = await site.run(plan)
    assert end.ended.status == "succeeded", [step.outcome.summary for step in end.steps]
    before = ["check", "prepare", "start", "warm", "environment", "golden", "loadtest"]
    after = ["shift-50", "shift-100", "keep-warm", "drain", "stop", "finish"]
    assert [step for step, _ in statuses(end)] == [*before, *after]
    assert "50 % to rung big" in summary_of(end, "shift-50")
    assert data_of(end, "shift-50")["window"]["requests"] >= 2
    assert (seen.lost, seen.refused) == ([], 0)
    assert data_of(end, "finish")["state"] == "fallback_serving"
    assert site.host.rung == "big"
    await site.check_serving("fallback")


@pytest.mark.heavy
async def test_a_bigger_rung_that_fails_a_stage_gives_the_traffic_back_to_the_smaller_one(
    site_with: MakeSite,
) -> None:
    site = await on_small_rung(site_with, hold_s=20)
    plan = await site.plan(RESTORE, rung="big")
    quick = [step for step in plan.steps if step.id not in ("loadtest", "environment")]
    broken = At("shift-50", (site.folder / "error_big").touch, after_s=0.5)
    async with site.traffic(clients=4):
        end = await site.run(plan.model_copy(update={"steps": tuple(quick)}), report=broken)
    assert end.ended.failed_step == "shift-50"
    assert "All traffic is back on the fallback" in summary_of(end, "shift-50")
    assert data_of(end, "stepback")["state"] == "fallback_serving"
    assert site.host.rung == "small"
    await site.check_serving("fallback")


async def test_there_is_no_step_up_from_a_tier_that_serves_and_none_to_a_rung_that_does_not_exist(
    site_with: MakeSite,
) -> None:
    site = await site_with(ladder={"big": {}})
    with pytest.raises(PlanRefused, match="no smaller rung serves to step up from"):
        await site.plan(RESTORE, rung="big")
    with pytest.raises(PlanRefused, match="there is no rung 'huge' here"):
        await site.plan(RESTORE, rung="huge")


def test_the_gpus_of_the_rung_must_be_well_and_linked_whatever_the_others_are() -> None:
    gpus = tuple(
        GpuHealth(
            uuid=f"GPU-{one}",
            index=one,
            ruled_out="uncorrected ECC errors" if one == 3 else "",
            reaches=tuple(other for other in range(2) if other != one),
        )
        for one in range(4)
    )
    verdict = Verdict(verdict=VerdictKind.FALL_BACK, cause="ecc", summary="", gpus=gpus)
    assert rung_problems(verdict, ["GPU-0", "GPU-1"], needs_links=True) == ()
    assert rung_problems(verdict, ["GPU-0", "GPU-2"], needs_links=True) == (
        "GPU 0 does not reach GPU 2 over NVLink",
    )
    assert rung_problems(verdict, ["GPU-3"], needs_links=False) == ("GPU 3: uncorrected ECC errors",)
    assert rung_problems(verdict, ["GPU-9"], needs_links=False) == ("GPU-9 could not be judged",)


async def test_over_a_driver_the_bigger_rung_gets_linked_gpus_beside_the_smaller_one(
    site_with: MakeSite, fake_nvml: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_module, "RELEASE_TIMEOUT_S", 0.2)
    lost = [f"gpu.{gpu}.link.7.active=0" for gpu in range(5)]
    fake_nvml("gpus=8", *lost)
    site = await site_with(
        ladder={
            "tp4": {"gpus": 4, "memory_gib_per_gpu": 20},
            "tp2": {"gpus": 2, "memory_gib_per_gpu": 20},
        },
        tp_tier={"gpus": 8},
        fallback_tier={"gpus": 1, "memory_gib_per_gpu": 20},
        restore=QUICK,
    )
    host = site.host
    verdict = judge(await collect(await target_of_host(host), host.thresholds, window_s=0.5), host.thresholds)
    end = await site.run(await site.plan(verdict=verdict, skip_validation=True, rung="fallback"))
    assert (end.ended.status, host.rung) == ("succeeded", "fallback")
    taken = data_of(end, "scope")["variables"]["CUDA_VISIBLE_DEVICES"]
    with pytest.raises(PlanRefused, match=r"rung tp4 does not fit .* too few of them are linked"):
        await site.plan(RESTORE, verdict=verdict, rung="tp4")
    with pytest.raises(PlanRefused, match="no triage of the last hour says which GPUs reach each other"):
        await site.plan(RESTORE, rung="tp2")
    pid = (await host.fallback.unit.state()).main_pid
    uuids = [gpu.uuid for gpu in (await read_gpus()).gpus]
    full = uuids.index(taken)
    fake_nvml("gpus=8", *lost, f"gpu.{full}.process={pid}", f"gpu.{full}.memory_free_mib=11000")
    free = [uuid for uuid in uuids[5:] if uuid != taken][:2]
    plan = await site.plan(RESTORE, verdict=verdict, rung="tp2")
    quick = [step for step in plan.steps if step.id not in ("loadtest", "environment")]
    end = await site.run(plan.model_copy(update={"steps": tuple(quick)}))
    assert end.ended.status == "succeeded", [step.outcome.summary for step in end.steps]
    assert host.rung == "tp2"
    main = (await host.fallback.unit.state()).main_pid
    assert main is not None
    assert (environment_of(main) or {}).get("CUDA_VISIBLE_DEVICES") == ",".join(free)
