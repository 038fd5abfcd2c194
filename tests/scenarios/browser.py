"""One incident played in the browser by two people: the on-call engineer on a phone, the incident lead at a desk.

The test plays it, and `docs/make_pictures.py` plays it and keeps the pictures: they are what a person at the page sees.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from playwright.async_api import Error, Locator, Page, async_playwright, expect

from bot.incidents.incidents import Incidents
from bot.store.records import RunStatus, StepStatus
from tests.scenarios.incident import Incident

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync")  # fmt: skip
PHONE = {"width": 375, "height": 812}
DESK = {"width": 1600, "height": 900}
PATIENCE_MS = 60_000

Picture = Callable[[Page, str], Awaitable[None]]


@dataclass
class Screens:
    """The two people's pages: `phone` is the on-call engineer's, `desk` the incident lead's."""

    phone: Page
    desk: Page


@contextlib.asynccontextmanager
async def screens(url: str) -> AsyncIterator[Screens]:
    """Open both pages. The test fails if a console shows an error."""
    troubles: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        pages = []
        for user, size, touch in (("oncall", PHONE, True), ("lead", DESK, False)):
            context = await browser.new_context(
                viewport=size,
                has_touch=touch,
                device_scale_factor=2 if touch else 1,  # type: ignore[arg-type]
            )
            page = await context.new_page()
            page.on(
                "console", lambda message: troubles.append(message.text) if message.type == "error" else None
            )
            page.on("pageerror", lambda error: troubles.append(str(error)))
            page.set_default_timeout(PATIENCE_MS)
            await page.goto(f"{url}/?user={user}")
            pages.append(page)
        yield Screens(*pages)
        await browser.close()
    assert troubles == []


async def types(page: Page, text: str) -> None:
    """Type a command into the channel's box and send it."""
    await page.fill("#composer textarea", text)
    await page.press("#composer textarea", "Enter")


def card(page: Page, text: str, *, within: str = "#messages") -> Locator:
    """Return the newest message that contains a text."""
    return page.locator(f"{within} article", has_text=text).last


async def presses(page: Page, message: Locator, label: str, *, confirms: bool = False) -> None:
    """Press a button of a message, and confirm the question where there is one."""
    await message.get_by_role("button", name=label, exact=True).click()
    if confirms:
        await page.locator("#confirm").get_by_role("button", name=label, exact=True).click()


async def on_screen(message: Locator, *labels: str) -> None:
    """Assert that a message's first line and its buttons are seen without scrolling."""
    for label in labels:
        await expect(message.get_by_role("button", name=label, exact=True)).to_be_in_viewport(
            timeout=PATIENCE_MS
        )
    await expect(message.locator("h3, .section-text").first).to_be_in_viewport()


async def scrolls_to(message: Locator) -> None:
    """Scroll to a message, which the bot may be editing."""
    for _ in range(20):
        with contextlib.suppress(Error):  # it was replaced by its next edit
            await message.scroll_into_view_if_needed()
            return
    raise AssertionError("the message was replaced at each attempt to scroll to it")


async def play(it: Incident, people: Screens, picture: Picture) -> None:
    """Play the incident from the first triage to the full tier."""
    await fallback_on_a_phone(it, people.phone, picture)
    await restore_by_two(it, people, picture)
    await look_back(it, people, picture)


async def fallback_on_a_phone(it: Incident, phone: Page, picture: Picture) -> None:
    await types(phone, "/triage")
    await expect(card(phone, "HEALTHY: demo")).to_be_visible(timeout=PATIENCE_MS)
    await it.break_("frozen-rank")
    before = it.store.clock()
    while True:  # the ranks need a moment until their silence is a hang
        await types(phone, "/triage")
        run = await it.ended("triage", after=before)
        if run.steps[-1].verdict is not None and run.steps[-1].verdict.cause == "nccl_hang":
            break
        before = it.store.clock()
    verdict = card(phone, "FALL BACK: nccl_hang on demo")
    await on_screen(verdict, "Start fallback", "Details", "Triage again")
    assert await phone.locator("#messages article.private").count() == 0, (
        "no note beside the message it announces"
    )
    await picture(phone, "verdict")
    await presses(phone, verdict, "Details")
    await expect(phone.locator("#modal")).to_contain_text("sources token counter")
    await picture(phone, "details")
    await phone.locator("#modal").get_by_role("button", name="Close").click()
    await presses(phone, verdict, "Start fallback", confirms=True)
    await it.run("fallback", until=lambda r: any(s.step_id == "warm" for s in r.steps))
    await verdict.locator(".thread-link").click()
    running = card(phone, "Fallback on demo", within="#replies")
    await on_screen(running, "Details", "Stop")
    await picture(phone, "fallback-running")
    await it.ended("fallback")
    done = card(phone, "steps done", within="#replies")
    await expect(done).to_contain_text("Fallback on demo: done", timeout=PATIENCE_MS)
    figures = phone.locator("#replies .table", has_text="TTFT").last
    await scrolls_to(figures)
    await picture(phone, "figures")
    await scrolls_to(done)
    await picture(phone, "phone")
    await phone.locator("#thread").get_by_role("button", name="Close thread").click()


