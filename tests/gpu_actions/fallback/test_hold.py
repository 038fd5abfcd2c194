"""Hold first, plan afterwards: when new requests wait at the router, and when they are given on or back."""

import asyncio
import os
import signal
import socket

import pytest

from demo.traffic.schedule import Profile
from gpu_actions.action import PlanRefused
from gpu_actions.fallback import hold
from gpu_actions.fallback.hold import hold_first
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from gpu_actions.system.urls import port_of
from gpu_actions.tier.warm import startup_path
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import At, Site, data_of, statuses, summary_of

CLIENTS = Profile(requests_per_s=4, answer_tokens=(4, 8))


def router_of(site: Site) -> ManagedRouter:
    assert isinstance(site.host.router, ManagedRouter)
    return site.host.router


async def holds(site: Site) -> bool:
    return "until_ms 0" not in (router_of(site).folder / "hold.map").read_text()


async def until_held(site: Site, count: int) -> None:
    async with asyncio.timeout(30):
        while await router_of(site).held() < count:
            await asyncio.sleep(0.02)


async def stop_tp(site: Site) -> None:
    """Stop every process of tp: it accepts connections and answers nothing."""
    for pid in (await site.host.tp.unit.state()).pids:
        os.kill(pid, signal.SIGSTOP)


async def test_requests_wait_while_the_fallback_of_a_mute_tier_is_planned_and_started(
    site_with: MakeSite,
) -> None:
    site = await site_with()
    await stop_tp(site)
    planning = asyncio.create_task(site.plan(starts=True, skip_validation=True))
    async with asyncio.timeout(30):
        while not await holds(site):
            await asyncio.sleep(0.02)
    assert not planning.done(), "new requests are held before the plan is made"
    async with site.real_traffic(CLIENTS) as account:
        await until_held(site, 5)
        end = await site.run(await planning)
    assert end.ended.status == "succeeded"
    assert (account.lost, account.refused) == ([], []), account.describe()
    assert data_of(end, "backpressure")["held"] >= 5
    assert not await holds(site)
    await site.check_serving("fallback")


async def test_a_plan_that_is_made_does_not_wait_for_the_watch_that_holds_requests_before_it(
    site_with: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def watch_for_ever(tier: object) -> bool:
        await asyncio.Event().wait()
        return False

    monkeypatch.setattr(hold, "seems_to_serve", watch_for_ever)
    site = await site_with()
    await stop_tp(site)
    async with asyncio.timeout(30):
        plan = await site.plan(starts=True, skip_validation=True)
    assert plan.steps[0].id == "hold", "the plan's first step holds them"


async def test_a_tier_that_serves_is_not_held(site_with: MakeSite) -> None:
    site = await site_with()
    assert not await hold_first(site.host)
    plan = await site.plan(starts=True, skip_validation=True)
    assert "hold" not in [step.id for step in plan.steps]
    assert not await holds(site)


async def test_a_plan_that_is_only_shown_holds_nothing(site_with: MakeSite) -> None:
    site = await site_with()
    await stop_tp(site)
    plan = await site.plan(skip_validation=True)
    assert plan.steps[0].id == "hold"
    assert "wait at most 20 s for the fallback" in plan.losses
    assert not await holds(site)


async def test_requests_are_given_back_if_the_plan_is_refused(site_with: MakeSite) -> None:
    site = await site_with()
    await stop_tp(site)
    with socket.create_server(("127.0.0.1", port_of(site.host.fallback.engine.url))):
        planning = asyncio.create_task(site.plan(starts=True))
        async with asyncio.timeout(30):
            while not await holds(site):
                await asyncio.sleep(0.02)
        with pytest.raises(PlanRefused, match="is taken by"):
            await planning
    assert not await holds(site)
    assert (await site.weights())["tp"] == (100, "ready")


async def test_a_fallback_that_never_starts_leaves_no_request_waiting(site_with: MakeSite) -> None:
    site = await site_with(fb=["--startup-s", "60"], ready_timeout_s=2, unit={"restart": False})
    await stop_tp(site)
    async with site.real_traffic(CLIENTS) as account:
        end = await site.run(await site.plan(starts=True, skip_validation=True))
        for pid in (await site.host.tp.unit.state()).pids:
            os.kill(pid, signal.SIGCONT)
    assert end.ended.status == "failed", statuses(end)
    assert not await holds(site)
    assert account.lost == [], account.describe()


async def test_a_fallback_that_starts_slower_than_a_request_may_wait_holds_nothing_once_it_runs(
    site_with: MakeSite,
) -> None:
    site = await site_with()
    startup_path(site.host, "fallback").write_text('{"startup_s": 100}')
    await stop_tp(site)
    plan = await site.plan(starts=True, skip_validation=True)
    assert plan.steps[0].args["hold"] is None
    refused: list[bool] = []

    async def look() -> None:
        refused.append(await holds(site))

    looking: list[asyncio.Task[None]] = []
    report = At("scope", lambda: looking.append(asyncio.create_task(look())))
    end = await site.run(plan, report=report)
    await asyncio.gather(*looking)
    assert "held" not in summary_of(end, "hold")
    assert refused == [False]


async def test_a_tier_that_answers_nothing_is_not_waited_for_in_its_drain(site_with: MakeSite) -> None:
    site = await site_with(fallback={"drain_stall_s": 3, "drain_timeout_s": 60})
    async with site.real_traffic(CLIENTS) as account:
        while account.sent < 5:
            await asyncio.sleep(0.02)
        await stop_tp(site)
        await asyncio.sleep(0.3)
        end = await site.run(await site.plan(starts=True, skip_validation=True))
    drained = data_of(end, "drain")
    assert drained["stalled"]
    assert drained["seconds"] < 8, "three times the stall limit would be 9 s and more"
    await site.check_serving("fallback")
