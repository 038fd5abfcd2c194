"""Fixtures for tests of the actions: a host with real tiers, a fake NVML library and a misbehaving engine."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_actions.fakes import build_fake_nvml, fake_nvml, start_engine
from tests.gpu_actions.site import Site, make_site

__all__ = ["MakeSite", "build_fake_nvml", "fake_nvml", "site_with", "start_engine"]

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
