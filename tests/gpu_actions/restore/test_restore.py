"""Whole restores on real processes and a real HAProxy: the traffic moves in stages, and back when a stage fails."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Sequence
from typing import Any

import pytest

from demo.traffic.account import Ending
from demo.traffic.schedule import Profile
from gpu_actions.action import Signal
from gpu_actions.plan import Plan
from gpu_actions.restore import shift
from gpu_actions.restore.action import SPEC as RESTORE
from gpu_actions.restore.plan_steps import Way, restore_steps, stepback_step
from gpu_actions.system.clock import boot_clock_s
from gpu_actions.tier.preflight import gather_facts
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import At, Site, data_of, statuses, summary_of

QUICK = {"stages_percent": [50, 100], "hold_s": 1, "keep_fallback_warm_s": 0}


async def on_fallback(make: MakeSite, **changes: Any) -> Site:
    """Return a host after a fallback: the fallback serves, tp is stopped and frozen."""
    site = await make(**{**changes, "restore": {**QUICK, **changes.get("restore", {})}})
    plan = await site.plan(skip_validation=True)
    quick = [step for step in plan.steps if step.id not in ("capture", "drain")]
    end = await site.run(plan.model_copy(update={"steps": tuple(quick)}))
    assert end.ended.status == "succeeded"
    return site


async def restore_plan(
    site: Site, *, without: Sequence[str] = ("loadtest", "compare", "environment", "golden"), **options: Any
) -> Plan:
    """Return a restore's plan without the steps that a test does not need."""
    plan = await site.plan(RESTORE, **{"accept_no_baseline": True, **options})
    return plan.model_copy(update={"steps": tuple(s for s in plan.steps if s.id not in without)})


async def test_a_restore_beside_the_fallback_loses_no_request(site_with: MakeSite) -> None:
    site = await on_fallback(site_with, restore={"stages_percent": [5, 25, 50, 100]})
    async with site.traffic() as seen:
        end = await site.run(await restore_plan(site, without=(), cause="the rank was frozen"))
    assert end.ended.status == "succeeded", end.steps[-2].outcome.summary
    shifts = ["shift-5", "shift-25", "shift-50", "shift-100"]
    order = ["check", "prepare", "start", "warm", "environment", "golden", "loadtest", "compare", *shifts]
    assert [step for step, _ in statuses(end)] == [*order, "keep-warm", "drain", "stop", "finish"]
    assert (seen.lost, seen.refused) == ([], 0)
    assert [data_of(end, step)["percent"] for step in shifts] == [5, 25, 50, 100]
    assert all(data_of(end, step)["window"]["requests"] >= 2 for step in shifts), (
        "each stage is judged on requests"
    )
    assert data_of(end, "finish")["state"] == "tp_serving"
    await site.check_serving("tp")


async def test_errors_at_a_stage_move_the_traffic_back_at_once(site_with: MakeSite) -> None:
    site = await on_fallback(site_with, restore={"hold_s": 20})
    async with site.traffic(clients=4) as seen:
        broken = At("shift-50", (site.folder / "error_tp").touch, after_s=0.5)
        end = await site.run(await restore_plan(site), report=broken)
        lost_then = len(seen.lost)
        ok_then = seen.ok
        await asyncio.sleep(0.5)
    assert end.ended.failed_step == "shift-50"
    assert "requests failed" in summary_of(end, "shift-50")
    assert "All traffic is back on the fallback" in summary_of(end, "shift-50")
    assert data_of(end, "stepback")["state"] == "fallback_serving"
    assert 0 < lost_then == len(seen.lost)
    assert seen.ok > ok_then
    await site.check_serving("fallback")


@pytest.mark.parametrize(
    ("how", "check_answers"),
    [
        ("error", False),
        pytest.param("unended", False, marks=pytest.mark.heavy),
        *[pytest.param(how, True, marks=pytest.mark.heavy) for how in ("error", "unended", "empty")],
    ],
)
async def test_answers_of_status_200_that_are_none_move_the_traffic_back(
    site_with: MakeSite, how: str, check_answers: bool
) -> None:
    """Counters of the router and of the engine call these answers good. If the router looks into none, the probes do."""
    restore = {"hold_s": 20, "max_probes_per_s": 0 if check_answers else 10, "min_requests_per_stage": 50}
    site = await on_fallback(site_with, restore=restore, router={"check_answers": check_answers})
    broken = At("shift-50", lambda: (site.folder / "error_tp").write_text(how), after_s=0.5)
    async with site.real_traffic(Profile(requests_per_s=20, answer_tokens=(2, 6), hang_ups=0)) as account:
        end = await site.run(await restore_plan(site), report=broken)
    assert end.ended.failed_step == "shift-50", summary_of(end, "shift-50")
    assert "requests failed" in summary_of(end, "shift-50")
    assert data_of(end, "stepback")["state"] == "fallback_serving"
    counted = data_of(end, "stepback")["clients"]["account"]
    assert bool(counted["failed"]) == check_answers, (counted, account.describe())
    assert counted["failed"] <= len(account.lost) > 0, (counted, account.describe())
    await site.check_serving("fallback")


