"""From an alert to people: one incident, one card, related alerts, and an automatic fallback only if the settings allow it."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bot.presenter.alerts import cleared
from bot.store.records import Alert, RunStatus
from bot.watch.alerts import MONITOR
from bot.watch.monitor_kinds import MONITOR_KINDS
from bot.watch.undelivered_alerts import UndeliveredAlerts
from demo.workspace.webapi import ApiCall, ApiError, Handler
from gpu_actions.models import JsonObject, VerdictKind
from tests.bot.desk import Desk, desk

FALLS = {"triage": "verdict:look", "fallback": "count:a"}
AUTO = {"monitors": {"enabled": False, "auto_fallback": ["nccl_hang"]}}


def an_alert(**changes: object) -> Alert:
    values = {
        "host": "toy",
        "cause": "nccl_hang",
        "title": "nccl_hang on toy",
        "source": "the hang watch",
        "reason": "2 of the last 3 readings",
        "verdict": VerdictKind.FALL_BACK,
        "key": "toy:serving:1",
        "at_s": time.time(),
    }
    return Alert.model_validate({**values, **changes})


async def test_an_alert_opens_one_incident_with_one_triage_and_related_alerts_join_it(tmp_path: Path) -> None:
    async with desk(tmp_path, scripts=FALLS) as it:
        for one in (
            an_alert(),
            an_alert(),
            an_alert(cause="nvlink_loss", source="the link and topology poll"),
        ):
            it.bot.alerts.report(one)
        root = await it.hears("ALERT: nccl_hang on toy")
        await it.hears("FALL BACK: nccl_hang on toy")
        joined = await it.hears("The link and topology poll also reports *nvlink_loss*")
        assert joined.thread_ts == root.ts
        incident = it.bot.services.incidents.active("toy")
        assert incident is not None
        assert incident.place.thread_ts == root.ts
        (triage,) = it.bot.runs.list(action="triage")
        assert (triage.requester.id, triage.incident_id) == (MONITOR.id, incident.id)
        texts = await it.texts()
        assert len([text for text in texts if text.startswith("ALERT")]) == 1


async def test_an_alert_that_only_says_watch_brings_a_card_and_no_incident(tmp_path: Path) -> None:
    async with desk(tmp_path, scripts={"triage": "calm:look"}) as it:
        it.bot.alerts.report(an_alert(verdict=VerdictKind.WATCH, cause="thermal"))
        await it.hears("HEALTHY: toy")
        assert it.bot.services.incidents.active("toy") is None


async def test_with_slack_away_the_triage_runs_and_the_alert_comes_later(tmp_path: Path) -> None:
    away = {"now": False}

    async def gone(call: ApiCall, handler: Handler) -> JsonObject:
        if away["now"] and call.method == "chat.postMessage":
            raise ApiError("service_unavailable", status=503)
        return await handler(call)

    async with desk(tmp_path, scripts=FALLS, middlewares=[gone]) as it:
        away["now"] = True
        it.bot.alerts.report(an_alert())
        run = await it.run("triage")
        assert run.status is RunStatus.SUCCEEDED
        assert await it.texts() == []
        away["now"] = False
        await it.hears("ALERT: nccl_hang on toy", timeout_s=20)
        await it.hears("FALL BACK: nccl_hang on toy", timeout_s=20)
        while (run := await it.run("triage")).incident_id is None:
            await asyncio.sleep(0.05)


async def test_an_automatic_fallback_starts_and_ends_with_slack_away_and_is_told_once_in_the_thread_afterwards(
    tmp_path: Path,
) -> None:
    away = {"now": False}

    async def gone(call: ApiCall, handler: Handler) -> JsonObject:
        if away["now"]:
            raise ApiError("service_unavailable", status=503)
        return await handler(call)

    async with desk(tmp_path, scripts=FALLS, middlewares=[gone], **AUTO) as it:
        away["now"] = True
        began = time.monotonic()
        it.bot.alerts.report(an_alert())
        run = await it.run("fallback")
        assert run.status is RunStatus.SUCCEEDED and time.monotonic() - began < 10
        assert await it.texts() == []
        away["now"] = False
        root = await it.hears("ALERT: nccl_hang on toy", timeout_s=40)
        await it.hears("FALL BACK: nccl_hang on toy", timeout_s=40)
        await it.hears("AUTOMATIC FALLBACK on toy", timeout_s=40)
        deadline = time.monotonic() + 40
        while not (told := await it.message_of(run.id)):
            assert time.monotonic() < deadline, await it.texts()
            await asyncio.sleep(0.1)
        assert [message.thread_ts for message in told] == [root.ts]
        incident = it.bot.services.incidents.active("toy")
        assert incident is not None and it.bot.runs.get(run.id).incident_id == incident.id  # type: ignore[union-attr]
        texts = await it.texts()
        assert len([text for text in texts if text.startswith("ALERT")]) == 1
        assert not [text for text in texts if "No automatic fallback" in text]


async def test_an_undelivered_alert_survives_a_restart_of_the_bot(tmp_path: Path) -> None:
    away = {"now": True}

    async def gone(call: ApiCall, handler: Handler) -> JsonObject:
        if away["now"] and call.method == "chat.postMessage":
            raise ApiError("service_unavailable", status=503)
        return await handler(call)

    async with desk(tmp_path, scripts=FALLS, middlewares=[gone]) as it:
        it.bot.alerts.report(an_alert())
        before = await it.run("triage")
        await asyncio.sleep(0.2)
    away["now"] = False
    async with desk(tmp_path, scripts=FALLS) as it:
        # the alert is first, or joins the incident that the card of the triage has opened by then
        await it.hears("2 of the last 3 readings", timeout_s=20)
        (triage,) = it.bot.runs.list(action="triage")
        assert triage.id == before.id, "the evidence of that moment is there already"
        while UndeliveredAlerts(it.bot.store).all():
            await asyncio.sleep(0.05)
        await it.bot.alerts.retry()
        await asyncio.sleep(0.5)
        assert len([text for text in await it.texts() if "2 of the last 3 readings" in text]) == 1


async def test_a_stall_that_becomes_a_reason_to_fall_back_gets_a_card_of_its_own(tmp_path: Path) -> None:
    async with desk(tmp_path, scripts={"triage": "calm:look"}) as it:
        seen = it.bot.store.clock()
        stalled = an_alert(cause="engine_stalled", verdict=VerdictKind.UNKNOWN, at_s=seen)
        it.bot.alerts.report(stalled)
        await it.run("triage")
        it.bot.alerts.report(stalled.model_copy(update={"at_s": seen + 5}))
        await asyncio.sleep(0.5)
        assert len(it.bot.runs.list(action="triage")) == 1, "of the same moment"
        worse = {"verdict": VerdictKind.FALL_BACK, "at_s": seen + 30, "window_s": 32.0}
        it.bot.alerts.report(stalled.model_copy(update=worse))
        await it.hears("ALERT")
        run = await it.run("triage", until=lambda run: run.status.final and run.options != {})
        assert run.options == {"window": "32"}


async def test_a_new_reason_to_fall_back_in_an_old_thread_is_also_posted_in_the_channel(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path, scripts=FALLS) as it:
        it.bot.alerts.report(an_alert())
        await it.hears("FALL BACK: nccl_hang on toy")
        while it.bot.services.incidents.active("toy") is None:
            await asyncio.sleep(0.05)
        it.bot.alerts.report(an_alert(cause="nvlink_loss"))
        near = await it.hears("*nvlink_loss*")
        it.bot.alerts.report(an_alert(cause="gpu_lost", at_s=time.time() + 3600))
        late = await it.hears("*gpu_lost*")
        history = await it.bot.client.conversations_history(channel=late.channel)
        shown = {message["ts"] for message in history["messages"]}
        assert near.ts not in shown
        assert late.ts in shown
        assert [button.text for button in late.buttons] == ["Acknowledge"]


async def test_the_end_of_a_fault_is_posted_in_the_thread_of_an_open_incident_only(tmp_path: Path) -> None:
    async with desk(tmp_path, scripts=FALLS) as it:
        it.bot.alerts.say("toy", cleared("toy", source="the hang watch", reason="3 good readings"))
        it.bot.alerts.report(an_alert())
        root = await it.hears("ALERT")
        await it.run("triage")
        it.bot.alerts.say("toy", cleared("toy", source="the hang watch", reason="3 good readings"))
        message = await it.hears("no longer reports a fault on toy")
        assert message.thread_ts == root.ts
        assert len([text for text in await it.texts() if "no longer reports" in text]) == 1


async def test_there_is_no_automatic_fallback_by_default(tmp_path: Path) -> None:
    async with desk(tmp_path, scripts=FALLS) as it:
        it.bot.alerts.report(an_alert())
        await it.hears("FALL BACK: nccl_hang on toy")
        await it.run("triage")
        await asyncio.sleep(0.5)
        assert it.bot.runs.list(action="fallback") == []


async def test_a_listed_cause_starts_one_automatic_fallback_and_announces_it(tmp_path: Path) -> None:
    async with desk(tmp_path, scripts=FALLS, **AUTO) as it:
        it.bot.alerts.report(an_alert())
        run = await it.run("fallback")
        assert (run.status, run.requester.id) == (RunStatus.SUCCEEDED, MONITOR.id)
        loud = await it.hears("AUTOMATIC FALLBACK on toy: nccl_hang")
        assert loud.thread_ts is None
        incident = it.bot.services.incidents.active("toy")
        assert incident is not None
        assert (run.place, run.incident_id) == (incident.place, incident.id)
        it.bot.alerts.report(an_alert(key="toy:serving:2"))
        await it.hears(f"{run.id} was started less than 6 h ago")
        assert len(it.bot.runs.list(action="fallback")) == 1


@pytest.mark.parametrize(
    ("script", "says"),
    [("calm:look", "a fresh triage says healthy"), ("count:a", "a fresh triage came to no verdict")],
)
async def test_the_fresh_triage_has_the_last_word(tmp_path: Path, script: str, says: str) -> None:
    async with desk(tmp_path, scripts={"triage": script}, **AUTO) as it:
        it.bot.alerts.report(an_alert())
        await it.hears(says)
        assert it.bot.runs.list(action="fallback") == []


async def test_an_acknowledged_cause_starts_no_automatic_fallback(tmp_path: Path) -> None:
    async with desk(tmp_path, scripts={**FALLS, "triage": "hold:h verdict:look"}, **AUTO) as it:
        it.bot.alerts.report(an_alert())
        await it.hears("ALERT: nccl_hang on toy")
        it.bot.monitors.acknowledge("toy", "nccl_hang", by=MONITOR)
        it.release()
        await it.hears("nccl_hang has been acknowledged")
        assert it.bot.runs.list(action="fallback") == []


async def test_another_change_of_the_host_keeps_it_from_starting(tmp_path: Path) -> None:
    async with desk(tmp_path, scripts={**FALLS, "restore": "hold:r"}, **AUTO, access=open_access()) as it:
        await it.say("/restore start")
        await it.run("restore", until=lambda run: run.status is RunStatus.RUNNING)
        it.bot.alerts.report(an_alert())
        await it.hears("is changing the host")
        it.release()
        await it.run("restore")


def open_access() -> JsonObject:
    return {"roles": {"responder": ["@oncall-engineers"]}, "approvals": {}}


def hold_back(owner: object, method: str) -> threading.Event:
    """Let a method wait until the returned event is set."""
    go, real = threading.Event(), getattr(owner, method)

    def waits(*args: Any, **kwargs: Any) -> Any:
        go.wait(30)
        return real(*args, **kwargs)

    setattr(owner, method, waits)
    return go


async def press_acknowledge(it: Desk, user: str) -> None:
    await it.press("Acknowledge", user=user)


async def test_acknowledge_needs_the_role_and_is_a_line_in_the_timeline(tmp_path: Path) -> None:
    off = {f"{kind.name}_period_s": 0 for kind in MONITOR_KINDS}
    async with desk(tmp_path, scripts=FALLS, monitors={"enabled": True, **off}) as it:
        opened = hold_back(it.bot.services.incidents, "open")
        it.bot.alerts.report(an_alert())
        await it.hears("ALERT")
        await press_acknowledge(it, "viewer")
        await it.hears("You may not acknowledge nccl_hang on toy")
        assert not it.bot.alerts.acknowledged("toy", "nccl_hang")
        await press_acknowledge(it, "oncall")  # the alert is there to press before its incident is open
        while not it.bot.alerts.acknowledged("toy", "nccl_hang"):
            await asyncio.sleep(0.02)
        opened.set()
        await it.hears("is acknowledged: no new alert about it for 15 min")
        assert it.bot.alerts.acknowledged("toy", "nccl_hang")
        incident = it.bot.services.incidents.active("toy")
        assert incident is not None
        assert any(
            entry.text == "acknowledged nccl_hang"
            for entry in it.bot.services.incidents.timeline(incident.id)
        )
