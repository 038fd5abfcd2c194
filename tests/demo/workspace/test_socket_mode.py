"""Socket Mode at its edges: no app, a silent app, two apps, redelivery, restarts, expired and forged URLs."""

import asyncio
import json
import time
from typing import Any

import aiohttp
import pytest
from slack_bolt.app.async_app import AsyncApp
from slack_sdk.socket_mode.aiohttp import SocketModeClient
from slack_sdk.socket_mode.async_client import AsyncBaseSocketModeClient
from slack_sdk.socket_mode.request import SocketModeRequest
from slack_sdk.web.async_client import AsyncWebClient

from demo.workspace import Workspace, WorkspaceClient, socket_mode
from tests.demo.workspace.conftest import BoltStarter, until


async def open_link(workspace: Workspace, session: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
    client = AsyncWebClient(token=workspace.app_token, base_url=f"{workspace.url}/api/")
    answer = await client.apps_connections_open(app_token=workspace.app_token)
    return await session.ws_connect(answer["url"])


async def test_without_a_connection_the_person_gets_a_note_at_once(people: WorkspaceClient) -> None:
    result = await people.say("oncall", "incidents", "/triage")
    assert (result.ok, result.error) == (False, "dispatch_failed")
    assert "gpu-oncall did not respond" in result.notes[0]
    (note,) = await people.read("incidents", user="oncall")
    assert note.visible_to == "oncall"
    assert await people.read("incidents", user="lead") == ()


async def test_an_app_that_never_acknowledges_gets_one_redelivery_and_the_person_a_timeout(
    workspace: Workspace, people: WorkspaceClient
) -> None:
    async with aiohttp.ClientSession() as session:
        link = await open_link(workspace, session)
        hello = await link.receive_json()
        assert (hello["type"], hello["num_connections"]) == ("hello", 1)
        result = await people.say("oncall", "incidents", "/triage")
        assert result.error == "operation_timeout"
        assert 900 <= result.waited_ms < 3000
        first = await link.receive_json()
        again = await link.receive_json(timeout=5)
        assert again["envelope_id"] == first["envelope_id"]
        assert again["payload"] == first["payload"]
        assert (again["retry_attempt"], again["retry_reason"]) == (1, "timeout")
        with pytest.raises(asyncio.TimeoutError):
            await link.receive_json(timeout=2)
        await link.close()


async def test_an_acknowledged_envelope_is_not_sent_again(
    workspace: Workspace, people: WorkspaceClient
) -> None:
    async with aiohttp.ClientSession() as session:
        link = await open_link(workspace, session)
        await link.receive_json()
        saying = asyncio.create_task(people.say("oncall", "incidents", "/triage"))
        envelope = await link.receive_json()
        await link.send_str(
            json.dumps({"envelope_id": envelope["envelope_id"], "payload": {"text": "on it"}})
        )
        assert (await saying).notes == ("on it",)
        with pytest.raises(asyncio.TimeoutError):
            await link.receive_json(timeout=2)
        await link.close()


async def test_each_event_goes_to_one_of_several_connections_only(
    workspace: Workspace, people: WorkspaceClient, api: AsyncWebClient, start_bolt: BoltStarter
) -> None:
    seen: dict[str, list[str]] = {"first": [], "second": []}

    def noting(app: AsyncApp, texts: list[str]) -> AsyncApp:
        @app.command("/triage")
        async def triage(ack: Any, body: dict[str, Any]) -> None:
            await ack()
            texts.append(body["text"])

        return app

    for name, texts in seen.items():
        await start_bolt(noting(AsyncApp(client=api, name=name), texts))
    assert workspace.socket_mode.connection_count == 2
    for i in range(20):
        assert (await people.say("oncall", "incidents", f"/triage {i}")).ok
    everything = seen["first"] + seen["second"]
    assert sorted(everything, key=int) == [str(i) for i in range(20)]
    assert seen["first"]
    assert seen["second"]


async def test_an_event_without_a_connection_is_delivered_once_the_app_reconnects(
    workspace: Workspace, people: WorkspaceClient
) -> None:
    await people.say("oncall", "incidents", "anybody there?")
    async with aiohttp.ClientSession() as session:
        link = await open_link(workspace, session)
        await link.receive_json()
        envelope = await link.receive_json(timeout=5)
        assert envelope["type"] == "events_api"
        assert envelope["payload"]["event"]["text"] == "anybody there?"
        assert envelope["retry_attempt"] == 1
        await link.close()


async def test_slack_sdk_reconnects_to_a_restarted_workspace_that_kept_its_messages(
    tmp_path: Any,
) -> None:
    first = Workspace(port=0, state_file=tmp_path / "state.sqlite")
    await first.start()
    port = int(first.url.rsplit(":", 1)[1])
    received: list[str] = []

    async def listener(client: AsyncBaseSocketModeClient, request: SocketModeRequest) -> None:
        received.append(request.payload["text"])
        await client.send_socket_mode_response({"envelope_id": request.envelope_id})

    web = AsyncWebClient(token=first.bot_token, base_url=f"{first.url}/api/")
    client = SocketModeClient(app_token=first.app_token, web_client=web, ping_interval=0.3)
    client.socket_mode_request_listeners.append(listener)
    try:
        await client.connect()
        await until(lambda: first.socket_mode.connection_count == 1)
        posted = await web.chat_postMessage(channel="C0INCIDENTS", text="before")
        started = time.monotonic()
        await first.stop()
        assert time.monotonic() - started < 5
        second = Workspace(port=port, state_file=tmp_path / "state.sqlite")
        await second.start()
        try:
            await second.socket_mode.wait_connected(15)
            async with WorkspaceClient(second.url) as people:
                assert (await people.say("lead", "incidents", "/triage again")).ok
                assert received == ["again"]
                assert [entry.text for entry in await people.read("incidents")] == ["before"]
            await web.chat_update(channel="C0INCIDENTS", ts=posted["ts"], text="after")
        finally:
            await second.stop()
    finally:
        await client.close()
        client.message_processor.cancel()
        await client.aiohttp_client_session.close()


async def test_forged_urls_are_refused_and_expired_ones_get_a_disconnect_message(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aiohttp.ClientSession() as session:
        base = workspace.url.replace("http", "ws") + "/link/?ticket="
        for ticket in ("", "x", "1-2-3", "1-2-\u00fc", workspace.socket_mode.new_ticket()[:-1]):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(base + ticket)
            assert refused.value.status == 401
        monkeypatch.setattr(socket_mode, "TICKET_LIFE_S", -1.0)
        link = await session.ws_connect(base + workspace.socket_mode.new_ticket())
        answer = await link.receive_json()
        assert (answer["type"], answer["reason"]) == ("disconnect", "refresh_requested")
        assert workspace.socket_mode.connection_count == 0


async def test_an_eleventh_connection_is_refused(workspace: Workspace) -> None:
    async with aiohttp.ClientSession() as session:
        links = [await open_link(workspace, session) for _ in range(10)]
        for link in links:
            assert (await link.receive_json())["type"] == "hello"
        extra = await open_link(workspace, session)
        assert (await extra.receive_json())["reason"] == "too_many_websockets"
        for link in links:
            await link.close()


async def test_a_frame_that_is_not_json_does_not_end_the_connection(
    workspace: Workspace, people: WorkspaceClient
) -> None:
    async with aiohttp.ClientSession() as session:
        link = await open_link(workspace, session)
        await link.receive_json()
        await link.send_str("not json")
        await link.send_str('["envelope"]')
        await link.send_str('{"envelope_id": "unknown"}')
        saying = asyncio.create_task(people.say("oncall", "incidents", "/triage"))
        envelope = await link.receive_json()
        await link.send_json({"envelope_id": envelope["envelope_id"]})
        assert (await saying).ok
        await link.close()


async def test_two_hundred_commands_at_once_are_all_acknowledged(
    bolt_app: AsyncApp,
    start_bolt: BoltStarter,
    people: WorkspaceClient,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None is lost. How fast it is on an idle machine is the matter of benchmarks/ack.py."""
    monkeypatch.setattr(workspace.socket_mode, "_ack_timeout_s", 60.0)

    @bolt_app.command("/triage")
    async def triage(ack: Any) -> None:
        await ack()

    await start_bolt(bolt_app)
    results = await asyncio.gather(*(people.say("oncall", "incidents", f"/triage {i}") for i in range(200)))
    assert [result.error for result in results] == [None] * 200
