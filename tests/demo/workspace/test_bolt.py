"""A real Bolt app against the workspace: commands, buttons, mentions, private notes, files, response URLs, edits."""

import asyncio
from typing import Any

from slack_bolt.app.async_app import AsyncApp
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from demo.workspace import Workspace, WorkspaceClient
from tests.demo.workspace.conftest import BoltStarter, until

BUTTONS = [
    {"type": "section", "text": {"type": "mrkdwn", "text": "*Restore* `rs-1a2b`"}},
    {
        "type": "actions",
        "elements": [
            {
                "type": "button",
                "text": {"type": "plain_text", "text": "Approve"},
                "action_id": "gate.approve",
                "value": "rs-1a2b",
            },
            {
                "type": "button",
                "text": {"type": "plain_text", "text": "Deny"},
                "action_id": "gate.deny",
                "value": "rs-1a2b",
            },
        ],
    },
]


async def test_a_command_is_acknowledged_with_a_private_answer_and_a_channel_message(
    workspace: Workspace, bolt_app: AsyncApp, start_bolt: BoltStarter, people: WorkspaceClient
) -> None:
    bodies: list[dict[str, Any]] = []

    @bolt_app.command("/triage")
    async def triage(ack: Any, body: dict[str, Any], say: Any) -> None:
        bodies.append(body)
        await ack("looking")
        await say(text="verdict: healthy")

    await start_bolt(bolt_app)
    result = await people.say("oncall", "incidents", "/triage demo deep")
    assert result.ok
    assert result.notes == ("looking",)
    await until(lambda: len(workspace.state.messages["C0INCIDENTS"]) == 2)
    # The acknowledgement and the message use two connections, so either may arrive first.
    read = await people.read("incidents")
    assert {(entry.visible_to, entry.user, entry.text) for entry in read} == {
        ("oncall", "gpu-oncall", "looking"),
        (None, "gpu-oncall", "verdict: healthy"),
    }
    assert bodies[0]["command"] == "/triage"
    assert bodies[0]["text"] == "demo deep"
    assert bodies[0]["user_id"] == "U0ONCALL"
    assert bodies[0]["channel_name"] == "incidents"


async def test_a_button_press_reaches_the_app_and_edits_the_message_in_place(
    workspace: Workspace, bolt_app: AsyncApp, start_bolt: BoltStarter, people: WorkspaceClient
) -> None:
    presses: list[dict[str, Any]] = []

    @bolt_app.action("gate.approve")
    async def approve(ack: Any, body: dict[str, Any], client: AsyncWebClient) -> None:
        await ack()
        presses.append(body)
        await client.chat_update(
            channel=body["channel"]["id"],
            ts=body["message"]["ts"],
            text="approved",
            blocks=[
                {
                    "type": "section",
                    "text": {"type": "mrkdwn", "text": f"approved by <@{body['user']['id']}>"},
                }
            ],
        )

    await start_bolt(bolt_app)
    await bolt_app.client.chat_postMessage(channel="#incidents", text="restore?", blocks=BUTTONS)
    result = await people.press("lead", "approve", run="rs-1a2b")
    assert result.ok
    await until(lambda: presses)
    assert presses[0]["actions"][0]["value"] == "rs-1a2b"
    assert presses[0]["user"]["id"] == "U0LEAD"

    async def approved() -> bool:
        return [message.text for message in await people.read("incidents")] == ["approved by @lead"]

    await until(approved)
    (message,) = await people.read("incidents")
    assert not message.edited, "an edit with blocks leaves no mark in Slack"
    assert message.buttons == ()


async def test_a_mention_in_a_thread_reaches_the_app_with_its_thread(
    workspace: Workspace, bolt_app: AsyncApp, start_bolt: BoltStarter, people: WorkspaceClient
) -> None:
    events: list[dict[str, Any]] = []

    @bolt_app.event("app_mention")
    async def mention(event: dict[str, Any], say: Any) -> None:
        events.append(event)
        await say(text="approved", thread_ts=event["thread_ts"])

    await start_bolt(bolt_app)
    root = await people.say("oncall", "incidents", "the tier hangs")
    assert root.ts
    await people.say("lead", "incidents", "@gpu-oncall approve rs-1a2b", thread=root.ts)
    await until(lambda: len(workspace.state.replies("C0INCIDENTS", root.ts)) == 2)
    (message,) = await people.read("incidents")
    assert [(reply.user, reply.text) for reply in message.replies] == [
        ("lead", "@gpu-oncall approve rs-1a2b"),
        ("gpu-oncall", "approved"),
    ]
    assert events[0]["text"] == "<@U0GPUONCALL> approve rs-1a2b"
    assert events[0]["thread_ts"] == root.ts


async def test_plain_messages_reach_the_app_as_message_events(
    bolt_app: AsyncApp, start_bolt: BoltStarter, people: WorkspaceClient
) -> None:
    texts: list[str] = []

    @bolt_app.event("message")
    async def message(event: dict[str, Any]) -> None:
        texts.append(event["text"])

    await start_bolt(bolt_app)
    await people.say("viewer", "general", "is it <broken> & slow?")
    await until(lambda: texts)
    assert texts == ["is it &lt;broken&gt; &amp; slow?"]


async def test_only_one_person_sees_a_private_note(
    bolt_app: AsyncApp, start_bolt: BoltStarter, people: WorkspaceClient, api: AsyncWebClient
) -> None:
    await api.chat_postEphemeral(channel="C0INCIDENTS", user="U0VIEWER", text="you may not do that")
    assert [entry.text for entry in await people.read("incidents", user="viewer")] == ["you may not do that"]
    assert await people.read("incidents", user="lead") == ()
    history = await api.conversations_history(channel="C0INCIDENTS")
    assert history["messages"] == []


