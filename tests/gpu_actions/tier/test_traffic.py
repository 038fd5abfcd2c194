"""The proof of a route: a completion that this tier answered, whatever other requests it answers meanwhile."""

import asyncio

import pytest

from gpu_actions.serving.interfaces import RouterError
from gpu_actions.tier.traffic import prove_route
from tests.gpu_actions.conftest import MakeSite


async def test_a_proof_that_the_other_tier_answered_is_none_although_this_tier_is_busy(
    site_with: MakeSite,
) -> None:
    site = await site_with()
    await site.host.fallback.unit.start()
    await site.host.fallback.engine.wait_ready(timeout_s=30)
    await site.host.router.shift({"tp": 100, "fallback": 100})
    refused = 0
    async with site.traffic(clients=4, tokens=2) as seen:
        while seen.ok < 10:
            await asyncio.sleep(0.02)
        for _ in range(20):
            try:
                proof = await prove_route(site.host, site.host.tp)
            except RouterError as error:
                assert "fallback answered" in str(error)
                refused += 1
            else:
                assert proof.tier == "tp"
    assert 0 < refused < 20, "each tier answers half; 20 in a row of one kind happen once in 500,000"


async def test_a_tier_without_weight_is_not_proved(site_with: MakeSite) -> None:
    site = await site_with()
    with pytest.raises(RouterError, match="it is not proved that fallback did it"):
        await prove_route(site.host, site.host.fallback)
