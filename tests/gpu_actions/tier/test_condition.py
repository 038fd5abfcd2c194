"""Slow, saturated, reading and unreadable tiers that serve are not taken for hung or dead ones, and the other way round."""

import asyncio

from gpu_actions.serving.condition import Condition
from gpu_actions.tier.condition import KnownHang, read_condition
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import data_of, statuses


async def test_a_slow_tier_that_generates_serves(site_with: MakeSite) -> None:
    site = await site_with()
    (site.folder / "slow_tp").write_text("1.5")
    async with site.traffic(clients=3, tokens=4):
        await asyncio.sleep(0.5)
        reading = await read_condition(site.host.tp, await site.host.tp.unit.state(), stall_s=2)
        (site.folder / "slow_tp").write_text("0.005")
    assert reading.condition is Condition.SLOW
    assert reading.condition.serves


async def test_a_tier_with_more_requests_than_places_is_saturated(site_with: MakeSite) -> None:
    site = await site_with(tp=["--slots", "1", "--token-s", "0.2"])
    async with site.traffic(clients=4, tokens=6, timeout_s=60):
        await asyncio.sleep(0.5)
        reading = await read_condition(site.host.tp, await site.host.tp.unit.state(), stall_s=2)
    assert reading.condition is Condition.SATURATED, reading.why


async def test_a_tier_that_ended_although_its_unit_says_active_is_dead(site_with: MakeSite) -> None:
    site = await site_with()
    state = await site.host.tp.unit.state()
    await site.host.tp.unit.stop()
    reading = await read_condition(site.host.tp, state, stall_s=2)
    assert reading.condition is Condition.DEAD


async def test_a_prompt_that_is_read_for_longer_than_the_stall_limit_is_neither_hung_nor_cut(
    site_with: MakeSite,
) -> None:
    site = await site_with(fallback={"drain_stall_s": 0.6, "drain_timeout_s": 30})
    (site.folder / "prefill_tp").write_text("5")
    async with site.traffic(clients=2, tokens=4, timeout_s=60) as seen:
        await asyncio.sleep(0.3)
        state = await site.host.tp.unit.state()
        reading = await read_condition(site.host.tp, state, stall_s=0.6)
        plan = await site.plan(skip_validation=True)
        plan = plan.model_copy(update={"steps": plan.steps[1:]})  # without the capture
        end = await site.run(plan)
    assert reading.condition is Condition.SLOW, reading.why
    assert "planned" in plan.title
    assert ("drain", "done") in statuses(end)
    assert data_of(end, "drain")["cut"] == 0
    assert seen.lost == []


async def test_a_known_hang_is_believed_although_its_pages_answer_nothing(site_with: MakeSite) -> None:
    site = await site_with()
    tp = site.host.tp
    await asyncio.sleep(1.2)
    (site.folder / "mute_tp").touch()
    async with asyncio.timeout(10):
        reading = await read_condition(tp, await tp.unit.state(), stall_s=60, known=KnownHang(age_s=0.01))
    assert reading.condition is Condition.HUNG
    # That verdict is older than the process, so nothing is known of this one; a probe shows that it generates.
    reading = await read_condition(tp, await tp.unit.state(), stall_s=5, known=KnownHang(age_s=3600))
    assert reading.condition is Condition.SERVING


async def test_a_tier_whose_pages_do_not_answer_but_that_generates_is_not_aborted(
    site_with: MakeSite,
) -> None:
    site = await site_with(fallback={"drain_stall_s": 0.4, "drain_timeout_s": 30})
    plan = await site.plan(skip_validation=True)
    plan = plan.model_copy(update={"steps": plan.steps[1:]})  # without the capture
    (site.folder / "slow_tp").write_text("0.3")
    async with site.traffic(clients=3, tokens=15, timeout_s=60) as seen:
        await asyncio.sleep(0.3)
        (site.folder / "mute_tp").touch()
        end = await site.run(plan)
    assert ("drain", "done") in statuses(end)
    assert data_of(end, "drain")["cut"] == 0
    assert seen.lost == []
