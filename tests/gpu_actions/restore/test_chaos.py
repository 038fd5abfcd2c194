"""Faults in the middle of a restore: the router, the returning tier or the fallback is killed."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.chaos.conftest import MakeSite, busy_with
from tests.gpu_actions.fallback.test_chaos import ends_in_one_state, router_pid
from tests.gpu_actions.restore.test_restore import on_fallback, restore_plan
from tests.gpu_actions.site import At, Site, data_of, summary_of
from tests.scenarios.saturated import busy_clients, check_only_begun_were_lost, servers_of

__all__ = ["busy_with"]

STEPS = ("check", "prepare", "start", "warm", "shift-50", "shift-100", "keep-warm", "drain", "stop", "finish")


@pytest.mark.chaos(
    fault="HAProxy killed",
    at="every step of a restore",
    after="its supervisor starts it with its weights again; the run ends in one state, which holds",
)
@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=() if step == "shift-50" else pytest.mark.heavy) for step in STEPS]
)
async def test_a_router_killed_at_a_step_is_restarted_and_the_restore_ends_in_one_state(
    busy_with: MakeSite, step: str
) -> None:
    site = await on_fallback(busy_with)
    pid = await router_pid(site)
    plan = await restore_plan(site)
    assert step in {one.id for one in plan.steps}
    async with busy_clients(site):
        run = site.run(plan, report=At(step, lambda: os.kill(pid, signal.SIGKILL)))
        assert await ends_in_one_state(site, run) in ("tp", "fallback")
    assert await router_pid(site) != pid


@pytest.mark.chaos(
    fault="the router's admin socket is gone",
    at="a stage of a restore",
    after="the router is started again and the restore ends in one state, which holds",
)
async def test_a_router_that_loses_its_socket_at_a_stage_is_restarted(busy_with: MakeSite) -> None:
    site = await on_fallback(busy_with)
    socket = site.host.state_dir / "router" / "admin.sock"
    plan = await restore_plan(site)
    async with busy_clients(site):
        run = site.run(plan, report=At("shift-50", socket.unlink))
        assert await ends_in_one_state(site, run) in ("tp", "fallback")


def kill_unit(site: Site, name: str) -> Callable[[], None]:
    """Return a function that kills the current main process of a tier."""

    def now() -> None:
        state = json.loads((site.folder / "state" / "units" / name / "state.json").read_text())
        os.kill(state["main"][0], signal.SIGKILL)

    return now


@pytest.mark.chaos(
    fault="the returning tier is killed",
    at="a stage of a restore",
    after="failed; all traffic is back on the fallback at once",
)
async def test_the_traffic_of_a_tier_that_dies_at_a_stage_moves_back(busy_with: MakeSite) -> None:
    site = await on_fallback(busy_with, unit={"restart": False}, restore={"hold_s": 20})
    async with busy_clients(site) as account:
        end = await site.run(await restore_plan(site), report=At("shift-50", kill_unit(site, "tp")))
        moved = time.monotonic()
        await asyncio.sleep(1)
    assert end.ended.failed_step == "shift-50", summary_of(end, "shift-50")
    check_only_begun_were_lost(account, "tp", moved)
    assert set(servers_of(account.sent_between(moved, float("inf")))) == {"fallback", "refused"}
    assert data_of(end, "stepback")["state"] == "fallback_serving"
    await site.check_serving("fallback")


@pytest.mark.chaos(
    fault="the fallback is killed",
    at="the last stage of a restore",
    after="tp has the traffic already: the restore succeeds, or goes back to one state that holds",
)
@pytest.mark.heavy
async def test_a_fallback_that_dies_when_it_is_no_longer_needed_does_not_stop_the_restore(
    busy_with: MakeSite,
) -> None:
    site = await on_fallback(busy_with, unit={"restart": False})
    plan = await restore_plan(site)
    async with busy_clients(site):
        end = await site.run(plan, report=At("keep-warm", kill_unit(site, "fallback")))
    assert end.ended.status == "succeeded", summary_of(end, end.ended.failed_step or "finish")
    await site.check_serving("tp")