async def restore_by_two(it: Incident, people: Screens, picture: Picture) -> None:
    phone, desk = people.phone, people.desk
    await it.break_("mend")
    await types(phone, "/restore start cause=rank-was-frozen")
    await it.run("restore", until=lambda r: r.status is RunStatus.WAITING)
    await card(phone, "FALL BACK").locator(".thread-link").click()
    request = card(phone, "approve restore on demo?", within="#replies")
    await on_screen(request, "Approve", "Deny", "Show plan")
    await picture(phone, "approval")
    await presses(phone, request, "Approve", confirms=True)
    await expect(phone.locator("#replies")).to_contain_text("You may not approve restore on demo")

    await card(desk, "FALL BACK").locator(".thread-link").click()
    await presses(desk, card(desk, "approve restore on demo?", within="#replies"), "Show plan")
    modal = desk.locator("#modal")
    await expect(modal).to_contain_text("Needs 1 approval")
    await modal.get_by_label("Reason").fill("the rank was stopped by hand")
    await picture(desk, "plan")
    await modal.get_by_role("button", name="Approve").click()
    await expect(modal).to_be_hidden()
    await it.run(
        "restore",
        until=lambda r: any(s.step_id == "compare" and s.status is StepStatus.RUNNING for s in r.steps),
    )
    live = card(phone, "Restore on demo: running", within="#replies")
    await presses(phone, live, "Next stage now")
    ended = await it.ended("restore", timeout_s=150)
    assert ended.status is RunStatus.SUCCEEDED, ended.outcome
    assert [(d.user.name, d.reason) for d in ended.decisions] == [("lead", "the rank was stopped by hand")]


async def look_back(it: Incident, people: Screens, picture: Picture) -> None:
    """The end as both see it: the folded message, a decided request without buttons, and the lead's Home tab."""
    phone, desk = people.phone, people.desk
    done = card(phone, "Restore on demo: done", within="#replies")
    await expect(done).to_be_visible(timeout=PATIENCE_MS)
    live = phone.locator("#replies article", has=phone.locator("h3", has_text="Restore on demo: done"))
    await scrolls_to(live)
    await picture(phone, "restored")
    approved = card(desk, "Approved by @lead", within="#replies")
    await expect(approved.get_by_role("button", name="Approve")).to_have_count(0, timeout=PATIENCE_MS)
    await picture(desk, "workspace")
    await records(it, people)
    await desk.locator("#app-status button").click()
    await expect(desk.locator("#home")).to_contain_text("What you may do", timeout=PATIENCE_MS)
    await expect(desk.locator("#home")).to_contain_text("Open incidents")
    await picture(desk, "home")


async def records(it: Incident, people: Screens) -> None:
    """The on-call engineer writes what happened; the lead's reaction takes it into the incident's record."""
    phone, desk = people.phone, people.desk
    await phone.fill("#thread-composer textarea", "rank 1 was stopped by hand at 11:02")
    await phone.press("#thread-composer textarea", "Enter")
    said = card(desk, "rank 1 was stopped by hand", within="#replies")
    await said.hover()
    await said.get_by_title("Add a reaction").click()
    await said.get_by_role("button", name="React with memo").click()
    await expect(said.locator(".reaction.mine")).to_be_visible()
    incidents = Incidents(it.store)
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while not (
            chosen := [one for one in incidents.timeline(incidents.newest()[0].id) if one.kind == "message"]
        ):
            await asyncio.sleep(0.2)
    (found,) = chosen
    assert found.text == "rank 1 was stopped by hand at 11:02" and found.data["chosen_by"] != found.actor
