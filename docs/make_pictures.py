"""Plays an incident in the demonstration and takes the pictures of the documents: `PYTHONPATH=. python docs/make_pictures.py`.

Debian's Chromium through Playwright; the pictures are what a person at the page sees, nothing is arranged.
"""

import asyncio
import tempfile
from pathlib import Path

from playwright.async_api import Page, async_playwright

from bot.store.records import RunStatus, StepStatus
from tests.scenarios.incident import Incident, incident

IMAGES = Path(__file__).parent / "images"
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync")  # fmt: skip
DESKTOP = {"width": 1400, "height": 900}
PHONE = {"width": 390, "height": 844}


async def picture(page: Page, name: str) -> None:
    await page.wait_for_timeout(700)
    await page.screenshot(path=IMAGES / f"{name}.png")


async def open_thread(page: Page) -> None:
    """Open the newest thread and look at its end."""
    await page.locator("text=/\\d+ repl(y|ies)/").last.click()
    await page.wait_for_timeout(500)


async def play(it: Incident, page: Page) -> None:
    await page.goto(it.layout.workspace_url)
    await it.command("/triage")
    await it.ended("triage")
    await it.break_("frozen-rank")
    await asyncio.sleep(3)
    before = it.store.clock()
    await it.command("/triage")
    await it.ended("triage", after=before)
    await it.says("FALL BACK")
    await picture(page, "verdict")
    await it.press("Start fallback")
    await it.run("fallback", until=lambda r: any(s.step_id == "drain" for s in r.steps))
    await open_thread(page)
    await picture(page, "fallback-running")
    await it.ended("fallback")
    await asyncio.sleep(3)
    await picture(page, "workspace")
    await page.set_viewport_size(PHONE)
    await picture(page, "phone")
    await page.set_viewport_size(DESKTOP)
    await it.break_("mend")
    await it.command("/restore start cause=rank-was-frozen")
    run = await it.run("restore", until=lambda r: r.status is RunStatus.WAITING)
    await asyncio.sleep(2)
    await picture(page, "approval")
    await it.press("approve", user="lead", run=run.id)
    await it.run(
        "restore",
        until=lambda r: any(s.step_id == "compare" and s.status is StepStatus.RUNNING for s in r.steps),
    )
    await it.press("next", run=run.id)
    await it.ended("restore", timeout_s=150)
    await asyncio.sleep(3)
    await picture(page, "restored")


async def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        async with incident(Path(folder)) as it, async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=list(ARGUMENTS)
            )
            page = await browser.new_page(viewport=DESKTOP)  # type: ignore[arg-type]
            await play(it, page)
            await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
