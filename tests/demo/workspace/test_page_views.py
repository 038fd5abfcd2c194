"""Modals, the Home tab, threads side by side, several people in tabs, keys and themes on the page, in headless Chromium."""

from typing import Any

import pytest
from playwright.async_api import Page, expect
from slack_bolt.app.async_app import AsyncApp
from slack_sdk.web.async_client import AsyncWebClient

from demo.workspace import Workspace
from tests.demo.workspace.conftest import BoltStarter
from tests.demo.workspace.test_page import page, write

pytestmark = pytest.mark.browser
__all__ = ["page"]


@pytest.fixture
async def workspace() -> Any:
    async with Workspace(port=0, ack_timeout_s=3.0) as running:
        yield running


def text(value: str) -> dict[str, str]:
    return {"type": "plain_text", "text": value}


def form_app(app: AsyncApp) -> None:
    """Register a bot with a form, a Home tab with a button, and a direct answer."""
    choice = {
        "type": "static_select",
        "action_id": "f",
        "options": [{"text": text(v), "value": v} for v in ("tp", "fallback")],
    }
    fields = [
        {"type": "input", "block_id": "qps", "label": text("qps"), "hint": text("requests a second"),
         "element": {"type": "plain_text_input", "action_id": "f"}},
        {"type": "input", "block_id": "target", "optional": True, "label": text("target"), "element": choice},
    ]  # fmt: skip

    @app.command("/loadtest")
    async def loadtest(ack: Any, body: dict[str, Any], client: AsyncWebClient) -> None:
        await ack()
        skeleton = {
            "type": "modal",
            "title": text("Load test"),
            "blocks": [{"type": "section", "text": text("One moment")}],
        }
        opened = await client.views_open(trigger_id=body["trigger_id"], view=skeleton)
        view = {**skeleton, "submit": text("Start"), "callback_id": "load", "blocks": fields}
        await client.views_update(view_id=opened["view"]["id"], view=view)

    @app.view("load")
    async def submitted(ack: Any, view: dict[str, Any], client: AsyncWebClient) -> None:
        values = view["state"]["values"]
        if not values["qps"]["f"]["value"].isdigit():
            await ack(response_action="errors", errors={"qps": "qps must be a number"})
            return
        await ack()
        chosen = values["target"]["f"]["selected_option"]
        await client.chat_postMessage(
            channel="C0INCIDENTS", text=f"load {values['qps']['f']['value']} {chosen and chosen['value']}"
        )

    @app.event("app_home_opened")
    async def home(event: dict[str, Any], client: AsyncWebClient) -> None:
        button = {"type": "button", "text": text("Refresh"), "action_id": "refresh"}
        blocks = [
            {"type": "header", "text": text(f"Hello {event['user']}")},
            {"type": "actions", "elements": [button]},
        ]
        await client.views_publish(user_id=event["user"], view={"type": "home", "blocks": blocks})

    @app.action("refresh")
    async def refresh(ack: Any, body: dict[str, Any], client: AsyncWebClient) -> None:
        await ack()
        view = {"type": "home", "blocks": [{"type": "header", "text": text("Refreshed")}]}
        await client.views_publish(user_id=body["user"]["id"], view=view)

    @app.event("message")
    async def answer(event: dict[str, Any], say: Any) -> None:
        if event.get("channel_type") == "im":
            await say(text=f"you said {event['text']}")


async def test_a_form_is_filled_in_and_a_wrong_field_is_marked(
    page: Page, bolt_app: AsyncApp, start_bolt: BoltStarter
) -> None:
    form_app(bolt_app)
    await start_bolt(bolt_app)
    await write(page, "/loadtest")
    modal = page.locator("#modal")
    await expect(modal.get_by_label("qps")).to_be_visible()
    await modal.get_by_role("button", name="Start").click()
    await expect(modal.locator(".field-error").first).to_have_text("Please complete this required field.")
    await modal.get_by_label("qps").fill("many")
    await page.keyboard.press("Enter")
    await expect(modal.locator(".field-error").first).to_have_text("qps must be a number")
    await modal.get_by_label("qps").fill("3")
    await modal.get_by_label("target").select_option("fallback")
    await modal.get_by_role("button", name="Start").click()
    await expect(modal).to_be_hidden()
    await expect(page.locator("#messages article").last).to_contain_text("load 3 fallback")
    await write(page, "/loadtest")
    await expect(modal).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(modal).to_be_hidden()


async def test_the_app_has_a_home_tab_with_buttons_and_takes_direct_messages(
    page: Page, bolt_app: AsyncApp, start_bolt: BoltStarter
) -> None:
    form_app(bolt_app)
    await start_bolt(bolt_app)
    await page.locator("#app-status button").click()
    await expect(page.locator("#home")).to_contain_text("Hello U0ONCALL")
    await page.locator("#home").get_by_role("button", name="Refresh").click()
    await expect(page.locator("#home")).to_contain_text("Refreshed")
    await page.locator("#tabs").get_by_role("tab", name="Messages").click()
    await write(page, "triage")
    await expect(page.locator("#messages article").last).to_contain_text("you said triage")


async def test_two_threads_are_read_side_by_side_where_there_is_room(page: Page, api: AsyncWebClient) -> None:
    for root in ("first", "second", "third"):
        ts = (await api.chat_postMessage(channel="C0INCIDENTS", text=f"root {root}"))["ts"]
        await api.chat_postMessage(channel="C0INCIDENTS", text=f"reply to {root}", thread_ts=ts)

    async def opened(*wanted: str) -> None:
        threads = page.locator(".thread")
        await expect(threads).to_have_count(len(wanted))
        for thread, word in zip(await threads.all(), wanted, strict=True):
            await expect(thread).to_contain_text(f"reply to {word}")

    async def open_(word: str) -> None:
        await page.locator("#messages article", has_text=f"root {word}").locator(".thread-link").click()

    await open_("first")
    await open_("second")
    await opened("second")
    await page.set_viewport_size({"width": 1700, "height": 900})
    await open_("first")
    await opened("second", "first")
    await open_("third")
    await opened("first", "third")
    await page.keyboard.press("Escape")
    await opened("first")


async def test_each_tab_is_its_own_person(page: Page, workspace: Workspace, api: AsyncWebClient) -> None:
    other = await page.context.browser.new_page()  # type: ignore[union-attr]
    await other.goto(f"{workspace.url}/?user=lead")
    await expect(other.locator("#user")).to_have_value("lead")
    await api.chat_postEphemeral(channel="C0INCIDENTS", user="U0LEAD", text="for the lead alone")
    await expect(other.locator("#messages")).to_contain_text("for the lead alone")
    await expect(page.locator("#user")).to_have_value("oncall")
    await page.reload()
    await expect(page.locator("#user")).to_have_value("oncall")
    await expect(page.locator("#messages")).not_to_contain_text("for the lead alone")


async def test_keys_reach_commands_and_channels_and_both_themes_are_readable(
    page: Page, api: AsyncWebClient
) -> None:
    await api.chat_postMessage(channel="C0INCIDENTS", text="<!date^1700000000^{date_num} {ago}|then>")
    await expect(page.locator("#messages time").last).to_contain_text("days ago")
    await page.keyboard.press("/")
    await expect(page.locator("#composer textarea")).to_have_value("/")
    await page.locator("#composer textarea").fill("")
    await page.keyboard.press("Alt+ArrowDown")
    await expect(page.locator("#channel-name")).to_have_text("# general")
    papers = []
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        papers.append(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert papers == ["rgb(255, 255, 255)", "rgb(26, 29, 33)"]
