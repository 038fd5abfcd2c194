"""HTTP mode: its manifest names the address wherever Slack needs it, and only fresh requests that Slack signed are taken."""

import asyncio
import hashlib
import hmac
import json
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
from aiohttp import ClientSession

from bot.settings.model import SlackSettings, WebSettings
from bot.slack import connection
from bot.slack.manifest import manifest
from bot.slack.self_event import CAME_BACK
from bot.store.records import RunStatus
from demo.workspace import Workspace
from demo.workspace.webapi import ApiCall, Handler
from gpu_actions.models import JsonObject
from handlers import SLASH_COMMANDS
from tests.bot.desk import sitting_down
from tests.bot.slack.test_connection import quick_probes, turns
from tests.bot.slack.test_posts import HERE
from tests.bot.toys import ONCALL
from tests.ports import free_port


def test_the_manifest_of_http_mode_has_the_address_in_every_place_that_slack_needs() -> None:
    made = manifest(SlackSettings(), SLASH_COMMANDS, http_url="https://bot.example/")
    url = "https://bot.example/slack/events"
    assert {command["url"] for command in made["features"]["slash_commands"]} == {url}
    settings = made["settings"]
    assert settings["event_subscriptions"]["request_url"] == settings["interactivity"]["request_url"] == url
    assert settings["socket_mode_enabled"] is False
    assert "url" not in str(manifest(SlackSettings(), SLASH_COMMANDS))


SECRET = "8f742231b10e8888abcd99yyyzzz85a5"


async def post_signed(
    url: str, fields: dict[str, str] | str, *, age_s: float = 0.0, secret: str = SECRET, forged: str = ""
) -> int:
    """Post a request as Slack does in HTTP mode, signed `age_s` ago; return the status of the answer."""
    is_event = isinstance(fields, str)
    body, at = fields if isinstance(fields, str) else urlencode(fields), str(int(time.time() - age_s))
    signature = hmac.new(secret.encode(), f"v0:{at}:{body}".encode(), hashlib.sha256).hexdigest()
    headers = {
        "X-Slack-Request-Timestamp": at,
        "X-Slack-Signature": f"v0={signature}",
        "Content-Type": "application/json" if is_event else "application/x-www-form-urlencoded",
    }
    async with ClientSession() as session, session.post(url, data=body + forged, headers=headers) as answer:
        return answer.status


async def test_health_says_that_slacks_requests_do_not_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_probes(monkeypatch)
    monkeypatch.setattr(connection, "TICK_S", 0.1)
    port = free_port()
    free_port()
    url = f"http://127.0.0.1:{port + 1}/slack/events"
    is_reachable = True
    posting: set[asyncio.Task[int]] = set()

    async def slack(call: ApiCall, handler: Handler) -> JsonObject:
        """Send the event of the bot's own reaction, as Slack does, while it reaches the bot."""
        if call.method == "reactions.add" and is_reachable:
            event = {"type": "reaction_added", "user": call.state.bot_user, "reaction": "x", "item": {}}
            body = {"type": "event_callback", "team_id": "T0LOCAL", "event": event, "event_id": "Ev1"}
            posting.add(asyncio.create_task(post_signed(url, json.dumps(body))))
        return await handler(call)

    http = {"mode": "http", "signing_secret": SECRET, "app_token": ""}
    async with (
        Workspace(port=0, api_middlewares=[slack]) as workspace,
        sitting_down(tmp_path, workspace, slack_changes=http, web=WebSettings(port=port)) as it,
    ):
        await it.bot.runs.start(
            action="triage", host=None, options={}, requester=ONCALL, place=HERE, dedupe_key="k"
        )
        while not it.bot.store.deliveries.seen(CAME_BACK):
            await asyncio.sleep(0.05)
        await turns(it, 200)
        is_reachable = False
        await turns(it, 503, "no request of Slack has come")
        is_reachable = True
        await turns(it, 200)


async def test_http_mode_works_from_the_printed_manifest_and_takes_only_fresh_requests_of_slack(
    tmp_path: Path,
) -> None:
    port = free_port()
    free_port()  # the one after it is that of HTTP mode
    http = {"mode": "http", "signing_secret": SECRET, "app_token": ""}
    async with (
        Workspace(port=0) as workspace,
        sitting_down(tmp_path, workspace, slack_changes=http, web=WebSettings(port=port)) as it,
    ):
        public = f"http://127.0.0.1:{it.bot.settings.web.port + 1}"  # what a reverse proxy forwards to
        made = manifest(it.bot.settings.slack, SLASH_COMMANDS, http_url=public)
        (url,) = {command["url"] for command in made["features"]["slash_commands"]}
        people = await it.people.state("oncall")
        user = next(one["id"] for one in people["users"] if one["name"] == "oncall")
        channel = next(one["id"] for one in people["channels"] if one["name"] == "incidents")
        command = {
            "token": "t", "team_id": people["team"]["id"], "api_app_id": "A1", "channel_id": channel,
            "channel_name": "incidents", "user_id": user, "user_name": "oncall",
            "command": "/fallback", "text": "start", "trigger_id": "1.2.3", "response_url": f"{workspace.url}/none",
        }  # fmt: skip
        for refused in (
            {"secret": "another"},
            {"forged": "&text=stop"},
            {"age_s": 310.0},
            {"age_s": -310.0},
        ):
            assert await post_signed(url, command, **refused) == 401, refused  # type: ignore[arg-type]
        assert it.bot.runs.list() == []
        assert await post_signed(url, command, age_s=240) == 200
        assert (await it.run("fallback")).status is RunStatus.SUCCEEDED
        assert await post_signed(url, command, age_s=240) == 200, "Slack delivers again what it thinks lost"
        await it.hears("Fallback on toy: done")
        await asyncio.sleep(0.5)
        assert len(it.bot.runs.list()) == 1
