"""The hosts of the chaos tests: real tiers that can carry 60 streams, with a fallback that can take a third of them."""

from typing import Any

import pytest

from tests.gpu_actions.conftest import MakeSite, site_with
from tests.gpu_actions.site import Site
from tests.scenarios.saturated import busy_site

__all__ = ["MakeSite", "busy_with", "site_with"]


@pytest.fixture
def busy_with(site_with: MakeSite) -> MakeSite:
    """Make a host for `busy_clients` with other flags or policies."""

    async def make(**changes: Any) -> Site:
        return await busy_site(site_with, **changes)

    return make
