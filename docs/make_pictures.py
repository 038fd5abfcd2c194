"""Plays an incident in the demonstration and takes the pictures of the documents: `PYTHONPATH=. python docs/make_pictures.py`.

Debian's Chromium through Playwright; the pictures are what a person at the page sees, nothing is arranged. The same incident
is a test (`tests/scenarios/test_browser_incident.py`).
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from playwright.async_api import Page

from tests.scenarios.browser import play, screens
from tests.scenarios.incident import incident

HEIGHTS = {"plan": 560}
"""Shorter pictures: the steps of the demonstration's plan name folders of the machine that took it."""
IMAGES = Path(__file__).parent / "images"


async def main(folder: Path) -> None:
    """Play the incident and keep its pictures in a folder."""
    folder.mkdir(exist_ok=True)

    async def picture(page: Page, name: str) -> None:
        before = page.viewport_size
        if before is not None and name in HEIGHTS:
            await page.set_viewport_size({"width": before["width"], "height": HEIGHTS[name]})
        await page.wait_for_timeout(900)
        await page.screenshot(path=folder / f"{name}.png", scale="css")
        if before is not None:
            await page.set_viewport_size(before)

    with tempfile.TemporaryDirectory() as state:
        async with incident(Path(state)) as it, screens(it.layout.workspace_url) as people:
            await play(it, people, picture)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES))
