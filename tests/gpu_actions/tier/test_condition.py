"""Slow, busy and unreadable tiers that serve are not taken for hung or silent ones."""

import asyncio

from gpu_actions.tier.condition import Condition, read_condition
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import data_of, statuses


async def test_a_slow_tier_that_generates_is_serving(site_with: MakeSite) -> None:
    site = await site_with()
    (site.folder / "slow_tp").write_text("1.5")
    async with site.traffic(clients=3, tokens=4):
        await asyncio.sleep(0.5)
        reading = await read_condition(site.host.tp, await site.host.tp.unit.state(), stall_s=2)
        (site.folder / "slow_tp").write_text("0.005")
    assert reading.condition is Condition.SERVING


async def test_a_tier_whose_pages_do_not_answer_but_that_generates_is_not_aborted(
    site_with: MakeSite,
) -> None:
    site = await site_with(fallback={"drain_stall_s": 0.4, "drain_timeout_s": 30})
    plan = await site.plan(skip_validation=True)
    plan = plan.model_copy(update={"steps": plan.steps[1:]})  # without the capture
    (site.folder / "slow_tp").write_text("0.3")
    async with site.traffic(clients=3, tokens=25, timeout_s=60) as seen:
        await asyncio.sleep(0.3)
        (site.folder / "mute_tp").touch()
        end = await site.run(plan)
    assert ("drain", "done") in statuses(end)
    assert data_of(end, "drain")["cut"] == 0
    assert seen.lost == []
