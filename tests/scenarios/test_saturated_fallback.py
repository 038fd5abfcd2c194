"""Fallbacks under 60 streams, counted by the clients: what a tier that hangs costs, and for how long."""

import asyncio
import os
import signal
import time

from demo.traffic.account import Ending
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import data_of
from tests.scenarios.saturated import PRESSURE, PROFILE, QUEUE_TIMEOUT_S, SLACK_S, busy_site, lost_text


async def test_a_fallback_from_a_hang_answers_or_refuses_all_who_had_no_byte_yet(site_with: MakeSite) -> None:
    site = await busy_site(site_with)
    async with site.real_traffic(PROFILE) as account:
        await asyncio.sleep(2.5)
        assert account.open >= 40
        await site.freeze_rank()
        frozen = time.monotonic()
        await asyncio.sleep(0.5)
        plan = await site.plan(skip_validation=True)
        end = await site.run(plan)
        ended = time.monotonic()
        await asyncio.sleep(2)
    silence_s = account.longest_silence_s(frozen, account.last_token_at)
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


async def test_a_one_process_tier_that_answers_nothing_costs_no_new_request(site_with: MakeSite) -> None:
    site = await busy_site(site_with, tp=["--token-s", "0.05", "--ranks", "1"])
    async with site.real_traffic(PROFILE) as account:
        await asyncio.sleep(2.5)
        assert account.open >= 40
        pid = (await site.host.tp.unit.state()).main_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        frozen = time.monotonic()
        await asyncio.sleep(0.5)
        asked = time.monotonic()
        plan = await site.plan(skip_validation=True)
        planned = time.monotonic()
        end = await site.run(plan)
        ended = time.monotonic()
        await asyncio.sleep(2)
    silence_s = account.longest_silence_s(frozen, account.last_token_at)
    after = account.sent_between(asked, ended)
    lost = [answer for answer in account.lost if answer.sent_at >= asked]
    print(
        f"MEASURE planning {planned - asked:.1f} s, run {ended - planned:.1f} s, drain {data_of(end, 'drain')['seconds']} s, "
        f"first token {min(a.last_token_at for a in account.answers if a.last_token_at and a.served_by == 'fallback') - asked:.1f} s, "
        f"silence {silence_s:.1f} s; of {len(after)} sent meanwhile {len(lost)} lost, "
        f"{sum(a.ending is Ending.REFUSED for a in after)} refused; {account.describe()}; drain {data_of(end, 'drain')}"
    )
    assert end.ended.status == "succeeded"
    await site.check_serving("fallback")
