"""The Web API at its edges: tokens, bodies, threads, edits, pages, metadata, reactions, channels, middlewares."""

import asyncio
import dataclasses
import time
from typing import Any

import aiohttp
import pytest
from slack_sdk.errors import SlackApiError
from slack_sdk.http_retry.builtin_async_handlers import AsyncRateLimitErrorRetryHandler
from slack_sdk.web.async_client import AsyncWebClient

from bot.slack.canvas import fitted
from demo.workspace import Workspace, WorkspaceClient
from demo.workspace.client import WorkspaceError
from demo.workspace.team import DEFAULT_SCOPES, App, Team
from demo.workspace.webapi import METHODS, ApiCall, ApiError, Handler

HERE = "C0INCIDENTS"
DIVIDER = [{"type": "divider"}]


async def refused(call: Any) -> str:
    """Return the error code of a call that must fail."""
    with pytest.raises(SlackApiError) as error:
        await call
    return str(error.value.response["error"])


async def test_faults_are_switched_from_outside_and_a_wrong_switch_changes_nothing(
    workspace: Workspace, api: AsyncWebClient, people: WorkspaceClient
) -> None:
    assert await people.switch_faults("error=chat.postMessage:503", "clock=600", "deaf") == [
        "deaf", "clock=600", "error=chat.postMessage:internal_error",
    ]  # fmt: skip
    with pytest.raises(SlackApiError) as failed:
        await api.chat_postMessage(channel=HERE, text="x")
    assert failed.value.response.status_code == 503
    for wrong in ("loud", "late=soon", "error=", "lost=:1", "error=chat.update:7"):
        with pytest.raises(WorkspaceError, match="is no switch"):
            await people.switch_faults("off", wrong)
    assert workspace.faults.deaf
    assert await people.switch_faults("off", "clock=-600") == ["clock=-600"]
    answer = await api.chat_postMessage(channel=HERE, text="x")
    assert -660 < float(answer["ts"]) - time.time() < -540
    assert await people.switch_faults("off") == []


async def test_auth_test_names_the_bot_and_its_scopes(api: AsyncWebClient, workspace: Workspace) -> None:
    answer = await api.auth_test()
    assert (answer["user_id"], answer["bot_id"]) == ("U0GPUONCALL", "B0GPUONCALL")
    assert answer["url"] == workspace.url + "/"
    assert "chat:write" in answer.headers["x-oauth-scopes"]


@pytest.mark.parametrize(
    ("method", "token", "error"),
    [
        ("auth.test", "", "not_authed"),
        ("auth.test", "xoxb-wrong", "invalid_auth"),
        ("auth.test", "APP", "not_allowed_token_type"),
        ("apps.connections.open", "BOT", "not_allowed_token_type"),
        ("chat.nothing", "BOT", "unknown_method"),
    ],
)
async def test_tokens_are_checked(workspace: Workspace, method: str, token: str, error: str) -> None:
    token = {"BOT": workspace.bot_token, "APP": workspace.app_token}.get(token, token)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{workspace.url}/api/{method}") as answer,
    ):
        assert answer.status == 200
        body = await answer.json()
        assert (body["ok"], body["error"]) == (False, error)


async def test_a_call_without_its_scope_is_refused_and_the_scope_is_named() -> None:
    async with Workspace(port=0, team=Team(app=App(scopes=("channels:read",)))) as workspace:
        api = AsyncWebClient(token=workspace.bot_token, base_url=f"{workspace.url}/api/")
        assert (await api.conversations_info(channel=HERE))["ok"]
        with pytest.raises(SlackApiError) as error:
            await api.chat_postMessage(channel=HERE, text="x")
    answer = error.value.response
    assert (answer["error"], answer["needed"], answer["provided"]) == (
        "missing_scope",
        "chat:write",
        "channels:read",
    )


def test_the_default_scopes_allow_every_method() -> None:
    refused_methods = [
        name
        for name, method in METHODS.items()
        if method.scopes and not set(method.scopes) & set(DEFAULT_SCOPES)
    ]
    assert refused_methods == []


@pytest.mark.parametrize("kind", ["json", "data", "params"])
async def test_json_form_and_query_arguments_are_equivalent(workspace: Workspace, kind: str) -> None:
    blocks: Any = DIVIDER if kind == "json" else '[{"type": "divider"}]'
    arguments: Any = {"channel": "#incidents", "text": "x", "blocks": blocks}
    headers = {"Authorization": f"Bearer {workspace.bot_token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{workspace.url}/api/chat.postMessage", **{kind: arguments}) as answer,
    ):
        body = await answer.json()
    assert body["ok"], body
    assert body["message"]["blocks"][0]["type"] == "divider"


