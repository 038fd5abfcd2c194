"""New requests are held on a real HAProxy: they wait, are given on or back, and never for longer than the hold."""

import asyncio
import time

import aiohttp
import pytest

from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from tests.gpu_actions.serving.conftest import MakeRouter, Site

Answer = tuple[int, str, str | None]


async def ask(site: Site, **headers: str) -> Answer:
    async with site.session.post(site.url + "/v1/completions", data=b"x", headers=headers) as response:
        return response.status, await response.text(), response.headers.get("Retry-After")


async def holding(router: ManagedRouter, count: int) -> None:
    async with asyncio.timeout(20):
        while await router.held() != count:
            await asyncio.sleep(0.01)


async def test_held_requests_go_to_the_tier_that_has_the_weight_when_they_are_released(
    make_router: MakeRouter,
) -> None:
    site, router = await make_router()
    assert await router.hold(wait_s=60, limit=10)
    asked = [asyncio.create_task(ask(site)) for _ in range(5)]
    await holding(router, 5)
    assert await ask(site, **{"User-Agent": "gpu-oncall probe"}) == (200, "tp", None), "our own are not held"
    await router.shift({"single": 90, "tp": 0})
    assert await router.release() == 5
    assert {answer[:2] for answer in await asyncio.gather(*asked)} == {(200, "single")}
    assert (site.tp.served, await router.release()) == (1, 0)
    assert (await ask(site))[0] == 200


async def test_a_hold_that_nobody_ends_gives_the_requests_back_to_the_tier(make_router: MakeRouter) -> None:
    site, router = await make_router()
    began = time.monotonic()
    await router.hold(wait_s=1.5, limit=10)
    answers = await asyncio.gather(*(ask(site) for _ in range(5)))
    assert {answer[:2] for answer in answers} == {(200, "tp")}
    assert time.monotonic() - began >= 1.2
    began = time.monotonic()
    await ask(site)
    assert time.monotonic() - began < 1.2, "nothing is held any more"


async def test_more_requests_than_may_wait_are_refused_at_once(make_router: MakeRouter) -> None:
    site, router = await make_router(back_pressure={"retry_after_s": 7})
    await router.hold(wait_s=60, limit=2)
    asked = [asyncio.create_task(ask(site)) for _ in range(2)]
    await holding(router, 2)
    status, text, retry_after = await ask(site)
    assert (status, retry_after) == (429, "7")
    assert "queue_full" in text
    await router.release()
    assert {answer[0] for answer in await asyncio.gather(*asked)} == {200}


async def test_a_request_does_not_wait_longer_than_its_limit_although_the_hold_is_extended(
    make_router: MakeRouter,
) -> None:
    site, router = await make_router(back_pressure={"retry_after_s": 7})
    await router.hold(wait_s=1.5, limit=10)
    asked = asyncio.create_task(ask(site))
    while not asked.done():
        await router.hold(wait_s=1.5, limit=10)
        await asyncio.sleep(0.1)
    status, _, retry_after = await asked
    assert (status, retry_after) == (503, "7")
    await router.release()


async def test_a_client_that_leaves_while_it_is_held_frees_its_place(make_router: MakeRouter) -> None:
    site, router = await make_router()
    began = time.time()
    await router.hold(wait_s=60, limit=2)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1), session.post(site.url + "/v1/completions", data=b"x"):
                    pass
        await holding(router, 0)
    await router.release()
    assert not site.tp.arrivals, "nobody waits for its answer any more"
    assert (await router.requests(began, time.time())).client_left == 2


async def test_a_router_that_restarts_holds_for_as_long_and_no_longer(make_router: MakeRouter) -> None:
    site, router = await make_router()
    await router.hold(wait_s=60, limit=10)
    await router.stop()
    await router.ensure_running()
    asked = asyncio.create_task(ask(site))
    await holding(router, 1)
    assert await router.release() == 1
    assert (await asked)[0] == 200
    await router.hold(wait_s=0.5, limit=10)
    await router.stop()
    await asyncio.sleep(0.5)
    await router.ensure_running()
    assert (await ask(site))[0] == 200
    assert await router.held() == 0


async def test_a_policy_of_no_wait_holds_nothing(make_router: MakeRouter) -> None:
    site, router = await make_router()
    assert not await router.hold(wait_s=0, limit=10)
    assert (await ask(site))[0] == 200
