"""The workspace as a process, its state file, its side panel, and the errors for impossible acts."""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from demo.workspace import PanelAction, Workspace, WorkspaceClient
from demo.workspace.client import WorkspaceError
from demo.workspace.manifest import read_manifest
from demo.workspace.team import App
from demo.workspace.transcript import ButtonNotFound

MANIFEST = {
    "features": {"slash_commands": [{"command": "/triage", "description": "Look"}]},
    "oauth_config": {
        "scopes": {"bot": ["chat:write", "commands", "files:write", "files:read", "channels:manage"]}
    },
}


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Start a workspace process and return it with its URL. SIGTERM ends it and must end it cleanly."""
    environment = {"PATH": os.environ["PATH"], "SLACK_BOT_TOKEN": "xoxb-mine", "SLACK_APP_TOKEN": "xapp-mine"}
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "demo.workspace", "--port", "0", *arguments,
        stdout=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    try:
        assert started.stdout
        line = (await asyncio.wait_for(started.stdout.readline(), 30)).decode()
        assert line.startswith("workspace: http://127.0.0.1:")
        yield started, line.split()[1]
    finally:
        if started.returncode is None:
            started.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(started.wait(), 10) in (0, -signal.SIGKILL)


async def test_messages_threads_and_files_survive_a_kill_of_the_process(tmp_path: Path) -> None:
    state, manifest = tmp_path / "state.sqlite", tmp_path / "manifest.json"
    manifest.write_text(json.dumps(MANIFEST))
    arguments = ("--state", str(state), "--manifest", str(manifest))
    async with process(*arguments) as (first, url):
        api = AsyncWebClient(token="xoxb-mine", base_url=f"{url}/api/")
        root = (await api.chat_postMessage(channel="C0INCIDENTS", text="root"))["ts"]
        await api.files_upload_v2(channel="C0INCIDENTS", thread_ts=root, content="1,2", filename="a.csv")
        await api.chat_postEphemeral(channel="C0INCIDENTS", user="U0LEAD", text="gone with the page")
        made = await api.conversations_create(name="inc-1")
        await api.conversations_invite(channel=made["channel"]["id"], users="U0LEAD")
        first.send_signal(signal.SIGKILL)
        await first.wait()
    async with process(*arguments) as (_, url), WorkspaceClient(url) as people:
        (message,) = await people.read("incidents")
        assert (message.text, message.ts) == ("root", root)
        assert message.replies[0].files[0].url.startswith(url)
        state_of_lead = await people.state("lead")
        assert [entry["command"] for entry in state_of_lead["commands"]] == ["/triage"]
        assert made["channel"]["id"] in [entry["id"] for entry in state_of_lead["channels"]]
        api = AsyncWebClient(token="xoxb-mine", base_url=f"{url}/api/")
        later = await api.chat_postMessage(channel="C0INCIDENTS", text="later", thread_ts=root)
        assert float(later["ts"]) > float(root)


@pytest.mark.parametrize(
    ("arguments", "error_text"),
    [
        (["--host", "0.0.0.0"], "loopback only"),
        (["--state", "TEXT"], "not a workspace state file"),
        (["--manifest", "TEXT"], "cannot read the manifest"),
        (["--manifest", "MISSING"], "MISSING"),
    ],
)
async def test_a_wrong_argument_prints_one_line_and_exits_with_2(
    tmp_path: Path, arguments: list[str], error_text: str
) -> None:
    (tmp_path / "TEXT").write_text("neither SQLite nor JSON " * 100)
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "demo.workspace", "--port", "0", arguments[0],
        str(tmp_path / arguments[1]) if arguments[1].isupper() else arguments[1],
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, error = await asyncio.wait_for(started.communicate(), 30)
    assert started.returncode == 2
    lines = error.decode().strip().split("\n")
    assert len(lines) == 1
    assert error_text in lines[0]


def test_commands_are_read_from_a_yaml_manifest(tmp_path: Path) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text("features:\n  slash_commands:\n    - command: /triage\n      usage_hint: '[host]'\n")
    (command,), app = read_manifest(path, App())
    assert (app.scopes, app.events, app.has_home_tab) == ((), (), False), (
        "what it does not name the app does not have"
    )
    assert (command.command, command.usage_hint) == ("/triage", "[host]")
    path.write_text("features: [")
    with pytest.raises(ValueError, match="manifest"):
        read_manifest(path, App())
    path.write_text("features:\n  slash_commands:\n    - command: triage\n")
    with pytest.raises(ValueError, match=r"slash_commands\[0\].command is 'triage'"):
        read_manifest(path, App())


async def test_a_process_grants_what_the_manifest_says_and_limits_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(MANIFEST))
    async with process("--manifest", str(path)) as (_, url):
        api = AsyncWebClient(token="xoxb-mine", base_url=f"{url}/api/")
        with pytest.raises(SlackApiError) as refused:
            await api.users_info(user="U0LEAD")
        assert refused.value.response["error"] == "missing_scope"
        assert refused.value.response["needed"] == "users:read"
        with pytest.raises(SlackApiError, match="not_enabled"):
            await api.views_publish(user_id="U0LEAD", view={"type": "home", "blocks": [{"type": "divider"}]})
        for number in range(10):
            await api.chat_postMessage(channel="C0INCIDENTS", text=str(number))
        with pytest.raises(SlackApiError) as limited:
            await api.chat_postMessage(channel="C0INCIDENTS", text="one too many")
        assert (limited.value.response.status_code, limited.value.response["error"]) == (429, "ratelimited")
        assert int(limited.value.response.headers["Retry-After"]) >= 1
        await api.chat_postMessage(channel="C0GENERAL", text="another channel has its own limit")
        async with WorkspaceClient(url) as people:
            with pytest.raises(WorkspaceError, match="has been turned off"):
                await people.say("oncall", "@gpu-oncall", "hello")


async def test_a_state_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(ValueError, match="version 99"):
        Workspace(port=0, state_file=path)


async def test_the_panel_shows_and_runs_the_buttons_of_its_service() -> None:
    pressed: list[str] = []

    async def listing(_: web.Request) -> web.Response:
        active = bool(pressed)
        return web.json_response([{"id": "freeze", "label": "Freeze", "style": "danger", "active": active}])

    async def press(request: web.Request) -> web.Response:
        if request.match_info["id"] != "freeze":
            return web.json_response({"text": "no such fault"}, status=404)
        pressed.append("freeze")
        return web.json_response({"text": "frozen"})

    service = web.Application()
    service.add_routes([web.get("/panel", listing), web.post("/panel/{id}", press)])
    runner = web.AppRunner(service)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    panel_url = f"http://127.0.0.1:{runner.addresses[0][1]}/panel"

    async def own() -> str:
        return "mended"

    async with (
        Workspace(
            port=0, panel=[PanelAction("mend", "Mend it", callback=own)], panel_url=panel_url
        ) as running,
        WorkspaceClient(running.url) as people,
    ):
        assert [entry["id"] for entry in await people.panel()] == ["mend", "freeze"]
        assert await people.panel_press("freeze") == "frozen"
        assert (await people.panel())[1]["active"] is True
        assert await people.panel_press("mend") == "mended"
        with pytest.raises(WorkspaceError, match="no such fault"):
            await people.panel_press("burn")
        await runner.cleanup()
        with pytest.raises(WorkspaceError, match="did not answer"):
            await people.panel()


def test_a_panel_action_needs_a_callback_or_a_url() -> None:
    with pytest.raises(ValueError, match="'x' needs either a callback or a url"):
        Workspace(port=0, panel=[PanelAction("x", "X")])


async def test_impossible_acts_are_refused_with_one_clear_line(
    people: WorkspaceClient, api: AsyncWebClient
) -> None:
    with pytest.raises(
        WorkspaceError,
        match="no user 'nobody' in this workspace; there are oncall, lead, viewer, guest, partner, former",
    ):
        await people.say("nobody", "incidents", "x")
    with pytest.raises(
        WorkspaceError, match="no channel 'nowhere' in this workspace; there are incidents, general"
    ):
        await people.say("lead", "nowhere", "x")
    with pytest.raises(WorkspaceError, match="empty"):
        await people.say("lead", "incidents", "  ")
    with pytest.raises(WorkspaceError, match=r"no thread 1\.0"):
        await people.say("lead", "incidents", "x", thread="1.0")
    with pytest.raises(WorkspaceError, match="no channel 'nowhere'; there are"):
        await people.read("nowhere")
    with pytest.raises(ButtonNotFound, match="no button 'approve' with run rs-1"):
        await people.press("lead", "approve", run="rs-1")
    result = await people.say(
        "lead",
        "incidents",
        "/triage",
        thread=(await api.chat_postMessage(channel="C0INCIDENTS", text="x"))["ts"],
    )
    assert result.error == "not_supported_in_threads"


async def test_a_client_without_a_workspace_says_how_to_start_one() -> None:
    async with WorkspaceClient("http://127.0.0.1:9") as people:
        with pytest.raises(WorkspaceError, match=r"no workspace answers at .*make demo"):
            await people.read("incidents")
