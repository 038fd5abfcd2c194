"""A fallback on a host with GPUs, simulated by a fake libnvidia-ml under the real nvidia-ml-py."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_actions.action import PlanRefused
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.target import target_of_host
from gpu_actions.standby.action import SPEC as STANDBY
from gpu_actions.tier import stop as stop_module
from gpu_actions.tier.gpu_memory import read_gpus
from gpu_actions.tier.launch import environment_of
from gpu_actions.triage.judge import judge
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.fakes import build_fake_nvml, fake_nvml
from tests.gpu_actions.site import data_of, statuses, summary_of

__all__ = ["build_fake_nvml", "fake_nvml"]

Install = Callable[..., Path]
GPUS: dict[str, Any] = {"tp_tier": {"gpus": 2}, "fallback_tier": {"gpus": 1, "memory_gib_per_gpu": 20}}


async def test_gpus_are_read_in_a_child_and_a_hanging_driver_costs_only_the_deadline(
    fake_nvml: Install,
) -> None:
    fake_nvml("gpus=2", "gpu.1.process=4711")
    read = await read_gpus()
    assert read.error == ""
    assert [gpu.pids for gpu in read.gpus] == [(), (4711,)]
    assert len({gpu.uuid for gpu in read.gpus}) == 2
    assert all(gpu.total_mib > gpu.free_mib > 0 for gpu in read.gpus)
    fake_nvml("gpus=2", "gpu.0.sleep.nvmlDeviceGetMemoryInfo=1")
    hung = await read_gpus(timeout_s=1.5)
    assert (hung.gpus, "did not answer within 1.5 s" in hung.error) == ((), True)
    fake_nvml("gpus=2", "fail.nvmlInitWithFlags=9")
    assert "NVML" in (await read_gpus()).error


async def test_the_fallback_is_scoped_to_a_gpu_by_uuid_and_the_release_of_tps_memory_is_checked(
    site_with: MakeSite, fake_nvml: Install
) -> None:
    fake_nvml("gpus=2")
    chosen = (await read_gpus()).gpus[1].uuid
    site = await site_with(**GPUS)
    plan = await site.plan(gpu="1", skip_validation=True)
    assert "planned" in plan.title
    end = await site.run(plan)
    assert end.ended.status == "succeeded"
    assert data_of(end, "scope")["variables"] == {"CUDA_VISIBLE_DEVICES": chosen}
    main = (await site.host.fallback.unit.state()).main_pid
    assert main is not None
    assert (environment_of(main) or {}).get("CUDA_VISIBLE_DEVICES") == chosen
    assert "GPU memory released" in summary_of(end, "stop")
    assert data_of(end, "warm")["memory"]["gpu_uuid"] == chosen


async def test_memory_that_a_killed_process_still_holds_is_reported_without_delaying_the_fallback(
    site_with: MakeSite, fake_nvml: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_module, "RELEASE_TIMEOUT_S", 0.2)
    site = await site_with(**GPUS)
    pid = (await site.host.tp.unit.state()).main_pid
    fake_nvml("gpus=2", f"gpu.0.process={pid}")
    end = await site.run(await site.plan(gpu="1", skip_validation=True))
    assert end.ended.status == "succeeded"
    assert ("stop", "warning") in statuses(end)
    assert f"[{pid}]" in summary_of(end, "stop")
    assert "needs a reset" in summary_of(end, "stop")


async def test_a_model_that_fits_no_gpu_is_refused_with_the_arithmetic(
    site_with: MakeSite, fake_nvml: Install
) -> None:
    fake_nvml("gpus=2")
    site = await site_with(up=False, fallback_tier={"gpus": 1, "memory_gib_per_gpu": 900})
    with pytest.raises(PlanRefused, match=r"too small: the fallback needs 900 GiB, 80 % of its"):
        await site.plan()


async def test_lost_links_on_all_gpus_do_not_prevent_a_fallback(
    site_with: MakeSite, fake_nvml: Install
) -> None:
    fake_nvml("gpus=2", "gpu.*.link.*.active=0")
    site = await site_with(**GPUS)
    target = await target_of_host(site.host)
    verdict = judge(await collect(target, site.host.thresholds, window_s=0.5), site.host.thresholds)
    assert (verdict.verdict, verdict.cause) == ("fall_back", "nvlink_loss")
    plan = await site.plan(verdict=verdict, skip_validation=True)
    assert verdict.fallback_gpu is not None
    assert plan.alternatives["serve"][0]["gpu"] == verdict.fallback_gpu.uuid


async def test_a_gpu_that_another_process_fills_is_refused_before_anything_is_stopped(
    site_with: MakeSite, fake_nvml: Install
) -> None:
    site = await site_with(**GPUS)
    tp = (await site.host.tp.unit.state()).main_pid
    fake_nvml(
        "gpus=2",
        f"gpu.0.process={tp}",
        "gpu.0.process_mib=6000",
        f"gpu.1.process={os.getpid()}",
        "gpu.1.process_mib=70000",
    )
    with pytest.raises(PlanRefused, match=rf"process {os.getpid()} \(.*\) holds 68 GiB"):
        await site.plan(gpu="1")
    assert {candidate["gpu"] for candidate in (await site.plan()).alternatives["serve"]} == {
        (await read_gpus()).gpus[0].uuid
    }


async def test_a_standby_whose_gpu_is_faulty_is_not_woken_and_the_fallback_starts_cold_on_another(
    site_with: MakeSite, fake_nvml: Install
) -> None:
    fake_nvml("gpus=2")
    site = await site_with(**{**GPUS, "fallback_tier": {**GPUS["fallback_tier"], "standby": "sleep"}})
    end = await site.run(await site.plan(STANDBY))
    assert end.ended.status == "succeeded", [step.outcome.summary for step in end.steps]
    asleep_on = data_of(end, "scope")["variables"]["CUDA_VISIBLE_DEVICES"]
    uuids = [gpu.uuid for gpu in (await read_gpus()).gpus]
    faulty = uuids.index(asleep_on)
    fake_nvml("gpus=2", f"gpu.{faulty}.remap_failure=1")
    target = await target_of_host(site.host)
    verdict = judge(await collect(target, site.host.thresholds, window_s=0.5), site.host.thresholds)
    plan = await site.plan(verdict=verdict, skip_validation=True)
    assert f"the standby on GPU {faulty} is not woken: GPU {faulty} is faulty" in " ".join(plan.warnings)
    end = await site.run(plan)
    assert end.ended.status == "succeeded", [step.outcome.summary for step in end.steps]
    assert data_of(end, "warm")["woken"] is False
    main = (await site.host.fallback.unit.state()).main_pid
    assert main is not None
    assert (environment_of(main) or {}).get("CUDA_VISIBLE_DEVICES") == uuids[1 - faulty]
    await site.check_serving("fallback")
