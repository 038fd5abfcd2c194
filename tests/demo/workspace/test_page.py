"""The page in headless Chromium with a real Bolt app behind it: what an on-call engineer does there."""

import os
import re
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright, expect
from slack_bolt.app.async_app import AsyncApp
from slack_sdk.web.async_client import AsyncWebClient

from demo.workspace import PanelAction, Workspace, WorkspaceClient
from tests.demo.workspace.conftest import BoltStarter

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
async def workspace() -> AsyncIterator[Workspace]:
    broken: list[str] = []

    async def break_it() -> str:
        broken.append("rank 1")
        return f"{len(broken)} rank is frozen now; try /triage"

    panel = [
        PanelAction("frozen-rank", "Freeze one rank", "sends SIGSTOP", style="danger", callback=break_it)
    ]
    async with Workspace(port=0, panel=panel, ack_timeout_s=1.0) as running:
        yield running


@pytest.fixture
async def page(workspace: Workspace) -> AsyncIterator[Page]:
    """Open the page. The test fails if its console shows an error or a warning."""
    troubles: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        opened = await browser.new_page(viewport={"width": 1400, "height": 900})
        opened.on(
            "console",
            lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None,
        )
        opened.on("pageerror", lambda error: troubles.append(str(error)))
        opened.set_default_timeout(10_000)
        await opened.goto(workspace.url)
        await expect(opened.locator("#channel-name")).to_have_text("# incidents")
        yield opened
        await browser.close()
    assert troubles == []


