"""Restores under 60 streams while the fallback is offered 2.5 times what it can take, counted by the clients."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from demo.traffic.account import Account
from gpu_actions.action import Signal
from gpu_actions.tier.traffic import prove_route
from gpu_actions.walk import WalkEnd
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.restore.test_chaos import kill_unit
from tests.gpu_actions.restore.test_restore import restore_plan
from tests.gpu_actions.site import At, Site, data_of, summary_of
from tests.scenarios.saturated import (
    BOTH,
    NIGHT,
    Load,
    Weights,
    busy_site,
    check_only_begun_were_lost,
    check_refusals,
    check_shares,
    lost_text,
    servers_of,
    watched_weights,
)

STAGES = (5, 25, 50, 100)
pytestmark = pytest.mark.timeout(400)


async def saturated_fallback(make: MakeSite, load: Load) -> Site:
    """Return a host after a fallback that serves under its limits."""
    policy = {"stages_percent": list(STAGES), "hold_s": load.stage_s, "keep_fallback_warm_s": 0}
    site = await busy_site(make, load, restore=policy, unit={"restart": False})
    plan = await site.plan(skip_validation=True)
    quick = [step for step in plan.steps if step.id not in ("capture", "drain")]
    end = await site.run(plan.model_copy(update={"steps": tuple(quick)}))
    assert end.ended.status == "succeeded"
    return site


@asynccontextmanager
async def saturating(site: Site, load: Load) -> AsyncIterator[tuple[Account, Weights]]:
    """Put the traffic on the router, and wait until the fallback is full."""
    async with watched_weights(site) as weights, site.real_traffic(load.profile) as account:
        while len(account.refused) < 20:
            await asyncio.sleep(0.1)
        yield account, weights


def summaries(end: WalkEnd) -> str:
    return "\n".join(f"{step.outcome.step_id}: {step.outcome.summary}" for step in end.steps)


@pytest.mark.parametrize("load", BOTH)
async def test_each_stage_has_its_share_and_costs_no_request_while_the_fallback_is_saturated(
    site_with: MakeSite, load: Load
) -> None:
    site = await saturated_fallback(site_with, load)
    async with saturating(site, load) as (account, weights):
        for _ in range(3):
            await prove_route(site.host, site.host.fallback)  # most of these are refused at first
        end = await site.run(await restore_plan(site))
        await asyncio.sleep(0.5)
    print(account.describe(), summaries(end), sep="\n")
    assert end.ended.status == "succeeded", summaries(end)
    assert "NOTHING IS SERVING" not in summaries(end)
    assert account.lost == [], lost_text(account)
    check_refusals(account)
    check_shares(account, weights, STAGES)
    full, _ = weights.span((100, 1))
    after = account.sent_between(full + 0.1, float("inf"))
    assert set(servers_of(after)) == {"tp"}, "nothing is refused once tp has all"
    assert account.longest_silence_s() < 1 + account.lateness_s()
    # What is asserted above held although a busy machine sends late; beyond this the traffic is not the one that was meant.
    assert account.lateness_s() < 2, "the client was the bottleneck"
    await site.check_serving("tp")


@pytest.mark.heavy
@pytest.mark.parametrize("percent", STAGES)
async def test_an_abort_at_a_stage_costs_no_request(site_with: MakeSite, percent: int) -> None:
    site = await saturated_fallback(site_with, NIGHT)
    asked: list[Signal] = []

    async def signals() -> Sequence[Signal]:
        return tuple(asked)

    async with saturating(site, NIGHT) as (account, weights):
        report = At(f"shift-{percent}", lambda: asked.append("abort"), after_s=1.5)
        end = await site.run(await restore_plan(site), report=report, signals=signals)
        await asyncio.sleep(0.5)
    print(account.describe(), summaries(end), sep="\n")
    assert end.ended.failed_step == f"shift-{percent}"
    assert "a person pressed abort" in summary_of(end, f"shift-{percent}")
    assert data_of(end, "stepback")["state"] == "fallback_serving", summaries(end)
    assert account.lost == [], lost_text(account)
    check_refusals(account)
    check_shares(account, weights, STAGES[: STAGES.index(percent)])
    assert account.longest_silence_s() < 1 + account.lateness_s()
    await site.check_serving("fallback")


async def restore_with_a_death(
    make: MakeSite, tier: str, percent: int, *, after_s: float
) -> tuple[Site, WalkEnd, Account, float]:
    """Run a restore under the traffic and kill a tier at a stage. Return also the moment of its death.

    Lost are only the answers that the tier had begun, and no client waits long for the next token of the other one.
    """
    site = await saturated_fallback(make, NIGHT)
    died: list[float] = []

    def kill() -> None:
        died.append(time.monotonic())
        kill_unit(site, tier)()

    async with saturating(site, NIGHT) as (account, weights):
        report = At(f"shift-{percent}", kill, after_s=after_s)
        end = await site.run(await restore_plan(site), report=report)
        await asyncio.sleep(0.5)
    print(account.describe(), summaries(end), sep="\n")
    assert "NOTHING IS SERVING" not in summaries(end)
    check_only_begun_were_lost(account, tier, died[0])
    # What tp held without a byte of answer when it died was answered by the fallback: that says nothing of the stage.
    check_shares(account, weights, STAGES[: STAGES.index(percent)], streamed_only=tier == "tp")
    assert account.longest_silence_s(died[0]) < 3
    return site, end, account, died[0]


@pytest.mark.heavy
@pytest.mark.parametrize("percent", STAGES)
async def test_a_fallback_that_dies_at_a_stage_costs_only_the_streams_it_had_begun(
    site_with: MakeSite, percent: int
) -> None:
    site, end, account, died = await restore_with_a_death(site_with, "fallback", percent, after_s=1)
    after = account.sent_between(died + 1, float("inf"))
    assert set(servers_of(after)) == {"tp"}, servers_of(after)
    assert end.ended.status == "succeeded", summaries(end)
    await site.check_serving("tp")


@pytest.mark.heavy
@pytest.mark.parametrize("percent", STAGES)
async def test_a_tp_that_dies_at_a_stage_costs_only_the_streams_it_had_begun(
    site_with: MakeSite, percent: int
) -> None:
    site, end, account, died = await restore_with_a_death(site_with, "tp", percent, after_s=1.5)
    assert end.ended.failed_step == f"shift-{percent}"
    assert data_of(end, "stepback")["state"] == "fallback_serving", summaries(end)
    check_refusals(account, since=died)
    await site.check_serving("fallback")
