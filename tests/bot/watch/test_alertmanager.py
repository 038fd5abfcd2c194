"""Alertmanager's webhook over real HTTP: authorization, size, payload, and the messages that follow."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from bot.settings.model import WebSettings
from bot.store.records import RunStatus
from bot.watch.alertmanager import Payload, PayloadAlert, Webhook
from demo.workspace.webapi import ApiCall, Handler
from gpu_actions.models import JsonObject
from tests.bot.desk import Desk, desk
from tests.ports import free_port

TOKEN = "right-token"
LABELS = {"alertname": "NvlinkDown", "severity": "critical", "instance": "toy:9400"}


def notification(**alert: object) -> JsonObject:
    one = {
        "status": "firing",
        "labels": LABELS,
        "annotations": {"summary": "GPU 3 has 17 of 18 links"},
        "startsAt": "2026-11-23T03:00:00.123Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus/graph",
        "fingerprint": "4bc3e7ceef4b2958",
        **alert,
    }
    return {
        "version": "4",
        "groupKey": '{}:{alertname="NvlinkDown"}',
        "truncatedAlerts": 0,
        "status": one["status"],
        "receiver": "gpu-oncall",
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager",
        "alerts": [one],
    }


@pytest.fixture
async def at_desk(tmp_path: Path) -> AsyncIterator[Desk]:
    web = WebSettings(port=free_port(), alert_token=SecretStr(TOKEN), alert_max_bytes=20_000)
    async with desk(tmp_path, scripts={"triage": "verdict:look"}, web=web) as it:
        yield it


async def post(it: Desk, body: object, *, token: str | None = TOKEN) -> tuple[int, JsonObject]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    url = f"http://127.0.0.1:{it.bot.settings.web.port}/alerts"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=data, headers=headers) as answer,
    ):
        return answer.status, await answer.json()


async def test_a_firing_alert_opens_one_incident_and_its_end_is_posted(at_desk: Desk) -> None:
    assert await post(at_desk, notification()) == (202, {"accepted": 1, "without_host": 0})
    assert (await post(at_desk, notification()))[0] == 202  # Alertmanager repeats itself
    root = await at_desk.hears("ALERT: NvlinkDown on toy")
    assert "GPU 3 has 17 of 18 links" in root.text
    await at_desk.hears("FALL BACK: nccl_hang on toy")
    await post(at_desk, notification(status="resolved"))
    await at_desk.hears("NvlinkDown is resolved")
    assert len(at_desk.bot.runs.list(action="triage")) == 1
    assert len([text for text in await at_desk.texts() if text.startswith("ALERT")]) == 1


def storm(count: int, **alert: object) -> JsonObject:
    """One notification with many alerts of one cause, as eight GPUs and their links bring."""
    body = notification(**alert)
    body["alerts"] = [{**body["alerts"][0], "fingerprint": f"f{number}"} for number in range(count)]
    return body


async def test_a_storm_of_alerts_is_one_message_that_counts(at_desk: Desk) -> None:
    for part in (30, 40):  # ten new ones in the second notification
        await post(at_desk, storm(part))
    root = await at_desk.hears("ALERT: NvlinkDown on toy (40 alerts)", timeout_s=20)
    await at_desk.hears("FALL BACK: nccl_hang on toy")
    assert "40 alerts so far, 40 firing" in root.text
    await asyncio.sleep(0.5)
    about_it = [text for text in await at_desk.texts() if "NvlinkDown" in text]
    assert len(about_it) == 1, about_it
    assert len(at_desk.bot.runs.list(action="triage")) == 1
    await post(at_desk, storm(39, status="resolved"))
    await at_desk.hears("40 alerts so far, 1 firing", timeout_s=20)
    assert not [text for text in await at_desk.texts() if "is resolved" in text]
    last = {**storm(1)["alerts"][0], "fingerprint": "f39", "status": "resolved"}
    await post(at_desk, {**notification(), "alerts": [last]})
    await at_desk.hears("*NvlinkDown* on toy is resolved (40 alerts)", timeout_s=20)
    await at_desk.hears("Alertmanager: NvlinkDown is resolved on toy")
    assert at_desk.bot.services.incidents.active("toy") is not None, "people close the incident"


async def test_after_its_end_the_same_cause_is_reported_again(at_desk: Desk) -> None:
    await post(at_desk, storm(3))
    await at_desk.hears("ALERT: NvlinkDown on toy")
    await post(at_desk, storm(3, status="resolved"))
    await at_desk.hears("is resolved on toy")
    await post(at_desk, storm(1, startsAt="2026-11-23T04:00:00Z"))
    await at_desk.hears("Alertmanager also reports *NvlinkDown*")


async def test_an_acknowledged_cause_stays_quiet_and_is_noted(at_desk: Desk) -> None:
    await post(at_desk, notification())
    root = await at_desk.hears("ALERT: NvlinkDown on toy")
    await at_desk.hears("FALL BACK: nccl_hang on toy")
    await at_desk.press("Acknowledge")
    await at_desk.hears("is acknowledged")
    before = len(await at_desk.texts())
    await post(at_desk, storm(5, startsAt="2026-11-23T04:00:00Z"))
    incident = at_desk.bot.services.incidents.active("toy")
    assert incident is not None
    while (
        len([e for e in at_desk.bot.services.incidents.timeline(incident.id) if "NvlinkDown" in e.text]) < 6
    ):
        await asyncio.sleep(0.05)
    assert len(await at_desk.texts()) == before
    assert len(at_desk.bot.runs.list(action="triage")) == 1
    assert root.ts


async def test_an_alert_that_was_kept_when_the_bot_died_is_delivered_after_its_start(tmp_path: Path) -> None:
    web = WebSettings(port=free_port(), alert_token=SecretStr(TOKEN))
    async with desk(tmp_path, scripts={"triage": "verdict:look"}, web=web) as it:
        it.bot.alerts.report = lambda alert: None  # type: ignore[method-assign]  # the bot dies right after its answer
        assert (await post(it, notification()))[0] == 202
    async with desk(tmp_path, scripts={"triage": "verdict:look"}, web=web) as it:
        assert (await post(it, notification()))[0] == 202  # Alertmanager's repeat is no new alert
        await it.bot.alerts.retry()
        await it.hears("ALERT: NvlinkDown on toy")
        await it.hears("FALL BACK: nccl_hang on toy")
        assert len(it.bot.runs.list(action="triage")) == 1


async def test_a_missing_channel_delays_the_message_and_not_the_triage(tmp_path: Path) -> None:
    missing = {"now": True}

    async def hide(call: ApiCall, handler: Handler) -> JsonObject:
        answer = await handler(call)
        if missing["now"] and call.method == "conversations.list":
            return {**answer, "channels": []}
        return answer

    web = WebSettings(port=free_port(), alert_token=SecretStr(TOKEN))
    async with desk(tmp_path, scripts={"triage": "verdict:look"}, web=web, middlewares=[hide]) as it:
        await post(it, notification())
        run = await it.run("triage")
        assert run.status is RunStatus.SUCCEEDED
        missing["now"] = False
        await it.hears("ALERT: NvlinkDown on toy", timeout_s=30)
        await it.hears("FALL BACK: nccl_hang on toy", timeout_s=30)


async def test_a_warning_brings_a_card_without_an_incident(at_desk: Desk) -> None:
    await post(at_desk, notification(labels={**LABELS, "severity": "warning"}, fingerprint="1"))
    await at_desk.run("triage")
    assert not [text for text in await at_desk.texts() if text.startswith("ALERT")]


@pytest.mark.parametrize("token", [None, "", "wrong", "right-toke", TOKEN + "x", "ü"])
async def test_a_wrong_token_is_refused(at_desk: Desk, token: str | None) -> None:
    headers_safe = token if token is None or token.isascii() else token.encode().decode("latin-1")
    status, answer = await post(at_desk, notification(), token=headers_safe)
    assert status == 401
    assert "alert_token" in answer["error"]
    assert at_desk.bot.runs.list() == []


async def test_a_header_of_raw_bytes_is_refused_as_a_wrong_token(at_desk: Desk) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", at_desk.bot.settings.web.port)
    writer.write(
        b"POST /alerts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\nContent-Length: 0\r\n\r\n"
    )
    assert b" 401 " in await reader.readline()
    writer.close()


async def test_too_large_a_body_is_refused_even_without_a_content_length(at_desk: Desk) -> None:
    status, answer = await post(at_desk, b"[" + b" " * 30_000 + b"]")
    assert (status, "20000 bytes" in answer["error"]) == (413, True)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 1000

    url = f"http://127.0.0.1:{at_desk.bot.settings.web.port}/alerts"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=pieces(), headers=headers) as response,
    ):
        assert response.status == 413


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ([], "Input should be a valid dictionary"),
        ({**notification(), "version": "3"}, "version: Input should be '4'"),
        ({"version": "4", "alerts": []}, "groupKey: Field required"),
        (notification(startsAt="yesterday"), "alerts.0.startsAt"),
        (notification(status="odd"), "alerts.0.status"),
        (notification(labels={"instance": 5}), "alerts.0.labels.instance"),
    ],
)
async def test_an_invalid_payload_is_refused_with_the_name_of_its_field(
    at_desk: Desk, body: object, says: str
) -> None:
    status, answer = await post(at_desk, body)
    assert status == 400
    assert says in answer["error"]


async def test_an_alert_that_names_no_known_host_is_refused(at_desk: Desk) -> None:
    status, answer = await post(at_desk, notification(labels={**LABELS, "instance": "db7:9100"}))
    assert status == 422
    assert answer["error"] == (
        "NvlinkDown: none of the labels host, instance, node, Hostname names a host; hosts: toy"
    )


async def test_the_route_is_off_without_a_token_in_the_settings(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        status, answer = await post(it, notification(), token="")
        assert (status, "is off" in answer["error"]) == (404, True)


async def test_the_answer_does_not_wait_for_the_work(at_desk: Desk) -> None:
    async with asyncio.timeout(1):
        many = notification()
        many["alerts"] = [{**many["alerts"][0], "fingerprint": str(n)} for n in range(40)]
        assert await post(at_desk, many) == (202, {"accepted": 40, "without_host": 0})
    await at_desk.hears("ALERT")
    await at_desk.run("triage")
    assert len(at_desk.bot.runs.list(action="triage")) == 1, "forty alerts of one host are one burst"


@pytest.mark.parametrize(
    ("labels", "host"),
    [
        ({"host": "serve1"}, "serve1"),
        ({"instance": "SERVE1:9400"}, "serve1"),
        ({"instance": "serve1.rack2.example:9400"}, "serve1"),
        ({"Hostname": "serve2"}, "serve2"),
        ({"host": "elsewhere", "instance": "serve2:1"}, "serve2"),
        ({"instance": "10.0.0.1:9400"}, None),
        ({}, None),
    ],
)
def test_labels_name_a_host_in_the_forms_that_exporters_use(labels: dict[str, str], host: str | None) -> None:
    webhook = Webhook(WebSettings(), hosts=lambda: ("serve1", "serve2"), alerts=None, store=None)  # type: ignore[arg-type]
    alert = PayloadAlert.model_validate(
        {"status": "firing", "labels": labels, "startsAt": "2026-11-23T03:00:00Z"}
    )
    assert webhook.host_of(alert) == host


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["version", "groupKey", "alerts", "x"]), json_values, max_size=4))
def test_no_payload_breaks_the_parser(body: dict[str, object]) -> None:
    try:
        Payload.model_validate(body)
    except ValueError as error:
        assert str(error)
