"""The managed router against a real HAProxy: weights, drain, aborted sessions, refusals, and what survives a kill."""

import asyncio
import itertools
import json
import os
import signal
import socket
import time
from collections import Counter

import aiohttp
import pytest
from aiohttp import web

from gpu_actions.serving.interfaces import RouterError
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from tests.gpu_actions.serving.conftest import MakeRouter, MakeSite, Site


async def answers(site: Site, count: int) -> Counter[str]:
    """Send `count` requests in turn. Return which backend answered each, or its status."""
    seen: Counter[str] = Counter()
    for _ in range(count):
        async with site.session.get(site.url + "/v1/models") as response:
            seen[await response.text() if response.status == 200 else str(response.status)] += 1
    return seen


async def until_sessions(router: ManagedRouter, server: str, count: int) -> None:
    deadline = time.monotonic() + 10
    while (await router.server(server)).sessions != count:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_fresh_router_sends_everything_to_the_full_tier(make_router: MakeRouter) -> None:
    site, router = await make_router()
    assert await answers(site, 5) == {"tp": 5}
    tp, single = await router.server("tp"), await router.server("single")
    assert (tp.weight, single.weight) == (100, 0)
    assert (tp.admin_state, tp.operational, tp.requests_total) == ("ready", "UP", 5)
    assert (site.state_dir / "router" / "admin.sock").stat().st_mode & 0o777 == 0o600


async def test_weights_divide_requests_in_their_proportion(make_router: MakeRouter) -> None:
    site, router = await make_router()
    await router.shift({"tp": 30, "single": 10})
    assert (
        abs((await answers(site, 480))["single"] - 120) <= 37
    )  # 3.9 standard deviations of Binomial(480, 1/4)
    assert {row.weight for row in await router.servers() if row.server == "single"} == {10}


async def test_a_shift_raises_before_it_lowers(
    make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, router = await make_router()
    sent: list[str] = []
    send = router.admin.set

    async def record(command: str) -> None:
        sent.append(command)
        await send(command)

    monkeypatch.setattr(router.admin, "set", record)
    await router.shift({"tp": 0, "single": 90})
    assert sent == [
        "set weight serve/single 90",
        "set weight serve_long/single 90",
        "set weight serve/tp 0",
        "set weight serve_long/tp 0",
    ]


async def test_no_request_is_lost_while_all_traffic_is_shifted(make_router: MakeRouter) -> None:
    site, router = await make_router()
    site.tp.service_s = site.fallback.service_s = 0.03
    stop = asyncio.Event()
    statuses: Counter[int] = Counter()

    async def client() -> None:
        while not stop.is_set():
            async with site.session.get(site.url) as response:
                statuses[response.status] += 1

    clients = [asyncio.create_task(client()) for _ in range(8)]
    for weights in ({"tp": 50, "single": 50}, {"tp": 0, "single": 90}, {"tp": 100, "single": 0}):
        await router.shift(weights)
        await asyncio.sleep(0.1)
    await router.shift({"single": 90})
    await router.drain("tp")
    await asyncio.sleep(0.1)
    stop.set()
    await asyncio.gather(*clients)
    assert set(statuses) == {200}
    assert site.fallback.served > 10


@pytest.mark.parametrize("weight", [-1, 257])
async def test_an_impossible_weight_is_refused(make_router: MakeRouter, weight: int) -> None:
    _, router = await make_router()
    with pytest.raises(RouterError, match="0 to 256"):
        await router.set_weight("tp", weight)


async def test_a_step_that_leaves_no_usable_weight_is_refused(make_router: MakeRouter) -> None:
    site, router = await make_router()
    with pytest.raises(RouterError, match="without usable weight"):
        await router.set_weight("tp", 0)
    with pytest.raises(RouterError, match="without usable weight"):
        await router.drain("tp")
    with pytest.raises(RouterError, match="without usable weight"):
        await router.shift({"tp": 0, "single": 0})
    await router.set_weight("single", 90)
    await router.drain("single")
    with pytest.raises(RouterError, match="single: weight 100, drain"):
        await router.shift({"tp": 0, "single": 100})
    assert await answers(site, 2) == {"tp": 2}
    assert (await router.server("tp")).weight == 100


async def test_an_allowed_zero_total_answers_503_in_openai_format(make_router: MakeRouter) -> None:
    site, router = await make_router()
    await router.set_weight("tp", 0, allow_zero_total=True)
    async with site.session.get(site.url) as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "5"
        body = json.loads(await response.text())
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == "overloaded"


async def test_a_drained_server_finishes_its_stream_and_gets_no_new_request(make_router: MakeRouter) -> None:
    site, router = await make_router()
    async with site.session.get(site.url + "/?chunks=12&gap=0.05") as stream:
        await stream.content.readline()
        await router.set_weight("single", 90)
        await router.drain("tp")
        state = await router.server("tp")
        assert (state.admin_state, state.sessions) == ("drain", 1)
        assert await answers(site, 3) == {"single": 3}
        rest = (await stream.content.read()).decode()
    assert "data: tp 11\n" in rest
    await until_sessions(router, "tp", 0)
    assert site.tp.broken == 0
    await router.undrain("tp")
    assert (await router.server("tp")).admin_state == "ready"
    assert "tp" in await answers(site, 60)  # by lot, a tenth or more of them


async def test_a_stream_is_forwarded_chunk_by_chunk(make_router: MakeRouter) -> None:
    site, _ = await make_router()
    loop = asyncio.get_running_loop()
    async with site.session.get(site.url + "/?chunks=5&gap=0.2") as stream:
        times = [loop.time() async for line in stream.content if line.strip()]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) > 0.1


