"""Shares of traffic between two tiers while the fallback is saturated: the situation of every restore."""

import asyncio
import math
from collections import Counter

import aiohttp
import pytest

from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from tests.gpu_actions.serving.conftest import MakeRouter, Site

REQUESTS = 240
RATE = 120.0
SERVICE_S = 0.5
"""The fallback answers 4 requests at once, so 8/s; at 5 % to tp it is offered 114/s, fourteen times that."""


async def open_loop(site: Site, *, keep_alive: bool) -> Counter[tuple[int, str]]:
    """Send REQUESTS at RATE whatever comes back, on new or on kept connections. Returns counts of (status, who answered)."""
    answers: Counter[tuple[int, str]] = Counter()
    connector = aiohttp.TCPConnector(limit=0, force_close=not keep_alive)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask() -> None:
            async with session.post(site.url + "/v1/completions", data=b"x") as response:
                text = await response.text()
                answers[response.status, text if response.status == 200 else ""] += 1
                if response.status in (429, 503):
                    assert response.headers["Retry-After"] == "7"

        began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for number in range(REQUESTS):
                await asyncio.sleep(max(0.0, began + number / RATE - asyncio.get_running_loop().time()))
                group.create_task(ask())
    return answers


async def saturated(make_router: MakeRouter) -> tuple[Site, ManagedRouter]:
    pressure = {
        "retry_after_s": 7,
        "max_concurrent": 5,
        "long_share": 1,
        "max_queue": 8,
        "queue_timeout_s": 5,
    }
    site, router = await make_router(back_pressure=pressure)
    site.fallback.service_s = SERVICE_S
    await router.apply_back_pressure("single")
    return site, router


@pytest.mark.parametrize(
    ("percent", "keep_alive"), [(5, True), (25, True), (25, False), (50, True), (100, True)]
)
async def test_each_stage_holds_its_share_while_the_fallback_is_saturated(
    make_router: MakeRouter, percent: int, keep_alive: bool
) -> None:
    site, router = await saturated(make_router)
    await router.shift({"tp": percent, "single": 100 - percent})
    answers = await open_loop(site, keep_alive=keep_alive)
    share = percent / 100
    bound = 3.9 * math.sqrt(REQUESTS * share * (1 - share))  # two-sided 1e-4
    assert abs(answers[200, "tp"] - REQUESTS * share) <= bound, answers
    assert set(answers) <= {(200, "tp"), (200, "single"), (429, "")}, "refused at once, never after a wait"
    if percent == 100:
        assert answers == {(200, "tp"): REQUESTS}


async def test_a_drained_server_and_one_in_maintenance_get_nothing_whatever_their_weight(
    make_router: MakeRouter,
) -> None:
    site, router = await saturated(make_router)
    site.fallback.service_s = 0
    await router.clear_back_pressure("single")  # a burst of a busy machine may exceed its limits
    await router.shift({"tp": 100, "single": 100})
    for state in ("drain", "maint"):
        for backend in ("serve", "serve_long"):
            await router.admin.set(f"set server {backend}/tp state {state}")
        assert set(await open_loop(site, keep_alive=True)) == {(200, "single")}, state
    assert site.tp.served == 0


async def test_unanswered_requests_go_to_the_other_tier_when_tps_sessions_are_aborted(
    make_router: MakeRouter,
) -> None:
    site, router = await make_router()
    site.tp.service_s = 30
    await router.shift({"tp": 100, "single": 0})
    url = site.url + "/v1/completions"

    async def ask() -> str:
        async with site.session.post(url, data=b"x" * 500) as response:
            return await response.text()

    asked = [asyncio.create_task(ask()) for _ in range(20)]
    while site.tp.inflight < 20:
        await asyncio.sleep(0.01)
    await router.shift({"single": 90, "tp": 0})
    assert await router.abort_sessions("tp") == 20
    assert await asyncio.gather(*asked) == ["single"] * 20
    assert site.fallback.served == 20


@pytest.mark.parametrize("keep_alive", [False, True], ids=["new connections", "kept connections"])
async def test_a_request_that_its_server_dropped_waits_for_the_other_server_even_if_that_is_full(
    make_router: MakeRouter, keep_alive: bool
) -> None:
    site, router = await saturated(make_router)
    site.tp.service_s = 30
    connector = aiohttp.TCPConnector(limit=0, force_close=not keep_alive)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask() -> tuple[int, str]:
            async with session.post(site.url + "/v1/completions", data=b"x") as response:
                text = await response.text()
                return response.status, text if response.status == 200 else ""

        if keep_alive:
            site.tp.service_s = 0
            await router.shift({"tp": 100, "single": 0})
            await asyncio.gather(*(ask() for _ in range(14)))
            site.tp.service_s = 30
        await router.shift({"tp": 100, "single": 0})
        asked = [asyncio.create_task(ask()) for _ in range(4)]
        while site.tp.inflight < 4:
            await asyncio.sleep(0.01)
        await router.shift({"single": 100, "tp": 0})
        full = [asyncio.create_task(ask()) for _ in range(10)]
        while (await router.server("single")).queued < 6:
            await asyncio.sleep(0.01)
        await router.shift({"single": 75, "tp": 25})  # tp is not drained, as when it dies at a stage
        await router.abort_sessions("tp")
        assert await asyncio.gather(*asked, *full) == [(200, "single")] * 14


async def test_a_stand_by_gets_nothing_but_what_the_other_server_dropped(make_router: MakeRouter) -> None:
    site, router = await saturated(make_router)
    await router.shift({"tp": 100, "single": router.standby_weight})
    assert await open_loop(site, keep_alive=True) == {(200, "tp"): REQUESTS}
    assert site.fallback.served == 0
    site.tp.service_s = 30

    async def ask() -> str:
        async with site.session.post(site.url + "/v1/completions", data=b"x") as response:
            return await response.text()

    asked = [asyncio.create_task(ask()) for _ in range(4)]
    while site.tp.inflight < 4:
        await asyncio.sleep(0.01)
    await router.abort_sessions("tp")
    assert await asyncio.gather(*asked) == ["single"] * 4


async def test_requests_that_were_sent_on_count_in_the_queue_that_refuses_new_ones(
    make_router: MakeRouter,
) -> None:
    site, router = await saturated(make_router)
    site.tp.service_s, site.fallback.service_s = 30, 2
    await router.shift({"tp": 100, "single": 0})
    url = site.url + "/v1/completions"

    async def ask() -> int:
        async with site.session.post(url, data=b"x") as response:
            return response.status

    asked = [asyncio.create_task(ask()) for _ in range(12)]
    while site.tp.inflight < 12:
        await asyncio.sleep(0.01)
    await router.shift({"single": 100, "tp": 0})
    await router.abort_sessions("tp")
    while (await router.server("single")).queued < 8:
        await asyncio.sleep(0.01)
    assert await ask() == 429, "4 are answered and 8 wait: the queue is full"
    assert await asyncio.gather(*asked) == [200] * 12