async def test_files_upload_v2_shows_a_picture_in_the_thread_and_keeps_its_bytes(
    workspace: Workspace, api: AsyncWebClient, people: WorkspaceClient
) -> None:
    root = await api.chat_postMessage(channel="C0INCIDENTS", text="load test")
    data = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 300
    done = await api.files_upload_v2(
        channel="C0INCIDENTS",
        thread_ts=root["ts"],
        file=data,
        filename="latency.png",
        title="Latency",
        initial_comment="here it is",
    )
    assert done["file"]["title"] == "Latency"
    (message,) = await people.read("incidents")
    (file,) = message.replies[0].files
    assert (file.title, file.media_type, file.size_bytes) == ("Latency", "image/png", len(data))
    assert message.replies[0].text.startswith("here it is")
    assert workspace.state.content(file.id) == data
    info = await api.files_info(file=file.id)
    assert info["file"]["shares"]["public"]["C0INCIDENTS"][0]["thread_ts"] == root["ts"]
    await api.files_delete(file=file.id)
    (message,) = await people.read("incidents")
    assert message.replies[0].files == ()


async def test_several_files_are_shared_in_one_message(api: AsyncWebClient, people: WorkspaceClient) -> None:
    await api.files_upload_v2(
        channel="C0INCIDENTS",
        file_uploads=[
            {"content": "a,b\n1,2\n", "filename": "figures.csv", "title": "Figures"},
            {"content": "{}", "filename": "report.json", "title": "Report"},
        ],
    )
    (message,) = await people.read("incidents")
    assert [file.name for file in message.files] == ["figures.csv", "report.json"]


async def test_a_response_url_takes_five_answers_privately_or_in_the_channel(
    workspace: Workspace, bolt_app: AsyncApp, start_bolt: BoltStarter, people: WorkspaceClient
) -> None:
    statuses: list[tuple[int, str]] = []
    done = asyncio.Event()

    @bolt_app.command("/loadtest")
    async def loadtest(ack: Any, respond: Any) -> None:
        await ack()
        for number in range(6):
            kind = "in_channel" if number == 4 else "ephemeral"
            answer = await respond(text=f"answer {number}", response_type=kind)
            statuses.append((answer.status_code, answer.body))
        done.set()

    await start_bolt(bolt_app)
    await people.say("oncall", "incidents", "/loadtest status")
    await asyncio.wait_for(done.wait(), 5)
    assert [status for status, _ in statuses] == [200] * 5 + [404]
    assert "used_url" in statuses[5][1]
    read = await people.read("incidents")
    assert [(entry.text, entry.visible_to) for entry in read] == [
        *((f"answer {number}", "oncall") for number in range(4)),
        ("answer 4", None),
    ]


async def test_the_response_url_of_a_press_replaces_and_deletes_its_message(
    bolt_app: AsyncApp, start_bolt: BoltStarter, people: WorkspaceClient, api: AsyncWebClient
) -> None:
    done = asyncio.Event()

    @bolt_app.action("gate.deny")
    async def deny(ack: Any, respond: Any) -> None:
        await ack()
        await respond(text="denied", replace_original=True)
        done.set()

    @bolt_app.action("gate.approve")
    async def approve(ack: Any, respond: Any) -> None:
        await ack()
        await respond(delete_original=True)
        done.set()

    await start_bolt(bolt_app)
    for word, left in (("Deny", ["denied"]), ("Approve", ["denied"])):
        done.clear()
        await api.chat_postEphemeral(channel="C0INCIDENTS", user="U0LEAD", text="?", blocks=BUTTONS)
        assert (await people.press("lead", word, run="rs-1a2b")).ok
        await asyncio.wait_for(done.wait(), 5)
        assert [entry.text for entry in await people.read("incidents", user="lead")] == left


async def test_the_app_receives_slacks_error_codes(api: AsyncWebClient) -> None:
    answers = {}
    for name, call in {
        "channel_not_found": api.chat_postMessage(channel="C0NOWHERE", text="x"),
        "no_text": api.chat_postMessage(channel="C0INCIDENTS", text=""),
        "msg_too_long": api.chat_postMessage(channel="C0INCIDENTS", text="x" * 40_001),
        "message_not_found": api.chat_update(channel="C0INCIDENTS", ts="1.000000", text="x"),
        "unknown_method": api.api_call("chat.shout"),
        "thread_not_found": api.chat_postMessage(channel="C0INCIDENTS", text="x", thread_ts="1.000000"),
    }.items():
        try:
            await call
        except SlackApiError as error:
            answers[name] = error.response["error"]
    assert answers == {name: name for name in answers}
    assert len(answers) == 6


async def test_an_app_gets_its_own_messages_where_it_reads_them(
    api: AsyncWebClient, start_bolt: BoltStarter
) -> None:
    seen: list[dict[str, Any]] = []
    bolt_app = AsyncApp(client=api, ignoring_self_events_enabled=False)

    @bolt_app.event("message")
    async def message(event: dict[str, Any]) -> None:
        seen.append(event)

    await start_bolt(bolt_app)
    opened = await api.conversations_open(users="U0ONCALL")
    await api.chat_postMessage(channel=opened["channel"]["id"], text="hello")
    await until(lambda: seen)
    assert (seen[0]["bot_id"], seen[0]["channel_type"], seen[0]["text"]) == ("B0GPUONCALL", "im", "hello")
