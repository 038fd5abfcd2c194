"""Faults of the host in the middle of real runs: an engine that never gets ready, a port taken, a wall clock that is set."""

import asyncio
import socket
import time
from collections.abc import Callable

import psutil
import pytest

from gpu_actions.fallback.action import FallbackArguments, lay_out
from gpu_actions.fallback.gpus import Candidate, Choice
from gpu_actions.tier.preflight import gather_facts
from tests.chaos.conftest import MakeSite
from tests.gpu_actions.restore.test_restore import on_fallback, restore_plan
from tests.gpu_actions.site import At, data_of, statuses, summary_of
from tests.scenarios.saturated import busy_clients, check_only_begun_were_lost, lost_text

HOUR_S = 3600.0


@pytest.mark.chaos(
    fault="the fallback engine never gets ready",
    at="warm",
    after="failed; tp never stopped serving, the engine that hung is gone",
)
async def test_an_engine_that_never_gets_ready_is_given_up_and_nothing_was_lost(busy_with: MakeSite) -> None:
    site = await busy_with(fb=["--startup-s", "600"], ready_timeout_s=2)
    async with busy_clients(site) as account:
        end = await site.run(await site.plan(skip_validation=True))
    assert (end.ended.status, end.ended.failed_step) == ("failed", "warm")
    assert "never became ready" in summary_of(end, "warm")
    assert data_of(end, "settle")["state"] == "tp_serving"
    assert (account.lost, account.refused) == ([], []), lost_text(account)
    await site.check_serving("tp")


@pytest.mark.chaos(
    fault="the fallback engine never gets ready",
    at="warm, where no tier served before",
    after="failed; says NOTHING IS SERVING and what a human must do",
)
async def test_an_engine_that_never_gets_ready_beside_a_hung_tier_leaves_one_state_that_is_reported(
    site_with: MakeSite,
) -> None:
    site = await site_with(fb=["--startup-s", "600"], ready_timeout_s=2)
    await site.freeze_rank()
    facts = await gather_facts(site.host)
    alone = Candidate(gpu=None, reason="no room", beside=False)
    plan = lay_out(site.host, facts, Choice(candidates=(alone,)), FallbackArguments(skip_validation=True))
    end = await site.run(plan)
    assert end.ended.status == "failed"
    assert data_of(end, "settle")["state"] == "nothing_serving"
    assert "NOTHING IS SERVING" in summary_of(end, "settle")
    tp, fallback = await site.host.tp.unit.state(), await site.host.fallback.unit.state()
    assert (tp.active, tp.frozen, fallback.active, fallback.pids) == (False, True, False, ())


@pytest.mark.chaos(
    fault="the fallback's port is taken",
    at="between plan and launch",
    after="failed, naming the process that has it; tp never stopped serving",
)
async def test_a_port_that_is_taken_after_the_plan_was_made_is_named(busy_with: MakeSite) -> None:
    site = await busy_with()
    plan = await site.plan(skip_validation=True)
    port = int(site.host.fallback.engine.url.rsplit(":", 1)[1])
    async with busy_clients(site) as account:
        with socket.create_server(("127.0.0.1", port)):
            end = await site.run(plan)
    assert end.ended.failed_step == "launch"
    assert f"port {port} of the fallback tier is taken by {psutil.Process().name()}" in summary_of(
        end, "launch"
    )
    assert data_of(end, "settle")["state"] == "tp_serving"
    assert (account.lost, account.refused) == ([], []), lost_text(account)
    await site.check_serving("tp")


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the wall clock of this process by so many seconds; the steady clocks go on, as they do on a real host."""
    real = time.time

    def set_by(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return set_by


@pytest.mark.chaos(
    fault="the wall clock is set by an hour, forwards or backwards",
    at="every step of a fallback",
    after="succeeded; no request lost or aborted, no figure negative",
)
@pytest.mark.parametrize(
    ("step", "jump_s"),
    [
        pytest.param(
            step,
            jump_s,
            marks=() if (step, jump_s) in {("drain", HOUR_S)} else pytest.mark.heavy,
        )
        for step in ("capture", "launch", "warm", "route", "drain", "stop")
        for jump_s in (HOUR_S, -HOUR_S)
    ],
)
async def test_a_clock_that_is_set_changes_nothing_in_a_fallback(
    site_with: MakeSite, set_clock: Callable[[float], None], step: str, jump_s: float
) -> None:
    # A token takes longer than two looks of the drain: between them the counter stands still, and the tier does not hang.
    site = await site_with(tp=["--token-s", "0.4"], fallback={"drain_stall_s": 3})
    began = time.monotonic()
    async with site.traffic(tokens=4) as seen:
        plan = await site.plan(skip_validation=True)
        end = await site.run(plan, report=At(step, lambda: set_clock(jump_s), after_s=0.3))
    assert end.ended.status == "succeeded", summary_of(end, end.ended.failed_step or "settle")
    assert (seen.lost, seen.refused) == ([], 0)
    assert data_of(end, "drain")["cut"] == 0
    assert data_of(end, "route")["first_token_through_router_s"] >= 0
    assert time.monotonic() - began < 25
    await site.check_serving("fallback")


@pytest.mark.chaos(
    fault="the wall clock is set by an hour, forwards or backwards",
    at="a stage of a restore",
    after="succeeded; the stage lasts as long as planned, neither less nor an hour",
)
@pytest.mark.heavy
@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_a_clock_that_is_set_neither_shortens_nor_stretches_a_stage(
    busy_with: MakeSite, set_clock: Callable[[float], None], jump_s: float
) -> None:
    site = await on_fallback(busy_with, restore={"stages_percent": [50, 100], "hold_s": 2})
    report = At("shift-50", lambda: set_clock(jump_s), after_s=0.5)
    async with busy_clients(site) as account:
        end = await site.run(await restore_plan(site), report=report)
    assert end.ended.status == "succeeded", statuses(end)
    seconds = next(step.seconds for step in end.steps if step.outcome.step_id == "shift-50")
    assert 2 <= seconds < 6
    assert account.lost == [], lost_text(account)
    await site.check_serving("tp")


@pytest.mark.chaos(
    fault="the wall clock is set by an hour, forwards or backwards",
    at="a stage of a restore whose tier hangs a moment later",
    after="the hang is seen within the stall limit; only what hung is lost",
)
@pytest.mark.heavy
@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_a_clock_that_is_set_does_not_hide_a_hang(
    busy_with: MakeSite, set_clock: Callable[[float], None], jump_s: float
) -> None:
    site = await on_fallback(busy_with, restore={"hold_s": 20})
    tasks: list[asyncio.Future[None]] = []

    def jump_and_freeze() -> None:
        set_clock(jump_s)
        tasks.append(asyncio.ensure_future(site.freeze_rank()))

    report = At("shift-50", jump_and_freeze, after_s=0.7)
    async with busy_clients(site) as account:
        end = await site.run(await restore_plan(site), report=report)
    assert end.ended.failed_step == "shift-50"
    assert "token counter does not move" in summary_of(end, "shift-50")
    check_only_begun_were_lost(account, "tp", time.monotonic())
    await site.check_serving("fallback")
