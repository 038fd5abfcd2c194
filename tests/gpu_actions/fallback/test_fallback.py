"""Whole fallbacks on real processes and a real HAProxy, under traffic."""

import asyncio
import os
import signal
from typing import Any

import pytest

from gpu_actions.fallback.action import FallbackArguments, known_hang, lay_out
from gpu_actions.fallback.gpus import Candidate, Choice
from gpu_actions.forensics.bundle import read_manifest
from gpu_actions.models import Finding, Severity, Verdict, VerdictKind
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.target import target_of_host
from gpu_actions.system.urls import port_of
from gpu_actions.tier import condition
from gpu_actions.tier.condition import KnownHang
from gpu_actions.tier.preflight import gather_facts
from gpu_actions.triage.judge import judge
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import At, Site, data_of, statuses, summary_of


async def test_a_planned_fallback_loses_no_request_and_refuses_none(site_with: MakeSite) -> None:
    site = await site_with()
    async with site.traffic() as seen:
        end = await site.run(await site.plan(skip_validation=True))
    order = ["capture", "scope", "launch", "warm", "route", "backpressure", "drain", "stop"]
    assert statuses(end) == [(step, "done") for step in order]
    assert (seen.lost, seen.refused) == ([], 0)
    assert seen.ok > 20
    assert data_of(end, "drain")["cut"] == 0
    assert data_of(end, "warm")["tokens_per_s"] > 0
    assert [a.name for a in end.steps[3].artifacts] == ["fallback_benchmark.json"]
    await site.check_serving("fallback")


async def test_requests_that_hung_without_an_answer_are_answered_by_the_fallback_and_counted(
    site_with: MakeSite,
) -> None:
    site = await site_with(fallback={"capture_budget_s": 6})
    async with site.traffic(clients=3) as seen:
        await site.freeze_rank()
        plan = await site.plan(skip_validation=True)
        assert "3 now" in plan.losses
        end = await site.run(plan)
        assert end.ended.status == "succeeded"
    assert seen.lost == [], "none had a byte of its answer yet, so the router sent them to the fallback"
    assert (data_of(end, "drain")["cut"], data_of(end, "drain")["resent"]) == (0, 3)
    order = [step for step, _ in statuses(end)]
    assert order.index("capture") < order.index("drain") < order.index("stop")
    assert order.index("route") < order.index("capture")
    assert data_of(end, "route")["first_token_through_router_s"] < 5
    manifest = read_manifest(next((site.folder / "runs").glob("*/evidence_*.tar.gz")))
    assert {"tp/metrics_1.txt", "tp/processes.txt", "triage/snapshot.json"} <= {
        e.path for e in manifest.entries
    }
    await site.check_serving("fallback")


@pytest.mark.chaos(
    fault="an operator starts the frozen tier by hand",
    at="after the stop",
    after="succeeded with a warning that names the process; triage keeps reporting it",
)
async def test_a_frozen_tier_that_is_started_by_hand_is_reported(site_with: MakeSite) -> None:
    site = await site_with()
    tp = site.host.tp

    async def start_it_by_hand() -> asyncio.Server:
        while not (state := await tp.unit.state()).frozen or state.active:
            await asyncio.sleep(0.05)
        return await asyncio.start_server(
            lambda _, writer: writer.close(), "127.0.0.1", port_of(tp.engine.url)
        )

    starting = asyncio.create_task(start_it_by_hand())
    end = await site.run(await site.plan())
    async with await starting:
        assert statuses(end)[-1] == ("validate", "warning")
        assert "something started tp again although it is frozen" in summary_of(end, "validate")
        target = await target_of_host(site.host)
        assert f"(process {os.getpid()}) listens on its port" in target.unwanted[0]
        verdict = judge(await collect(target, site.host.thresholds, window_s=0.5), site.host.thresholds)
    assert (verdict.verdict, verdict.cause) == ("watch", "frozen_tier_runs"), verdict
    assert (await target_of_host(site.host)).unwanted == ()