async def test_a_body_that_is_not_json_is_refused(workspace: Workspace) -> None:
    headers = {"Authorization": f"Bearer {workspace.bot_token}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for data, error in (("{", "invalid_json"), ("[]", "json_not_object")):
            async with session.post(f"{workspace.url}/api/chat.postMessage", data=data) as answer:
                assert (await answer.json())["error"] == error


async def test_the_error_of_refused_blocks_points_to_the_place(api: AsyncWebClient) -> None:
    with pytest.raises(SlackApiError) as error:
        await api.chat_postMessage(
            channel=HERE,
            text="x",
            blocks=[{"type": "header", "text": {"type": "plain_text", "text": "x" * 151}}],
        )
    response = error.value.response
    assert response["error"] == "invalid_blocks"
    assert response["errors"] == ["must be less than 151 characters [json-pointer:/blocks/0/text/text]"]
    assert response["response_metadata"]["messages"][0].startswith("[ERROR] must be less than 151")


async def test_an_edit_with_text_alone_removes_the_blocks_and_marks_the_message_edited(
    api: AsyncWebClient,
) -> None:
    posted = await api.chat_postMessage(channel=HERE, text="x", blocks=DIVIDER)
    edited = await api.chat_update(channel=HERE, ts=posted["ts"], text="y", blocks=DIVIDER)
    assert "edited" not in edited["message"]
    edited = await api.chat_update(channel=HERE, ts=posted["ts"], text="z")
    assert "blocks" not in edited["message"]
    assert edited["message"]["edited"]["user"] == "U0GPUONCALL"
    assert await refused(api.chat_update(channel=HERE, ts=posted["ts"], text="x" * 4001)) == "msg_too_long"
    wrong = api.chat_update(channel=HERE, ts=posted["ts"], text="half", metadata={"event_type": "run"})
    assert await refused(wrong) == "invalid_metadata_format"
    history = await api.conversations_history(channel=HERE)
    assert history["messages"][0]["text"] == "z", "a refused edit must change nothing"


async def test_a_persons_message_cannot_be_edited_or_deleted_by_the_app(
    api: AsyncWebClient, people: WorkspaceClient
) -> None:
    message = await people.say("lead", "incidents", "mine")
    assert message.ts
    assert await refused(api.chat_update(channel=HERE, ts=message.ts, text="x")) == "cant_update_message"
    assert await refused(api.chat_delete(channel=HERE, ts=message.ts)) == "cant_delete_message"
    posted = await api.chat_postMessage(channel=HERE, text="x")
    await api.chat_delete(channel=HERE, ts=posted["ts"])
    assert await refused(api.chat_delete(channel=HERE, ts=posted["ts"])) == "message_not_found"


async def test_the_first_message_of_a_thread_summarises_its_replies(
    api: AsyncWebClient, people: WorkspaceClient
) -> None:
    root = (await api.chat_postMessage(channel=HERE, text="root"))["ts"]
    reply = await api.chat_postMessage(channel=HERE, text="1", thread_ts=root)
    await people.say("lead", "incidents", "2", thread=root)
    shared = await api.chat_postMessage(channel=HERE, text="3", thread_ts=root, reply_broadcast=True)
    answer = await api.conversations_replies(channel=HERE, ts=root)
    assert [entry["text"] for entry in answer["messages"]] == ["root", "1", "2", "3"]
    assert (answer["messages"][0]["reply_count"], answer["messages"][0]["latest_reply"]) == (3, shared["ts"])
    history = await api.conversations_history(channel=HERE)
    assert [entry["text"] for entry in history["messages"]] == ["3", "root"]
    wrong = api.chat_postMessage(channel=HERE, text="x", thread_ts=reply["ts"])
    assert await refused(wrong) == "thread_not_found"
    assert await refused(api.conversations_replies(channel=HERE, ts="1.0")) == "thread_not_found"


async def test_history_is_newest_first_in_pages_and_ranges(api: AsyncWebClient) -> None:
    times = [(await api.chat_postMessage(channel=HERE, text=str(i)))["ts"] for i in range(7)]
    texts: list[str] = []
    async for page in await api.conversations_history(channel=HERE, limit=3):
        texts += [entry["text"] for entry in page["messages"]]
    assert texts == ["6", "5", "4", "3", "2", "1", "0"]
    ranged = await api.conversations_history(channel=HERE, oldest=times[2], latest=times[5])
    assert [entry["text"] for entry in ranged["messages"]] == ["4", "3"]
    inclusive = await api.conversations_history(
        channel=HERE, oldest=times[2], latest=times[5], inclusive=True
    )
    assert [entry["text"] for entry in inclusive["messages"]] == ["5", "4", "3", "2"]


async def test_metadata_is_returned_only_on_request(api: AsyncWebClient) -> None:
    metadata = {"event_type": "run", "event_payload": {"id": "fb-1"}}
    await api.chat_postMessage(channel=HERE, text="x", metadata=metadata)
    plain = await api.conversations_history(channel=HERE)
    assert "metadata" not in plain["messages"][0]
    full = await api.conversations_history(channel=HERE, include_all_metadata=True)
    assert full["messages"][0]["metadata"] == metadata
    wrong = api.chat_postMessage(channel=HERE, text="x", metadata={"event_type": "run"})
    assert await refused(wrong) == "invalid_metadata_format"


async def test_channels_can_be_created_left_joined_and_archived(api: AsyncWebClient) -> None:
    made = (await api.conversations_create(name="inc-2026-001"))["channel"]
    assert await refused(api.conversations_create(name="inc-2026-001")) == "name_taken"
    assert await refused(api.conversations_create(name="Inc!")) == "invalid_name_specials"
    await api.conversations_setTopic(channel=made["id"], topic="NVLink")
    info = await api.conversations_info(channel=made["id"])
    assert (info["channel"]["topic"]["value"], info["channel"]["is_member"]) == ("NVLink", True)
    await api.conversations_leave(channel=made["id"])
    assert await refused(api.chat_postMessage(channel=made["id"], text="x")) == "not_in_channel"
    await api.conversations_join(channel=made["id"])
    await api.chat_postMessage(channel="#inc-2026-001", text="x")
    await api.conversations_archive(channel=made["id"])
    assert await refused(api.chat_postMessage(channel=made["id"], text="x")) == "is_archived"
    names = [entry["name"] for entry in (await api.conversations_list(exclude_archived=True))["channels"]]
    assert names == ["incidents", "general"]
    members = (await api.conversations_members(channel=HERE))["members"]
    assert members == ["U0ONCALL", "U0LEAD", "U0VIEWER", "U0GUEST", "U0PARTNER", "U0FORMER", "U0GPUONCALL"]
    members = (await api.conversations_members(channel="C0GENERAL"))["members"]
    assert members == ["U0ONCALL", "U0LEAD", "U0VIEWER", "U0FORMER", "U0GPUONCALL"], (
        "outsiders are in the shared channel only"
    )


async def test_only_the_person_in_it_sees_a_direct_message(
    api: AsyncWebClient, people: WorkspaceClient
) -> None:
    opened = await api.conversations_open(users="U0LEAD")
    await api.chat_postMessage(channel=opened["channel"]["id"], text="wake up")
    await api.chat_postMessage(channel="U0LEAD", text="really")
    state = await people.state("lead")
    texts = [entry["text"] for entry in state["messages"][opened["channel"]["id"]]]
    assert texts == ["wake up", "really"]
    assert opened["channel"]["id"] not in (await people.state("viewer"))["messages"]
    assert await people.read(user="viewer") == ()
    assert [message.text for message in await people.read(user="lead")] == ["wake up", "really"]


async def test_people_and_groups_are_listed(api: AsyncWebClient) -> None:
    groups = {entry["handle"]: entry["id"] for entry in (await api.usergroups_list())["usergroups"]}
    members = await api.usergroups_users_list(usergroup=groups["oncall-engineers"])
    assert members["users"] == ["U0ONCALL", "U0LEAD"]
    leads = await api.usergroups_users_list(usergroup=groups["incident-leads"])
    assert leads["users"] == ["U0LEAD"]
    assert await refused(api.usergroups_users_list(usergroup="S0NONE")) == "no_such_subteam"
    assert (await api.users_info(user="U0LEAD"))["user"]["name"] == "lead"
    assert (await api.users_info(user="U0GPUONCALL"))["user"]["is_bot"]
    assert await refused(api.users_info(user="U0NOBODY")) == "user_not_found"
    kinds = {user["name"]: user for user in (await api.users_list())["members"]}
    assert len(kinds) == 7
    assert (kinds["guest"]["is_restricted"], kinds["guest"]["team_id"]) == (True, "T0LOCAL")
    assert kinds["partner"]["team_id"] == "T0PARTNER"
    assert [name for name, user in kinds.items() if user["deleted"]] == ["former"]
    assert (await api.users_profile_get(user="U0LEAD"))["profile"]["title"] == "incident lead"


async def test_reactions_and_pins_are_set_once_and_removed_once(api: AsyncWebClient) -> None:
    ts = (await api.chat_postMessage(channel=HERE, text="x"))["ts"]
    await api.reactions_add(channel=HERE, timestamp=ts, name="eyes")
    assert await refused(api.reactions_add(channel=HERE, timestamp=ts, name="eyes")) == "already_reacted"
    await api.reactions_remove(channel=HERE, timestamp=ts, name="eyes")
    assert await refused(api.reactions_remove(channel=HERE, timestamp=ts, name="eyes")) == "no_reaction"
    await api.pins_add(channel=HERE, timestamp=ts)
    assert await refused(api.pins_add(channel=HERE, timestamp=ts)) == "already_pinned"
    assert (await api.pins_list(channel=HERE))["items"][0]["message"]["ts"] == ts
    await api.pins_remove(channel=HERE, timestamp=ts)
    assert await refused(api.pins_remove(channel=HERE, timestamp=ts)) == "no_pin"
    link = await api.bookmarks_add(channel_id=HERE, title="Runbook", type="link", link="http://127.0.0.1/r")
    assert link["bookmark"]["title"] == "Runbook"
    bad = api.bookmarks_add(channel_id=HERE, title="x", type="link", link="javascript:alert(1)")
    assert await refused(bad) == "invalid_link"


async def test_a_canvas_is_as_strict_as_slack_s(workspace: Workspace, api: AsyncWebClient) -> None:
    def content(markdown: str) -> dict[str, str]:
        return {"type": "markdown", "markdown": markdown}

    long = "\n".join(["| a | b | c |", "|---|---|---|", *(f"| {n} | x | y |" for n in range(120))])
    for markdown in (long, "#### deep", "> - a list", "x" * 2**20 + "x"):
        call = api.canvases_create(title="t", document_content=content(markdown))
        assert await refused(call) == "canvas_creation_failed"
    assert fitted(long).count("| a | b | c |") == 2 and fitted(long).count(" | x | y |") == 120
    plain = await api.canvases_create(title="t", document_content=content(fitted(f"# x\n\n{long}")))
    canvas = str(plain["canvas_id"])
    both = {"canvas_id": canvas, "access_level": "read", "channel_ids": [HERE], "user_ids": ["U0LEAD"]}
    assert await refused(api.canvases_access_set(**both)) == "invalid_parameters"
    nowhere = api.canvases_access_set(canvas_id=canvas, access_level="read", channel_ids=["C0NOWHERE"])
    assert await refused(nowhere) == "channel_not_found"
    async with aiohttp.ClientSession() as browser:  # who was not given access cannot open it
        async with browser.get(f"{workspace.url}/docs/T0LOCAL/{canvas}", params={"user": "oncall"}) as page:
            assert page.status == 403
        await api.canvases_access_set(canvas_id=canvas, access_level="write", channel_ids=[HERE])
        async with browser.get(f"{workspace.url}/docs/T0LOCAL/{canvas}", params={"user": "oncall"}) as page:
            assert "<h1>x</h1>" in await page.text()
    await api.canvases_delete(canvas_id=canvas)
    assert await refused(api.canvases_delete(canvas_id=canvas)) == "canvas_not_found"
    workspace.state.team = dataclasses.replace(workspace.state.team, plan="free")
    alone = api.canvases_create(title="t", document_content=content("x"))
    assert await refused(alone) == "free_teams_cannot_create_non_tabbed_canvases"


async def test_a_file_needs_its_bytes_and_its_announced_size(
    api: AsyncWebClient, workspace: Workspace
) -> None:
    announced = await api.files_getUploadURLExternal(filename="a.txt", length=5)
    complete = {"files": [{"id": announced["file_id"]}], "channel_id": HERE}
    assert await refused(api.files_completeUploadExternal(**complete)) == "file_not_found"
    async with aiohttp.ClientSession() as session:
        async with session.post(announced["upload_url"], data=b"four") as answer:
            assert answer.status == 400
        async with session.post(announced["upload_url"], data=b"fives") as answer:
            assert answer.status == 200
        async with session.post(announced["upload_url"], data=b"again") as answer:
            assert answer.status == 404
    wrong = {**complete, "channel_id": "C0NOWHERE"}
    assert await refused(api.files_completeUploadExternal(**wrong)) == "channel_not_found"
    await api.files_completeUploadExternal(**complete)
    assert await refused(api.files_completeUploadExternal(**complete)) == "file_not_found"


async def test_a_middleware_can_limit_rates_and_inject_faults(
    workspace: Workspace, api: AsyncWebClient
) -> None:
    calls: list[str] = []

    async def limit(call: ApiCall, run: Handler) -> dict[str, Any]:
        calls.append(call.method)
        if len(calls) == 1:
            raise ApiError("ratelimited", status=429, headers={"Retry-After": "1"})
        return await run(call)

    workspace.web_api.middlewares.append(limit)
    with pytest.raises(SlackApiError) as error:
        await api.chat_postMessage(channel=HERE, text="x")
    assert error.value.response.status_code == 429
    calls.clear()
    api.retry_handlers.append(AsyncRateLimitErrorRetryHandler(max_retry_count=1))
    async with asyncio.timeout(10):
        assert (await api.chat_postMessage(channel=HERE, text="x"))["ok"]
    assert calls == ["chat.postMessage"] * 2