@pytest.mark.heavy
async def test_slow_first_tokens_at_a_stage_move_the_traffic_back(site_with: MakeSite) -> None:
    site = await on_fallback(site_with, restore={"max_ttft_p99_ms": 200})
    slow = At("shift-50", lambda: (site.folder / "slow_tp").write_text("0.3"))
    async with site.traffic(clients=4, tokens=2) as seen:
        end = await site.run(await restore_plan(site), report=slow)
    assert end.ended.failed_step == "shift-50"
    assert "TTFT p99" in summary_of(end, "shift-50")
    assert seen.lost == []
    await site.check_serving("fallback")


async def test_a_hang_at_a_stage_moves_the_traffic_back_and_loses_only_what_hung(
    site_with: MakeSite,
) -> None:
    site = await on_fallback(site_with, restore={"hold_s": 20})

    def freeze() -> None:
        tasks.append(asyncio.ensure_future(site.freeze_rank()))

    tasks: list[asyncio.Future[None]] = []
    async with site.traffic(clients=4) as seen:
        end = await site.run(await restore_plan(site), report=At("shift-50", freeze, after_s=0.5))
    assert end.ended.failed_step == "shift-50"
    assert "token counter does not move" in summary_of(end, "shift-50")
    assert data_of(end, "stepback")["state"] == "fallback_serving"
    assert len(seen.lost) <= 4, "the hung ones at most; those without an answer yet go to the fallback"
    evidence = list((site.folder / "runs").glob("re-*/evidence_*.tar.gz"))
    assert len(evidence) == 1
    await site.check_serving("fallback")


@pytest.mark.heavy
async def test_a_new_xid_at_a_stage_moves_the_traffic_back(site_with: MakeSite) -> None:
    site = await on_fallback(site_with, restore={"hold_s": 20, "stages_percent": [100]})
    line = f"[ {boot_clock_s():.1f}] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.\n"

    def fall_off_the_bus() -> None:
        with (site.folder / "kernel.log").open("a") as log:
            log.write(line)

    async with site.traffic() as seen:
        end = await site.run(await restore_plan(site), report=At("shift-100", fall_off_the_bus, after_s=0.5))
    assert end.ended.failed_step == "shift-100"
    assert "xid 79" in summary_of(end, "shift-100")
    assert seen.lost == []
    await site.check_serving("fallback")


async def test_tp_is_not_started_on_an_unhealthy_host(site_with: MakeSite) -> None:
    site = await on_fallback(site_with)
    log = site.folder / "kernel.log"
    log.write_text(
        f"[ {boot_clock_s():.1f}] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.\n"
    )
    end = await site.run(await restore_plan(site))
    assert [step for step, _ in statuses(end)] == ["check", "stepback"]
    assert "override_reason" in end.steps[0].outcome.next_action
    await site.check_serving("fallback")
    plan = await restore_plan(site, override_reason="the GPU was swapped")
    end = await site.run(plan.model_copy(update={"steps": plan.steps[:1]}))
    assert statuses(end) == [("check", "warning")]
    assert "the GPU was swapped" in summary_of(end, "check")


@pytest.mark.parametrize(
    ("said", "status"), [("next", "succeeded"), pytest.param("abort", "failed", marks=pytest.mark.heavy)]
)
async def test_a_stage_with_too_few_requests_waits_for_a_person(
    site_with: MakeSite, said: Signal, status: str
) -> None:
    site = await on_fallback(
        site_with,
        restore={
            "stages_percent": [100],
            "hold_s": 0.5,
            "inconclusive_wait_s": 10,
            "min_requests_per_stage": 50,
        },
    )
    told: list[Signal] = []

    async def signals() -> Sequence[Signal]:
        return tuple(told)

    report = At("shift-100", lambda: told.append(said), after_s=0.8)
    end = await site.run(await restore_plan(site), report=report, signals=signals)
    assert end.ended.status == status
    if said == "next":
        assert "a person pressed next, though" in summary_of(end, "shift-100")
        await site.check_serving("tp")
    else:
        assert "a person pressed abort" in summary_of(end, "shift-100")
        await site.check_serving("fallback")


async def test_a_stop_during_the_shift_moves_the_traffic_back(site_with: MakeSite) -> None:
    site = await on_fallback(site_with)
    stop = asyncio.Event()
    async with site.traffic() as seen:
        end = await site.run(await restore_plan(site), stop=stop, report=At("shift-50", stop.set))
    assert end.ended.status == "cancelled"
    assert data_of(end, "stepback")["state"] == "fallback_serving"
    assert seen.lost == []
    await site.check_serving("fallback")


async def test_a_cut_over_announces_its_gap_and_loses_no_accepted_request(site_with: MakeSite) -> None:
    site = await on_fallback(site_with)
    async with site.traffic() as seen:
        plan = await restore_plan(site, cut_over=True)
        end = await site.run(plan)
    assert "gap" in plan.losses
    assert end.ended.status == "succeeded"
    assert seen.lost == []
    assert seen.refused > 0
    await site.check_serving("tp")


