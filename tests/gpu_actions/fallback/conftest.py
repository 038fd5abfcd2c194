"""Gives tests of the runbook's actions a host, and takes every process of it away afterwards."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_actions.fallback.site import Site, make_site

MakeSite = Callable[..., Awaitable[Site]]


@pytest.fixture
async def site_with(tmp_path: Path) -> AsyncIterator[MakeSite]:
    """Make a host with other flags or policies; it is up (tp serving) unless `up=False`."""
    made: list[Site] = []

    async def make(*, up: bool = True, **changes: Any) -> Site:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        site = make_site(folder, **changes)
        made.append(site)
        if up:
            await site.up()
        return site

    yield make
    for site in made:
        await site.down()
