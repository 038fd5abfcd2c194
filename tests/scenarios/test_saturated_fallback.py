"""Fallbacks under 60 streams, counted by the clients: what a tier that hangs costs, and for how long."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.traffic.account import Ending
from gpu_actions.fallback.hold import SUSPECT_S
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.target import target_of_host
from gpu_actions.triage.judge import judge
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.fakes import build_fake_nvml, fake_nvml
from tests.gpu_actions.site import data_of, summary_of
from tests.scenarios.saturated import (
    BOTH,
    PLACES,
    PRESSURE,
    QUEUE_TIMEOUT_S,
    SHORT,
    SLACK_S,
    Load,
    busy_site,
    check_refusals,
    lost_text,
    servers_of,
)

__all__ = ["build_fake_nvml", "fake_nvml"]
pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("load", BOTH)
async def test_a_fallback_from_a_hang_answers_or_refuses_all_who_had_no_byte_yet(
    site_with: MakeSite, load: Load
) -> None:
    site = await busy_site(site_with, load)
    async with site.real_traffic(load.profile) as account:
        await asyncio.sleep(load.full_s)
        assert account.open >= 40
        await site.freeze_rank()
        frozen = time.monotonic()
        await asyncio.sleep(0.5)
        plan = await site.plan(skip_validation=True)
        end = await site.run(plan)
        ended = time.monotonic()
        await asyncio.sleep(2)
    silence_s = account.longest_silence_s(frozen)
    print(account.describe(), f"{silence_s:.1f} s without a token", sep="\n")
    assert end.ended.status == "succeeded"
    assert {answer.ending for answer in account.lost} <= {Ending.ABORTED}, lost_text(account)
    for answer in account.lost:
        assert answer.first_byte_at is not None
        assert answer.first_byte_at <= frozen + 0.3, f"{answer} was answered by tp before it hung"
    drained = data_of(end, "drain")
    assert drained["cut"] == len(account.lost), (drained, account.describe())
    for answer in account.refused:
        assert answer.retry_after_s == PRESSURE["retry_after_s"]
    later = [answer for answer in account.refused if answer.sent_at > ended]
    assert all((answer.wait_s or 0) <= QUEUE_TIMEOUT_S + SLACK_S for answer in later)
    assert silence_s < 8
    await site.check_serving("fallback")
    assert "s without an answer" in summary_of(end, "stop"), (
        "the outcome of the run says how long nothing was answered"
    )
    counted = drained["clients"]["account"]["without_answer"]
    assert abs(counted["to_s"] - counted["from_s"] - silence_s) < 2, (counted, silence_s)


@pytest.mark.heavy
async def test_a_fallback_says_which_part_of_the_usual_rate_it_serves_and_the_clients_counted_the_same(
    site_with: MakeSite,
) -> None:
    load = SHORT
    site = await busy_site(site_with, load, fallback={"validate_load": {"duration_s": 8, "target_qps": 1}})
    async with site.real_traffic(load.profile) as account:
        await asyncio.sleep(load.full_s + 13)
        await site.freeze_rank()
        frozen = time.monotonic()
        end = await site.run(await site.plan())
        ended = time.monotonic()
    assert end.ended.status == "succeeded"
    counted = data_of(end, "validate")["clients"]
    finished = [one.ended_at or 0 for one in account.answers if one.ending is Ending.FINISHED]
    began = frozen - 13
    usual = sum(began <= at < frozen for at in finished) / 13
    served_s = min(8.0, ended - frozen)
    served = sum(ended - served_s <= at < ended for at in finished) / served_s
    print(account.describe(), counted, f"usual {usual:.1f}/s, served {served:.1f}/s", sep="\n")
    assert counted["account"]["before_per_s"] == pytest.approx(usual, rel=0.15)
    assert counted["served_per_s"] == pytest.approx(served, rel=0.25, abs=2)
    share = 100 * counted["served_per_s"] / counted["account"]["before_per_s"]
    assert f"serving {share:.0f} % of the usual" in summary_of(end, "validate")
    assert "% refused at peak" in summary_of(end, "validate")


@pytest.mark.heavy
@pytest.mark.parametrize("load", BOTH)
async def test_a_one_process_tier_that_answers_nothing_costs_no_new_request(
    site_with: MakeSite, load: Load
) -> None:
    one = [*load.host["tp"], "--ranks", "1"]
    site = await busy_site(site_with, load, tp=one, fallback={"drain_stall_s": 3})
    async with site.real_traffic(load.profile) as account:
        await asyncio.sleep(load.full_s)
        assert account.open >= 40
        pid = (await site.host.tp.unit.state()).main_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        frozen = time.monotonic()
        await asyncio.sleep(0.5)
        asked = time.monotonic()
        plan = await site.plan(starts=True, skip_validation=True)
        planned = time.monotonic()
        end = await site.run(plan)
        ended = time.monotonic()
        await asyncio.sleep(2)
    silence_s = account.longest_silence_s(frozen)
    tokens = [answer for answer in account.answers if answer.served_by == "fallback" and answer.last_token_at]
    first_s = min(answer.first_byte_at or ended for answer in tokens) - asked
    waited = account.sent_between(asked, asked + first_s)
    drain_s = data_of(end, "drain")["seconds"]
    print(
        f"planning {planned - asked:.1f} s, run {ended - planned:.1f} s, drain {drain_s:.1f} s, first token {first_s:.1f} s",
        f"{silence_s:.1f} s without a token; sent before the first token: {servers_of(waited)}",
        f"sent in the whole run: {servers_of(account.sent_between(asked, ended))}",
        account.describe(),
        sep="\n",
    )
    assert end.ended.status == "succeeded"
    for answer in account.lost:
        assert answer.sent_at <= asked + SUSPECT_S + SLACK_S, f"{answer} was not held"
        assert answer.ending is Ending.ABORTED, answer
    held = data_of(end, "backpressure")["held"]
    assert held >= PLACES
    assert servers_of(waited)["fallback"] >= PLACES, "what was held is answered"
    assert drain_s < 8, "three times the stall limit would be 9 s and more"
    await site.check_serving("fallback")


@pytest.mark.parametrize("load", BOTH)
async def test_a_fallback_from_lost_links_on_all_gpus_loses_no_request(
    site_with: MakeSite, fake_nvml: Callable[..., Path], load: Load
) -> None:
    """tp still answers, slowly: it serves until the fallback generates, and finishes what it has begun."""
    fake_nvml("gpus=2", "gpu.*.link.*.active=0")
    gpus = {"tp_tier": {"gpus": 2}, "fallback_tier": {"gpus": 1, "memory_gib_per_gpu": 20}}
    site = await busy_site(site_with, load, **gpus)
    async with site.real_traffic(load.profile) as account:
        await asyncio.sleep(load.full_s)
        target = await target_of_host(site.host)
        verdict = judge(await collect(target, site.host.thresholds, window_s=0.5), site.host.thresholds)
        assert (verdict.verdict, verdict.cause) == ("fall_back", "nvlink_loss")
        end = await site.run(await site.plan(starts=True, verdict=verdict, skip_validation=True))
        await asyncio.sleep(1)
    print(account.describe(), account.longest_silence_s())
    assert end.ended.status == "succeeded"
    assert account.lost == [], lost_text(account)
    check_refusals(account)
    assert account.longest_silence_s() < 2
    await site.check_serving("fallback")


@pytest.mark.heavy
@pytest.mark.parametrize("load", BOTH)
async def test_a_fallback_from_a_crash_loop_answers_all_that_came_after_it_was_asked_for(
    site_with: MakeSite, load: Load
) -> None:
    """tp dies after every 60 answers and is started again: what it had begun is lost, and nothing after the hold."""
    site = await busy_site(site_with, load, tp=[*load.host["tp"], "--die-after", "60"])
    async with site.real_traffic(load.profile) as account:
        while (await site.host.tp.unit.state()).restarts < 2:
            await asyncio.sleep(0.1)
        asked = time.monotonic()
        end = await site.run(await site.plan(starts=True, skip_validation=True))
        ended = time.monotonic()
        await asyncio.sleep(2)
    print(
        account.describe(),
        f"{account.longest_silence_s(asked, ended):.1f} s without a token while it ran",
        servers_of(account.sent_between(asked, ended)),
        [step.outcome.summary for step in end.steps][:1],
        sep="\n",
    )
    assert end.ended.status == "succeeded"
    late = [answer for answer in account.lost if answer.sent_at > asked + SUSPECT_S + SLACK_S]
    assert late == [], lost_text(account)
    assert {answer.served_by for answer in account.lost} <= {"tp", ""}, lost_text(account)
    await site.check_serving("fallback")
