"""The whole incident in a browser: two people, a phone and a desk, against the demonstration's real bot."""

from pathlib import Path

import pytest
from playwright.async_api import Page

from tests.scenarios.browser import play, screens
from tests.scenarios.incident import incident


@pytest.mark.browser
@pytest.mark.heavy
@pytest.mark.timeout(420)
async def test_two_people_carry_a_host_through_an_incident_on_a_phone_and_at_a_desk(tmp_path: Path) -> None:
    async def nothing(page: Page, name: str) -> None:
        """Take no picture."""

    async with incident(tmp_path) as it, screens(it.layout.workspace_url) as people:
        await play(it, people, nothing)
