"""Nobody types anything: a rank freezes, and the bot's own checks open the incident, bring the card, and see the end of it."""

import asyncio
import time
from pathlib import Path

import pytest

from bot.incidents.incidents import Incidents
from gpu_actions.models import VerdictKind
from tests.scenarios.incident import Incident, describe, incident

WITHIN_S = 30
"""The promise: a live hang is told within this time."""


@pytest.mark.heavy
@pytest.mark.timeout(240)
async def test_a_hang_opens_one_incident_with_its_card_and_the_end_of_it_is_told(tmp_path: Path) -> None:
    async with incident(tmp_path, monitors=True) as it:
        await asyncio.sleep(6)  # some looks at the healthy host
        assert await it.messages() == [], "a healthy host is nobody's business"
        await a_frozen_rank_is_told(it)
        await an_acknowledgement_is_answered_and_nothing_is_told_twice(it)
        await the_end_is_told_in_the_thread(it)


async def a_frozen_rank_is_told(it: Incident) -> None:
    began = time.monotonic()
    await it.break_("frozen-rank")
    alert = await it.says("ALERT: nccl_hang on demo", timeout_s=WITHIN_S)
    card = await it.says("FALL BACK: nccl_hang on demo", timeout_s=WITHIN_S)
    took_s = time.monotonic() - began
    print(f"from SIGSTOP to the verdict card in the channel: {took_s:.1f} s")
    assert took_s < WITHIN_S
    assert any(button.text == "Acknowledge" for button in alert.buttons)
    assert any(button.text == "Start fallback" for button in card.buttons)
    opened = Incidents(it.store).active("demo")
    assert opened is not None
    assert (opened.cause, opened.place.thread_ts) == ("nccl_hang", alert.ts)
    run = await it.ended("triage")
    assert run.requester.id == "monitor"
    assert run.incident_id == opened.id
    assert run.steps[-1].verdict is not None
    assert run.steps[-1].verdict.verdict is VerdictKind.FALL_BACK, describe(run)


async def an_acknowledgement_is_answered_and_nothing_is_told_twice(it: Incident) -> None:
    await it.press("Acknowledge")
    await it.says("is acknowledged")
    await asyncio.sleep(6)  # one more hang look
    texts = [message.text for message in await it.messages()]
    assert len([text for text in texts if text.startswith("ALERT")]) == 1, texts
    assert len(it.store.list(action="triage")) == 1
    assert it.store.list(action="fallback") == [], "nothing falls back by itself unless the settings say so"


async def the_end_is_told_in_the_thread(it: Incident) -> None:
    await it.break_("mend")
    message = await it.says("The hang watch no longer reports a fault on demo", timeout_s=60)
    opened = Incidents(it.store).active("demo")
    assert opened is not None, "people close incidents"
    assert message.ts != opened.place.thread_ts
    entries = [entry.text for entry in Incidents(it.store).timeline(opened.id)]
    assert any("acknowledged nccl_hang" in entry for entry in entries), entries