async def test_aborting_sessions_ends_the_streams_and_returns_their_number(make_router: MakeRouter) -> None:
    site, router = await make_router()
    await router.set_weight("single", 90)
    streams = [await site.session.get(site.url + "/?chunks=600") for _ in range(6)]
    first = [await stream.content.readline() for stream in streams]
    await router.drain("tp")
    on_tp = (await router.server("tp")).sessions
    assert on_tp >= 1
    assert await router.abort_sessions("tp") == on_tp
    assert (await router.server("tp")).sessions == 0
    broken = 0
    for line, stream in zip(first, streams, strict=True):
        if line.startswith(b"data: tp"):
            with pytest.raises(aiohttp.ClientError):
                await stream.content.read()
            broken += 1
        stream.close()
    assert broken == on_tp


async def test_an_unknown_server_is_refused_with_the_known_ones(make_router: MakeRouter) -> None:
    _, router = await make_router()
    for call in (
        router.set_weight("gpu7", 1),
        router.drain("gpu7"),
        router.undrain("gpu7"),
        router.abort_sessions("gpu7"),
        router.shift({"gpu7": 1}),
        router.apply_back_pressure("gpu7"),
    ):
        with pytest.raises(RouterError, match=r"gpu7; it has: serve/tp, serve/single, serve_long/tp"):
            await call


async def test_a_refusal_of_the_router_is_an_error_with_its_message(make_router: MakeRouter) -> None:
    _, router = await make_router()
    with pytest.raises(RouterError, match="No such server"):
        await router.admin.set("set weight serve/nobody 5")


@pytest.mark.chaos(fault="HAProxy killed", at="at rest", after="weights, drain and limits are as before")
async def test_weights_drain_and_limits_survive_a_kill(make_router: MakeRouter) -> None:
    site, router = await make_router()
    await router.shift({"tp": 7, "single": 31})
    await router.apply_back_pressure("single")
    await router.drain("tp")
    before = {(row.backend, row.server): (row.weight, row.admin_state) for row in await router.servers()}
    main = (await router.unit.state()).main_pid
    assert main is not None
    os.kill(main, signal.SIGKILL)
    deadline = time.monotonic() + 15
    while (await router.unit.state()).main_pid in {None, main}:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    await router.ensure_running()
    after = {(row.backend, row.server): (row.weight, row.admin_state) for row in await router.servers()}
    assert after == before
    assert {row.backend: row.limit for row in await router.admin.stat() if row.server == "single"} == {
        "serve": 12,
        "serve_long": 4,
    }
    assert await router._map_value("single.max_queue") == 32
    assert await answers(site, 2) == {"single": 2}


async def test_weights_survive_an_orderly_stop_and_a_new_start(make_router: MakeRouter) -> None:
    site, router = await make_router()
    await router.shift({"tp": 0, "single": 90})
    await router.stop()
    with pytest.raises(RouterError, match="not running"):
        await router.servers()
    again = ManagedRouter(site.config, site.config.router, state_dir=site.state_dir)
    await again.ensure_running()
    assert await answers(site, 2) == {"single": 2}


async def test_changed_settings_restart_an_idle_router_but_not_a_busy_one(make_router: MakeRouter) -> None:
    site, router = await make_router()
    await router.shift({"single": 90, "tp": 0})
    pressure = {"queue_timeout_s": 9}
    config = site.config.model_copy(
        update={
            "router": site.config.router.model_validate(
                site.config.router.model_dump() | {"back_pressure": pressure}
            )
        }
    )
    changed = ManagedRouter(config, config.router, state_dir=site.state_dir)
    async with site.session.get(site.url + "/?chunks=5") as stream:
        await stream.content.readline()
        await changed.ensure_running()
        assert (await stream.content.read()).endswith(b"single 4\n\n")
    assert await changed._variable("queue_timeout_ms") == "5000"
    await until_sessions(router, "single", 0)
    await changed.ensure_running()
    assert await changed._variable("queue_timeout_ms") == "9000"
    assert await answers(site, 2) == {"single": 2}