def png(width: int = 60, height: int = 30) -> bytes:
    """Build a small red picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = (b"\x00" + b"\xd0\x20\x30" * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def card(text: str, *, with_buttons: bool) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": ":rotating_light: fall_back: nccl_hang"}},
        {"type": "section", "text": {"type": "mrkdwn", "text": text}},
    ]
    if with_buttons:
        confirm = {
            "title": {"type": "plain_text", "text": "Sure?"},
            "text": {"type": "mrkdwn", "text": "The tier *tp* stops."},
            "confirm": {"type": "plain_text", "text": "Yes, start"},
            "deny": {"type": "plain_text", "text": "No"},
        }
        start = {
            "type": "button",
            "text": {"type": "plain_text", "text": "Start fallback"},
            "style": "primary",
            "action_id": "fallback.start",
            "value": "fb-7k2m",
            "confirm": confirm,
        }
        blocks.append({"type": "actions", "elements": [start]})
    return blocks


def incident_app(app: AsyncApp) -> None:
    """Register a minimal bot: a card with a button, a live edit, a thread with a picture, a refusal."""

    @app.command("/triage")
    async def triage(ack: Any, say: Any) -> None:
        await ack()
        await say(
            text="fall_back", blocks=card("*rank 1* is `stopped` <script>x</script>", with_buttons=True)
        )

    @app.action("fallback.start")
    async def start(ack: Any, body: dict[str, Any], client: AsyncWebClient, respond: Any) -> None:
        await ack()
        user, channel, ts = body["user"]["id"], body["channel"]["id"], body["message"]["ts"]
        if user == "U0VIEWER":
            await respond(text="You may not start a fallback.", response_type="ephemeral")
            return
        await client.chat_update(
            channel=channel, ts=ts, text="running", blocks=card(f"started by <@{user}>", with_buttons=True)
        )
        await client.files_upload_v2(
            channel=channel,
            thread_ts=ts,
            file=png(),
            filename="load.png",
            title="Load test",
            initial_comment="validated",
        )


async def write(page: Page, text: str, box: str = "#composer") -> None:
    await page.fill(f"{box} textarea", text)
    await page.press(f"{box} textarea", "Enter")


async def test_an_incident_can_be_played_on_the_page(
    page: Page, workspace: Workspace, bolt_app: AsyncApp, start_bolt: BoltStarter
) -> None:
    incident_app(bolt_app)
    await start_bolt(bolt_app)
    await expect(page.locator("#app-status")).to_contain_text("connected")

    # A user without the role gets a private refusal.
    await page.select_option("#user", "viewer")
    await write(page, "/triage")
    article = page.locator("#messages article", has_text="nccl_hang")
    await expect(article.locator("strong", has_text="rank 1")).to_be_visible()
    await expect(article.locator("code")).to_have_text("stopped")
    await expect(article.locator("svg.emoji")).to_have_count(1)
    assert await page.locator("script", has_text="x").count() == 0, "text must never become markup"
    await article.get_by_role("button", name="Start fallback").click()
    await expect(page.locator("#confirm")).to_contain_text("The tier tp stops.")
    await page.get_by_role("button", name="Yes, start").click()
    private = page.locator("#messages article.private")
    await expect(private).to_contain_text("Only visible to you")
    await expect(private).to_contain_text("You may not start a fallback.")

    # Another user does not see it and may start the fallback.
    await page.select_option("#user", "oncall")
    await expect(page.locator("#messages article.private")).to_have_count(0)
    await article.get_by_role("button", name="Start fallback").click()
    await page.get_by_role("button", name="Yes, start").click()
    await expect(article).to_contain_text("started by @oncall")
    await expect(article.locator(".edited")).to_have_count(0)

    # The thread opens beside the channel with its picture; a mention written there is sent.
    await article.get_by_role("button", name="1 reply").click()
    image = page.locator("#replies img")
    await expect(image).to_be_visible()
    assert await image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 60
    await expect(page.locator("#messages")).to_be_visible()
    await write(page, "@gpu-oncall thanks", "#thread-composer")
    await expect(page.locator("#replies article").last).to_contain_text("@gpu-oncall thanks")
    await expect(article.get_by_role("button", name="2 replies")).to_be_visible()
    # A person reacts to it, sees that, and takes it away again.
    thanks = page.locator("#replies article").last
    await thanks.hover()
    await thanks.get_by_title("Add a reaction").click()
    await thanks.get_by_role("button", name="React with memo").click()
    mine = thanks.locator(".reaction.mine")
    await expect(mine).to_contain_text("1")
    await mine.click()
    await expect(mine).to_have_count(0)
    await write(page, "/triage", "#thread-composer")
    await expect(page.locator("#replies article.private")).to_contain_text("not supported in threads")

    # After a reload the page shows the same channel and messages.
    await page.reload()
    await expect(article).to_contain_text("started by @oncall")


async def test_a_message_edited_by_the_app_changes_without_a_reload_and_keeps_the_readers_place(
    page: Page, api: AsyncWebClient
) -> None:
    for number in range(40):
        posted = await api.chat_postMessage(channel="C0INCIDENTS", text=f"line {number}")
    await expect(page.locator("#messages article")).to_have_count(40)
    await page.evaluate("document.querySelector('#messages').scrollTop = 0")
    await page.wait_for_function("document.querySelector('#messages').scrollTop === 0")
    await api.chat_update(channel="C0INCIDENTS", ts=posted["ts"], text="line 39 done")
    await expect(page.locator("#messages article").last).to_contain_text("line 39 done")
    await expect(page.locator("#messages article").last).to_contain_text("(edited)")
    await api.chat_postMessage(channel="C0INCIDENTS", text="one more")
    await expect(page.locator("#messages article")).to_have_count(41)
    assert await page.evaluate("document.querySelector('#messages').scrollTop") == 0


async def test_commands_of_the_manifest_are_offered_and_others_refused(
    page: Page, api: AsyncWebClient
) -> None:
    manifest = {
        "features": {
            "slash_commands": [
                {"command": "/triage", "description": "Look at a host", "usage_hint": "[host]"},
                {"command": "/trace", "description": "Profile"},
                {"command": "/restore", "description": "Bring the tier back"},
            ]
        }
    }
    await api.api_call("apps.manifest.update", json={"app_id": "A0GPUONCALL", "manifest": manifest})
    await page.locator("#composer textarea").press_sequentially("/tr")
    offers = page.locator("#composer .popup li")
    await expect(offers).to_have_count(2)
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Tab")
    await expect(page.locator("#composer textarea")).to_have_value("/trace ")
    await write(page, "/tirage")
    await expect(page.locator("#messages article.private")).to_contain_text("/tirage is not a valid command")


async def test_commands_registered_while_a_person_types_are_offered_too(
    page: Page, api: AsyncWebClient
) -> None:
    await page.locator("#composer textarea").press_sequentially("/tr")
    offers = page.locator("#composer .popup li")
    await expect(offers).to_have_count(0)
    manifest = {"features": {"slash_commands": [{"command": "/triage", "description": "Look at a host"}]}}
    await api.api_call("apps.manifest.update", json={"app_id": "A0GPUONCALL", "manifest": manifest})
    await expect(offers).to_have_count(1)


async def test_without_a_running_app_the_person_gets_a_note(page: Page) -> None:
    await expect(page.locator("#app-status")).to_contain_text("not running")
    await write(page, "/triage")
    await expect(page.locator("#messages article.private")).to_contain_text("gpu-oncall did not respond")


async def test_a_panel_button_shows_the_answer_of_its_action(page: Page) -> None:
    panel = page.locator("#panel")
    await expect(panel.get_by_role("heading", name="Break something")).to_be_visible()
    await panel.get_by_role("button", name="Freeze one rank").click()
    await expect(panel).to_contain_text("1 rank is frozen now; try /triage")


async def test_on_a_phone_channel_and_thread_use_the_whole_screen_in_turn(
    page: Page, people: WorkspaceClient, api: AsyncWebClient
) -> None:
    root = await api.chat_postMessage(channel="C0INCIDENTS", text="the tier hangs")
    await api.chat_postMessage(channel="C0INCIDENTS", text="looking", thread_ts=root["ts"])
    await people.say("lead", "general", "unread elsewhere")
    await page.set_viewport_size({"width": 390, "height": 844})
    await expect(page.locator("#sidebar")).to_be_hidden()
    await page.get_by_role("button", name="1 reply").click()
    await expect(page.locator("#channel")).to_be_hidden()
    await expect(page.locator("#replies")).to_contain_text("looking")
    wide = await page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390, "the page must not scroll sideways"
    await page.get_by_role("button", name="Close thread").click()
    await page.get_by_role("button", name="Show channels").click()
    await page.get_by_role("button", name=re.compile("general")).click()
    await expect(page.locator("#channel-name")).to_have_text("# general")
    await expect(page.locator("#messages")).to_contain_text("unread elsewhere")
    await expect(page.locator("#sidebar")).to_be_hidden()


async def test_a_permalink_opens_its_message_in_its_thread(page: Page, api: AsyncWebClient) -> None:
    root = await api.chat_postMessage(channel="C0GENERAL", text="root")
    reply = await api.chat_postMessage(channel="C0GENERAL", text="the reply meant", thread_ts=root["ts"])
    link = await api.chat_getPermalink(channel="C0GENERAL", message_ts=reply["ts"])
    await page.goto(link["permalink"])
    await expect(page.locator("#replies article.target")).to_contain_text("the reply meant")
