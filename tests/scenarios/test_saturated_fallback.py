"""Fallbacks under 60 streams, counted by the clients: what a tier that hangs costs, and for how long."""

import asyncio
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
