"""Reasons to refuse a plan, and what a plan shows, on a real host."""

import os
import socket
from pathlib import Path

import pytest

from gpu_actions.action import PlanRefused
from gpu_actions.tier.preflight import gather_facts
from tests.gpu_actions.conftest import MakeSite


@pytest.mark.chaos(
    fault="the fallback's port is taken",
    at="before the plan; with a full disk and another operator's freeze",
    after="refused before anything is touched, each with its reason",
)
async def test_a_taken_port_another_operators_freeze_and_a_full_disk_are_reported_together(
    site_with: MakeSite,
) -> None:
    site = await site_with(fallback={"min_free_disk_gib": 1e9})
    await site.host.fallback.unit.freeze("maintenance by Ada")
    port = int(site.host.fallback.engine.url.rsplit(":", 1)[1])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PlanRefused) as refused:
        await site.plan()
    text = "\n".join(refused.value.problems)
    assert f"port {port} of the fallback tier is taken by" in text
    assert f"(process {os.getpid()})" in text
    assert "frozen by another operator (maintenance by Ada)" in text
    assert "min_free_disk_gib" in text


async def test_a_host_that_serves_from_its_fallback_is_refused(
    site_with: MakeSite,
) -> None:
    site = await site_with()
    await site.run(await site.plan(skip_validation=True))
    with pytest.raises(PlanRefused, match="already serves"):
        await site.plan()


async def test_an_existing_router_that_does_not_answer_is_refused(
    site_with: MakeSite, tmp_path: Path
) -> None:
    site = await site_with(up=False, router={"managed": False, "socket": str(tmp_path / "nobody.sock")})
    with pytest.raises(PlanRefused, match="the router does not answer"):
        await site.plan()


async def test_a_missing_program_is_refused_before_the_tier_is_touched(
    site_with: MakeSite, tmp_path: Path
) -> None:
    site = await site_with()
    fallback = site.host.config.tiers["fallback"]
    unit = fallback.unit.model_copy(update={"argv": ("/opt/none/vllm", "serve")})
    broken = fallback.model_copy(update={"unit": unit})
    object.__setattr__(site.host.fallback, "config", broken)
    with pytest.raises(PlanRefused, match="its program /opt/none/vllm is not on this machine"):
        await site.plan()
    folder = unit.model_copy(update={"argv": ("true",), "cwd": tmp_path / "gone"})
    object.__setattr__(site.host.fallback, "config", broken.model_copy(update={"unit": folder}))
    with pytest.raises(PlanRefused, match=r"its folder .*gone"):
        await site.plan()


@pytest.mark.chaos(
    fault="the router's port is taken", at="before the plan", after="refused, naming the process that has it"
)
async def test_a_router_that_cannot_start_is_refused_with_the_process_that_has_its_port(
    site_with: MakeSite,
) -> None:
    site = await site_with(up=False)
    port = int(site.host.router.url.rsplit(":", 1)[1])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PlanRefused) as refused:
        await site.plan()
    assert f"port {port} of the router is taken by" in "\n".join(refused.value.problems)


async def test_the_plan_shows_commands_files_environment_and_weights_and_has_a_stable_hash(
    site_with: MakeSite,
) -> None:
    site = await site_with()
    plan, again = await site.plan(), await site.plan()
    assert plan.hash == again.hash
    shown = "\n".join(line for step in plan.steps for line in step.details)
    for expected in (
        "tiny_engine.py",
        "state drain",
        "NCCL_P2P_DISABLE",
        "weights: fallback 100, tp 0",
        "max_concurrent 16",
        "long_window_s 4",
        "fallback_benchmark.json",
        "SIGKILL after 5 s",
    ):
        assert expected in shown, expected
    assert "no request" in plan.losses
    assert plan.steps[-1].id == "validate"


async def test_a_healthy_idle_tier_differs_from_a_stopped_one(site_with: MakeSite) -> None:
    site = await site_with()
    assert (await gather_facts(site.host)).tp.condition == "serving"
    await site.host.tp.unit.stop()
    assert (await gather_facts(site.host)).tp.condition == "stopped"