@pytest.mark.heavy
async def test_a_cut_over_whose_tier_never_starts_returns_to_the_fallback(
    site_with: MakeSite, tmp_path: Any
) -> None:
    failures = tmp_path / "failures"
    failures.write_text("0")
    site = await on_fallback(site_with, tp=["--fail-starts", str(failures)])
    failures.write_text("99")
    end = await site.run(await restore_plan(site, cut_over=True))
    assert end.ended.status == "failed"
    assert data_of(end, "stepback")["state"] == "fallback_serving"
    await site.check_serving("fallback")


async def test_an_xid_between_the_check_and_the_first_stage_is_judged(site_with: MakeSite) -> None:
    site = await on_fallback(site_with)
    line = f"[ {boot_clock_s():.1f}] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.\n"

    def fall_off_the_bus() -> None:
        with (site.folder / "kernel.log").open("a") as log:
            log.write(line)

    async with site.traffic() as seen:
        end = await site.run(await restore_plan(site), report=At("start", fall_off_the_bus))
    assert end.ended.failed_step == "shift-50"
    assert "xid 79" in summary_of(end, "shift-50")
    assert seen.lost == []
    await site.check_serving("fallback")


async def test_an_abort_lets_the_answers_of_a_healthy_tp_finish(site_with: MakeSite) -> None:
    site = await on_fallback(site_with, restore={"hold_s": 20})
    asked: list[Signal] = []

    async def signals() -> Sequence[Signal]:
        return tuple(asked)

    def slow_down_and_abort() -> None:
        for name in ("tp", "fallback"):
            (site.folder / f"slow_{name}").write_text("0.3")
        asyncio.get_running_loop().call_later(2, asked.append, "abort")

    async with site.traffic(clients=8, tokens=12, timeout_s=60) as seen:
        report = At("shift-50", slow_down_and_abort, after_s=0.5)
        end = await site.run(await restore_plan(site), report=report, signals=signals)
    assert end.ended.failed_step == "shift-50"
    assert data_of(end, "stepback")["state"] == "fallback_serving"
    assert (seen.lost, seen.refused) == ([], 0)
    await site.check_serving("fallback")


async def test_traffic_stays_on_tp_if_the_fallback_does_not_generate(site_with: MakeSite) -> None:
    site = await site_with(fb=["--startup-s", "600"])
    await site.host.fallback.unit.start()
    steps = restore_steps(
        site.host,
        await gather_facts(site.host),
        Way.BESIDE,
        options={"override_reason": "", "accept_no_baseline": True, "baseline": None, "baselines_dir": None},
    )
    plan = Plan(
        action="restore",
        host="test",
        title="prepare",
        steps=(steps["prepare"],),
        compensation=(stepback_step(site.host, last_stage="shift-100"),),
    )
    async with site.traffic() as seen:
        end = await site.run(plan)
    assert end.ended.failed_step == "prepare"
    assert "does not generate" in summary_of(end, "prepare")
    assert data_of(end, "stepback")["state"] == "tp_serving"
    assert (seen.lost, seen.refused) == ([], 0)
    await site.check_serving("tp")


async def test_a_stage_gives_no_share_to_a_fallback_that_generates_nothing(
    site_with: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shift, "PROBE_S", 1.5)
    site = await on_fallback(site_with, restore={"hold_s": 3})
    pids = (await site.host.fallback.unit.state()).pids
    began: list[float] = []

    def stop() -> None:
        began.append(time.monotonic())
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

    async with site.real_traffic(Profile(requests_per_s=10, answer_tokens=(2, 6))) as account:
        end = await site.run(await restore_plan(site), report=At("shift-50", stop))
        ended = time.monotonic()
    assert end.ended.status == "succeeded", summary_of(end, end.ended.failed_step or "finish")
    assert data_of(end, "shift-50")["percent"] == 100
    assert "the fallback generates nothing" in summary_of(end, "shift-50")
    asked = account.sent_between(began[0] + 6, ended)  # 1.5 s of probing, and what a busy machine adds
    assert len(asked) >= 5
    assert {answer.served_by for answer in asked} == {"tp"}, account.describe()
    await site.check_serving("tp")


async def test_a_tp_that_answers_clients_later_than_the_fallback_does_steps_back(site_with: MakeSite) -> None:
    """Its limits in the settings are far away; what convicts it is the record of what clients got from both tiers."""
    far = {"max_ttft_p99_ms": 60_000, "max_e2e_p99_ms": 60_000, "inconclusive_wait_s": 60}
    site = await on_fallback(site_with, restore={"hold_s": 40, **far})
    (site.folder / "slow_tp").write_text("0.15")
    async with site.real_traffic(Profile(requests_per_s=20, answer_tokens=(3, 6), streamed=1)) as account:
        while account.totals[Ending.FINISHED] < 120:
            await asyncio.sleep(0.1)
        end = await site.run(await restore_plan(site))
    assert end.ended.failed_step == "shift-50", summary_of(end, "shift-50")
    assert re.search(
        r"(TTFT|time per KiB of answer) over [\d.]+ s in \d+ of \d+ answers, in \d+ of \d+ of the fallback",
        summary_of(end, "shift-50"),
    )
    assert account.lost == []
    await site.check_serving("fallback")