async def test_a_verdict_that_names_the_hang_shortens_planning(site_with: MakeSite) -> None:
    site = await site_with(fallback={"drain_stall_s": 30})
    async with site.traffic(clients=2):
        await site.freeze_rank()
        while (await site.host.tp.engine.metrics()).running != 2:
            await asyncio.sleep(0.02)
        verdict = Verdict(verdict=VerdictKind.FALL_BACK, cause="nccl_hang", summary="hangs")
        known = known_hang(verdict, age_s=1)
        facts = await asyncio.wait_for(gather_facts(site.host, known=known), 5)
        await site.host.tp.unit.stop(grace_s=0)
    assert facts.tp.condition == "hung"
    assert facts.tp.flat_since is not None


async def still_counter(site: Site) -> float | None:
    """Return tp's token counter once it no longer moves: a token may be under way when its rank freezes."""
    while (before := (await site.host.tp.engine.metrics()).generation_tokens) is not None:
        await asyncio.sleep(0.1)
        if (await site.host.tp.engine.metrics()).generation_tokens == before:
            break
    return before


async def test_a_counter_that_has_not_moved_since_triage_needs_no_second_check(
    site_with: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(condition, "CONFIRM_S", 30.0)
    site = await site_with(fallback={"drain_stall_s": 30})
    tp = site.host.tp
    async with site.traffic(clients=2):
        while not (await tp.engine.metrics()).generation_tokens:
            await asyncio.sleep(0.02)
        await asyncio.sleep(condition.RESTART_MARGIN_S)
        began = asyncio.get_running_loop().time()
        await site.freeze_rank()
        while (await tp.engine.metrics()).running != 2:
            await asyncio.sleep(0.02)
        finding = Finding(
            id="collective.hang",
            component="collective",
            severity=Severity.CRITICAL,
            summary="hangs",
            evidence={"progress": {"generation_tokens_last": await still_counter(site)}},
        )
        verdict = Verdict(
            verdict=VerdictKind.FALL_BACK, cause="nccl_hang", summary="hangs", findings=(finding,)
        )

        def known() -> KnownHang | None:
            return known_hang(verdict, age_s=asyncio.get_running_loop().time() - began)

        reading = await asyncio.wait_for(
            condition.read_condition(tp, await tp.unit.state(), stall_s=30, known=known()), 5
        )
        assert reading.condition == "hung"
        moved = known_hang(verdict, age_s=3600)  # the process is younger than that verdict
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                condition.read_condition(tp, await tp.unit.state(), stall_s=30, known=moved), 1
            )
        await tp.unit.stop(grace_s=0)


async def test_without_room_beside_it_the_tier_stops_first_and_clients_are_asked_to_retry(
    site_with: MakeSite,
) -> None:
    site = await site_with()
    alone = Candidate(gpu=None, reason="no room", beside=False)
    async with site.traffic() as seen:
        facts = await gather_facts(site.host)
        plan = lay_out(site.host, facts, Choice(candidates=(alone,)), FallbackArguments(skip_validation=True))
        end = await site.run(plan)
    order = ["capture", "drain", "stop", "scope", "launch", "warm", "route", "backpressure"]
    assert statuses(end) == [(step, "done") for step in order]
    assert seen.lost == []
    assert seen.refused > 0
    assert "503 with Retry-After" in plan.losses
    await site.check_serving("fallback")


@pytest.mark.chaos(
    fault="the fallback engine ends at its start", at="launch", after="the next GPU is tried; succeeded"
)
async def test_a_failed_start_is_tried_again_with_the_next_alternative(
    site_with: MakeSite, tmp_path: Any
) -> None:
    failures = tmp_path / "failures"
    failures.write_text("1")
    site = await site_with(fb=["--fail-starts", str(failures)], unit={"restart": False})
    end = await site.run(await site.plan(skip_validation=True))
    assert end.ended.status == "succeeded"
    failed = next(step.outcome for step in end.steps if step.outcome.status == "failed")
    assert "device is sick" in failed.summary
    assert [s.outcome.attempt for s in end.steps if s.outcome.step_id == "launch"] == [1, 2]
    await site.check_serving("fallback")


