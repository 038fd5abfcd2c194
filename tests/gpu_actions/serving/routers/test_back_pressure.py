"""Back-pressure of the single-GPU tier on a real HAProxy: concurrency, queue, refusals, windows."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp

from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from tests.gpu_actions.serving.conftest import MakeRouter, Site

LONG = b"x" * 8192


async def ask(
    site: Site, body: bytes = b"x", headers: dict[str, str] | None = None
) -> tuple[int, str, str | None]:
    async with site.session.post(site.url + "/v1/completions", data=body, headers=headers) as response:
        return response.status, await response.text(), response.headers.get("Retry-After")


async def on_fallback(
    make_router: MakeRouter, *, service_s: float, **pressure: float
) -> tuple[Site, ManagedRouter, dict[str, float]]:
    """All traffic on the fallback tier, under back-pressure."""
    site, router = await make_router(back_pressure={"retry_after_s": 7, **pressure})
    site.fallback.service_s = service_s
    await router.shift({"single": 90, "tp": 0})
    return site, router, await router.apply_back_pressure("single")


async def test_the_limits_in_force_are_read_back_from_the_router(make_router: MakeRouter) -> None:
    _, router, in_force = await on_fallback(make_router, service_s=0)
    assert in_force == {
        "max_concurrent": 16,
        "short_concurrent": 12,
        "long_concurrent": 4,
        "max_queue": 32,
        "long_window_s": 4,
        "queue_timeout_s": 5,
        "long_body_bytes": 8192,
        "retry_after_s": 7,
    }
    limits = {row.backend: row.limit for row in await router.admin.stat() if row.server == "single"}
    assert limits == {"serve": 12, "serve_long": 4}
    assert {row.limit for row in await router.admin.stat() if row.server == "tp"} == {None}


async def test_a_burst_is_served_queued_and_refused_exactly_as_configured(make_router: MakeRouter) -> None:
    """4 at once and 1 s each; 10 may wait, for 1.5 s: of 30, 8 are served, 16 refused at once, 6 time out in the queue."""
    site, router, _ = await on_fallback(
        make_router, service_s=1.0, max_concurrent=5, long_share=1, max_queue=10, queue_timeout_s=1.5
    )
    answers = await asyncio.gather(*(ask(site) for _ in range(30)))
    assert Counter(status for status, _, _ in answers) == {200: 8, 429: 16, 503: 6}
    assert site.fallback.peak == 4
    assert site.tp.served == 0
    for status, text, retry_after in answers:
        if status != 200:
            assert retry_after == "7"
            error = json.loads(text)["error"]
            assert error["code"] == {429: "queue_full", 503: "overloaded"}[status]
    assert (await router.server("single")).queued == 0


async def test_short_and_long_requests_have_their_own_shares_of_one_limit(make_router: MakeRouter) -> None:
    site, _, _ = await on_fallback(
        make_router, service_s=0.3, max_concurrent=6, long_share=2, long_window_s=0
    )
    answers = await asyncio.gather(*(ask(site, LONG if number % 2 else b"x") for number in range(24)))
    assert {status for status, _, _ in answers} == {200}
    assert site.fallback.peak == 6


async def test_the_queue_is_counted_with_the_limited_server(make_router: MakeRouter) -> None:
    site, router, _ = await on_fallback(make_router, service_s=1.0, max_concurrent=3, long_share=1)
    asked = [asyncio.create_task(ask(site)) for _ in range(5)]
    while (await router.server("single")).queued != 3:
        await asyncio.sleep(0.01)
    assert (await router.server("single")).sessions == 2
    assert (await router.server("tp")).queued == 0
    await router.clear_back_pressure("single")
    while (await router.server("single")).queued:
        await asyncio.sleep(0.01)
    assert {status for status, _, _ in await asyncio.gather(*asked)} == {200}
    assert site.fallback.peak == 5


async def test_a_client_that_disconnects_in_the_queue_never_reaches_the_engine(
    make_router: MakeRouter,
) -> None:
    site, router, _ = await on_fallback(make_router, service_s=0.6, max_concurrent=2, long_share=1)
    first = asyncio.create_task(ask(site))
    while not site.fallback.inflight:
        await asyncio.sleep(0.01)
    impatient = asyncio.create_task(ask(site))
    while (await router.server("single")).queued != 1:
        await asyncio.sleep(0.01)
    impatient.cancel()
    while (await router.server("single")).queued:
        await asyncio.sleep(0.01)
    assert (await first)[0] == 200
    assert (await ask(site))[0] == 200
    assert site.fallback.served == 2
    assert len(site.fallback.arrivals) == 2


async def test_staggered_long_contexts_are_released_together(make_router: MakeRouter) -> None:
    site, _, _ = await on_fallback(
        make_router, service_s=0, max_concurrent=16, long_share=8, long_window_s=1.5
    )
    loop = asyncio.get_running_loop()
    asked = []
    for _ in range(5):
        asked.append(asyncio.create_task(ask(site, LONG)))
        await asyncio.sleep(0.1)
    sent_over = 0.4
    short_began = loop.time()
    assert (await ask(site))[0] == 200
    assert loop.time() - short_began < 0.3
    assert {status for status, _, _ in await asyncio.gather(*asked)} == {200}
    arrivals = sorted(site.fallback.arrivals)
    arrivals.remove(min(arrivals, key=lambda at: abs(at - short_began)))
    groups = [[arrivals[0]]]
    for at in arrivals[1:]:
        if at - groups[-1][-1] > 0.75:
            groups.append([at])
        else:
            groups[-1].append(at)
    assert len(groups) <= 2  # a boundary may fall between them
    assert all(group[-1] - group[0] < sent_over / 4 for group in groups)


async def test_long_contexts_beyond_the_queue_limit_are_refused_before_the_window(
    make_router: MakeRouter,
) -> None:
    site, _, _ = await on_fallback(
        make_router, service_s=0, max_concurrent=8, long_share=4, max_queue=3, long_window_s=2
    )
    seen = Counter(status for status, _, _ in await asyncio.gather(*(ask(site, LONG) for _ in range(12))))
    # Two boundaries at most can lie inside the burst, each with room for three.
    assert seen[429] >= 6
    assert seen[200] >= 3


async def test_the_full_tier_is_not_limited_while_it_has_weight(make_router: MakeRouter) -> None:
    site, router, _ = await on_fallback(
        make_router, service_s=0, max_concurrent=2, long_share=1, max_queue=1, long_window_s=30
    )
    await router.shift({"tp": 100, "single": 0})
    site.tp.service_s = 0.5
    answers = await asyncio.gather(*(ask(site, LONG if number % 2 else b"x") for number in range(20)))
    assert {status for status, _, _ in answers} == {200}
    assert site.tp.peak == 20


async def test_what_the_limited_tier_cannot_take_is_refused_at_once_and_not_moved_to_the_other(
    make_router: MakeRouter,
) -> None:
    """A tier that returns at 5 % must get 5 %, also when the fallback is full."""
    site, router, _ = await on_fallback(
        make_router, service_s=0.5, max_concurrent=3, long_share=1, max_queue=1
    )
    site.tp.service_s = 0.5
    await router.shift({"tp": 1, "single": 255})
    answers = await asyncio.gather(*(ask(site) for _ in range(20)))
    assert site.fallback.peak == 2
    assert site.tp.peak <= 3  # P(more than 3 of 20 at 1/256) < 1e-6
    counts = Counter(status for status, _, _ in answers)
    assert counts[200] == site.tp.served + site.fallback.served
    assert counts[429] >= 20 - 3 - 3, "2 served at once and 1 that may wait"
    assert set(counts) == {200, 429}


async def test_a_long_context_is_recognised_by_length_by_header_and_in_a_body_without_a_length(
    make_router: MakeRouter,
) -> None:
    site, router = await make_router()

    async def pieces(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 1024

    async def requests_of(backend: str) -> int:
        return sum(row.requests_total for row in await router.servers() if row.backend == backend)

    await ask(site, b"x" * 8191)
    async with site.session.post(site.url, data=pieces(7)) as response:
        assert response.status == 200
    assert (await requests_of("serve"), await requests_of("serve_long")) == (2, 0)
    await ask(site, LONG)
    await ask(site, b"short", {"X-Long-Context": "1"})
    async with site.session.post(site.url, data=pieces(9)) as response:
        assert response.status == 200
    assert (await requests_of("serve"), await requests_of("serve_long")) == (2, 3)


async def test_an_engine_that_does_not_answer_in_time_is_a_504_in_openai_format(
    make_router: MakeRouter,
) -> None:
    site, _ = await make_router(client_timeout_s=0.5)
    site.tp.service_s = 5
    status, text, retry_after = await ask(site)
    assert (status, retry_after) == (504, "5")
    assert json.loads(text)["error"]["code"] == "gateway_timeout"


async def test_a_stream_may_last_longer_than_the_timeout_between_its_chunks(make_router: MakeRouter) -> None:
    site, _ = await make_router(client_timeout_s=0.6)
    async with site.session.get(
        site.url + "/?chunks=10&gap=0.2", timeout=aiohttp.ClientTimeout(20)
    ) as stream:
        assert (await stream.read()).count(b"data:") == 10


async def test_clearing_is_complete_and_may_be_repeated(make_router: MakeRouter) -> None:
    site, router, _ = await on_fallback(
        make_router, service_s=0.4, max_concurrent=2, long_share=1, max_queue=1
    )
    await router.clear_back_pressure("single")
    await router.clear_back_pressure("single")
    answers = await asyncio.gather(*(ask(site, LONG if number % 2 else b"x") for number in range(12)))
    assert {status for status, _, _ in answers} == {200}
    assert site.fallback.peak == 12
    assert router.limited() == frozenset()
    assert "maxconn" not in (router.folder / "haproxy.cfg").read_text()


async def test_given_limits_replace_the_configured_ones_until_they_are_lifted_also_after_a_restart(
    make_router: MakeRouter,
) -> None:
    _, router, _ = await on_fallback(make_router, service_s=0)
    given = {"max_concurrent": 24, "max_queue": 7}
    wanted = {"max_concurrent": 24, "short_concurrent": 20, "long_concurrent": 4, "max_queue": 7}
    assert wanted.items() <= (await router.apply_back_pressure("single", given)).items()
    assert wanted.items() <= (await router.apply_back_pressure("single")).items(), "a repeat keeps them"
    await router.stop()
    await router.ensure_running()
    limits = {row.backend: row.limit for row in await router.admin.stat() if row.server == "single"}
    assert limits == {"serve": 20, "serve_long": 4}
    await router.clear_back_pressure("single")
    configured = await router.apply_back_pressure("single")
    assert (configured["max_concurrent"], configured["max_queue"]) == (16, 32)
