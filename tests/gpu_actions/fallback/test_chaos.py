"""Faults in the middle of a run: the router is killed or loses its socket, the tier dies, the bundle cannot be written."""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable

import pytest

from gpu_actions.fallback.plan_steps import ORDERS, Order
from gpu_actions.serving.interfaces import EngineError
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import At, Site, data_of, summary_of


async def router_pid(site: Site) -> int:
    assert isinstance(site.host.router, ManagedRouter)
    pid = (await site.host.router.unit.state()).main_pid
    assert pid is not None
    return pid


async def router_answers(site: Site) -> None:
    """Wait until the router, which its supervisor restarts, answers."""
    async with asyncio.timeout(15):
        while True:
            try:
                await site.through.complete("are you there", max_tokens=1, timeout_s=5)
            except EngineError:
                await asyncio.sleep(0.05)
            else:
                return


async def ends_in_one_state(site: Site, run: Awaitable[object]) -> str:
    """Finish the run, check the whole state that it left, and return the name of the serving tier."""
    await run
    await router_answers(site)
    tp, fallback = await site.host.tp.unit.state(), await site.host.fallback.unit.state()
    assert tp.active != fallback.active, "exactly one tier runs"
    name = "tp" if tp.active else "fallback"
    await site.check_serving("tp" if tp.active else "fallback")
    return name


STEPS = [step for step in ORDERS[Order.PLANNED] if step != "validate"]


@pytest.mark.chaos(
    fault="HAProxy killed",
    at="every step of a fallback",
    after="its supervisor starts it with its weights again; the run ends in one state, which holds",
)
@pytest.mark.parametrize(
    "step",
    [pytest.param(step, marks=() if step == "route" else pytest.mark.heavy) for step in STEPS],
)
async def test_a_router_killed_at_a_step_is_restarted_and_the_run_ends_in_one_state(
    site_with: MakeSite, step: str
) -> None:
    site = await site_with()
    pid = await router_pid(site)
    plan = await site.plan(skip_validation=True)
    await ends_in_one_state(site, site.run(plan, report=At(step, lambda: os.kill(pid, signal.SIGKILL))))
    assert await router_pid(site) != pid


@pytest.mark.chaos(
    fault="the router's admin socket is gone",
    at="the route step of a fallback",
    after="the router is started again; the fallback serves",
)
@pytest.mark.heavy
async def test_a_router_without_its_admin_socket_is_restarted(site_with: MakeSite) -> None:
    site = await site_with()
    socket = site.host.state_dir / "router" / "admin.sock"
    plan = await site.plan(skip_validation=True)
    assert await ends_in_one_state(site, site.run(plan, report=At("route", socket.unlink))) == "fallback"


@pytest.mark.chaos(
    fault="tp dies by itself", at="the warm-up of the fallback", after="succeeded; the fallback serves"
)
@pytest.mark.heavy
async def test_a_tier_that_dies_during_the_run_does_not_stop_the_fallback(site_with: MakeSite) -> None:
    site = await site_with(unit={"restart": False})
    pids = (await site.host.tp.unit.state()).pids
    plan = await site.plan(skip_validation=True)

    def die() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    assert await ends_in_one_state(site, site.run(plan, report=At("warm", die))) == "fallback"


@pytest.mark.chaos(
    fault="the fallback engine dies after its warm-up",
    at="the route step",
    after="failed; it never got traffic, tp serves",
)
async def test_a_fallback_that_dies_after_its_warm_up_gets_no_traffic(site_with: MakeSite) -> None:
    site = await site_with(unit={"restart": False})
    plan = await site.plan(skip_validation=True)

    def die() -> None:
        state = json.loads((site.folder / "state" / "units" / "fallback" / "state.json").read_text())
        os.kill(state["main"][0], signal.SIGKILL)

    end = await site.run(plan, report=At("route", die))
    assert end.ended.failed_step == "route"
    assert "does not generate, so it gets no traffic" in summary_of(end, "route")
    assert data_of(end, "settle")["state"] == "tp_serving"
    await site.check_serving("tp")


@pytest.mark.chaos(
    fault="evidence cannot be written",
    at="the capture",
    after="succeeded with a warning; the fallback serves",
)
async def test_evidence_that_cannot_be_written_does_not_delay_the_fallback(site_with: MakeSite) -> None:
    site = await site_with()
    plan = await site.plan(skip_validation=True)
    in_the_way = site.folder / "runs" / "fa-full" / ".bundle.note.json"
    in_the_way.mkdir(parents=True)
    end = await site.run(plan, run_id="fa-full")
    assert end.ended.status == "succeeded"
    assert end.ended.warnings == ("capture",)
    await site.check_serving("fallback")