async def test_a_tier_whose_port_was_changed_in_the_settings_is_reached_there_after_a_restart(
    make_router: MakeRouter,
) -> None:
    site, router = await make_router()
    await router.shift({"tp": 40, "single": 0})
    await router.stop()  # keeps the state, with the ports
    tiers = site.config.tiers
    engine = tiers["tp"].engine.model_copy(update={"url": tiers["fallback"].engine.url})
    tp = tiers["tp"].model_copy(update={"engine": engine})
    moved = site.config.model_copy(update={"tiers": {**tiers, "tp": tp}})
    again = ManagedRouter(moved, moved.router, state_dir=site.state_dir)
    await again.ensure_running()
    assert (await again.server("tp")).weight == 40
    assert await answers(site, 3) == {"single": 3}, "the process at the new port"


async def test_ensure_running_leaves_a_running_router_alone(make_router: MakeRouter) -> None:
    _, router = await make_router()
    before = await router.unit.state()
    await router.ensure_running()
    assert await router.unit.state() == before


async def test_a_taken_port_is_named_and_nothing_is_left_running(make_site: MakeSite) -> None:
    site = await make_site()
    squatter = web.AppRunner(web.Application())
    await squatter.setup()
    await web.TCPSite(squatter, "127.0.0.1", int(site.url.rsplit(":", 1)[1])).start()
    router = ManagedRouter(site.config, site.config.router, state_dir=site.state_dir)
    try:
        with pytest.raises(RouterError, match="cannot bind socket"):
            await router.ensure_running()
        assert not (await router.unit.state()).active
    finally:
        await router.unit.stop(grace_s=0)
        await squatter.cleanup()


@pytest.mark.chaos(
    fault="the router's admin socket is gone", at="at rest", after="the router is started again"
)
async def test_a_router_whose_socket_file_was_removed_is_restarted(make_router: MakeRouter) -> None:
    site, router = await make_router()
    await router.shift({"tp": 0, "single": 90})
    router.admin.path.unlink()
    with pytest.raises(RouterError, match="does not answer"):
        await router.servers()
    await router.ensure_running()
    assert await answers(site, 2) == {"single": 2}


async def test_a_missing_haproxy_is_named(make_site: MakeSite) -> None:
    site = await make_site(binary="no-such-haproxy")
    with pytest.raises(RouterError, match="no-such-haproxy"):
        await ManagedRouter(site.config, site.config.router, state_dir=site.state_dir).ensure_running()


async def test_a_router_that_is_down_is_an_error_that_names_its_socket(make_site: MakeSite) -> None:
    site = await make_site()
    with pytest.raises(RouterError, match=r"admin\.sock"):
        await ManagedRouter(site.config, site.config.router, state_dir=site.state_dir).servers()


async def test_a_very_long_state_folder_still_works(make_site: MakeSite) -> None:
    site = await make_site()
    router = ManagedRouter(
        site.config, site.config.router, state_dir=site.state_dir / ("very-long-name-" * 10)
    )
    try:
        await router.ensure_running()
        await router.set_weight("single", 3)
        assert (await router.server("single")).weight == 3
    finally:
        await router.unit.stop(grace_s=0)


async def test_its_own_metrics_are_in_prometheus_text(make_router: MakeRouter) -> None:
    site, _ = await make_router()
    async with site.session.get(site.url + "/_router/metrics") as response:
        assert 'haproxy_server_weight{proxy="serve",server="tp"} 100' in await response.text()
    async with site.session.get(site.url + "/_router/stats;csv") as response:
        assert "serve_long,single" in await response.text()


@pytest.mark.chaos(
    fault="the router's port is taken",
    at="its start, by a process that is just ending",
    after="started again until it has it",
)
async def test_a_start_that_finds_its_port_held_by_an_ending_process_is_retried(
    make_site: MakeSite,
) -> None:
    site = await make_site()
    router = ManagedRouter(site.config, site.config.router, state_dir=site.state_dir)
    holder = socket.create_server(("127.0.0.1", int(site.url.rsplit(":", 1)[1])))

    async def free_the_port_after_the_first_loss() -> None:
        while not (await router.unit.state()).restarts:
            await asyncio.sleep(0.02)
        holder.close()

    freeing = asyncio.create_task(free_the_port_after_the_first_loss())
    try:
        await router.ensure_running()
        await freeing
        assert (await router.server("tp")).weight == 100
    finally:
        await router.unit.stop(grace_s=0)