@pytest.mark.chaos(
    fault="the fallback engine dies in its warm-up", at="warm", after="failed; tp never stopped serving"
)
async def test_an_engine_that_dies_in_warm_up_leaves_a_healthy_tier_serving(site_with: MakeSite) -> None:
    site = await site_with(fb=["--die-after", "2"])
    async with site.traffic() as seen:
        end = await site.run(await site.plan(skip_validation=True))
    assert end.ended.status == "failed"
    assert end.ended.failed_step == "warm"
    assert "failed in warm-up" in summary_of(end, "warm")
    assert data_of(end, "settle")["state"] == "tp_serving"
    assert (seen.lost, seen.refused) == ([], 0)
    await site.check_serving("tp")


@pytest.mark.chaos(
    fault="the fallback engine ends at every start",
    at="launch, tp hung",
    after="failed; says NOTHING IS SERVING and what a human must do; clients get 503",
)
async def test_a_run_after_which_nothing_serves_says_so_and_leaves_one_state(
    site_with: MakeSite, tmp_path: Any
) -> None:
    failures = tmp_path / "failures"
    failures.write_text("99")
    site = await site_with(fb=["--fail-starts", str(failures)])
    await site.freeze_rank()
    facts = await gather_facts(site.host)
    alone = Candidate(gpu=None, reason="no room", beside=False)
    plan = lay_out(
        site.host, facts, Choice(candidates=(alone, alone)), FallbackArguments(skip_validation=True)
    )
    end = await site.run(plan)
    assert end.ended.failed_step in ("launch", "warm")
    assert end.last is not None
    assert end.last.outcome.data["state"] == "nothing_serving"
    assert "NOTHING IS SERVING" in end.last.outcome.summary
    assert "A human must act" in end.last.outcome.summary
    tp, fallback = await site.host.tp.unit.state(), await site.host.fallback.unit.state()
    assert (tp.active, tp.frozen, fallback.active, fallback.frozen) == (False, True, False, False)
    assert await site.weights() == {"tp": (100, "drain"), "fallback": (0, "ready")}


async def test_a_stop_before_the_drain_goes_back_to_the_serving_tier(site_with: MakeSite) -> None:
    site = await site_with(fb=["--startup-s", "20"])
    stop = asyncio.Event()
    async with site.traffic() as seen:
        plan = await site.plan(skip_validation=True)
        end = await site.run(plan, stop=stop, report=At("warm", stop.set))
    assert end.ended.status == "cancelled"
    assert data_of(end, "settle")["state"] == "tp_serving"
    assert (seen.lost, seen.refused) == ([], 0)
    await site.check_serving("tp")


async def test_a_stop_after_the_tier_was_stopped_stays_on_the_fallback(site_with: MakeSite) -> None:
    site = await site_with()
    stop = asyncio.Event()
    async with site.traffic() as seen:
        end = await site.run(await site.plan(), stop=stop, report=At("validate", stop.set))
    assert end.ended.status == "cancelled"
    assert data_of(end, "settle")["state"] == "fallback_serving"
    assert seen.lost == []
    await site.check_serving("fallback")


@pytest.mark.chaos(
    fault="all processes of tp frozen",
    at="drain",
    after="its requests are aborted long before the deadline; the fallback serves",
)
async def test_an_engine_that_answers_nothing_is_given_up_long_before_the_deadline(
    site_with: MakeSite,
) -> None:
    site = await site_with(fallback={"drain_timeout_s": 60, "drain_stall_s": 0.5})
    pids = (await site.host.tp.unit.state()).pids
    async with site.traffic():
        await asyncio.sleep(0.5)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        end = await site.run(await site.plan(skip_validation=True))
    assert end.ended.status == "succeeded"
    assert "its engine answered nothing" in summary_of(end, "drain")
    assert data_of(end, "drain")["seconds"] < 15
    await site.check_serving("fallback")
