"""The account of requests against what the clients counted themselves, with a real HAProxy."""

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter

import aiohttp
import pytest

from gpu_actions.serving.interfaces import RequestsUnknown
from gpu_actions.serving.request_account import RequestAccount
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from gpu_actions.serving.units.process import SupervisedProcess
from gpu_actions.system.output_file import older
from gpu_actions.system.proc import read_process
from gpu_actions.system.urls import port_of
from tests.gpu_actions.serving.conftest import MakeRouter, MakeSite, Site

STREAMS = 60


async def ask(
    site: Site, session: aiohttp.ClientSession, seen: Counter[str], path: str, leave: float = 0
) -> None:
    """Send one request and count how it ended as its client saw it. `leave`: hang up after this long."""
    try:
        async with asyncio.timeout(leave or 60), session.post(site.url + path, data=b"x" * 300) as response:
            text = await response.text()
            if response.status in (429, 503):
                assert "Retry-After" in response.headers
                seen["refused"] += 1
            elif response.status != 200:
                seen["failed"] += 1
            else:
                seen["finished"] += 1
                seen["by_other"] += "single" in text
    except TimeoutError:
        seen["client_left"] += 1
    except aiohttp.ClientError:
        seen["aborted"] += 1


async def until_inflight(site: Site, count: int) -> None:
    deadline = time.monotonic() + 20
    while site.tp.inflight < count:
        assert time.monotonic() < deadline, site.tp.inflight
        await asyncio.sleep(0.01)


async def until_closed(router: ManagedRouter) -> None:
    """Wait until the router has no open request, and so has a line for each."""
    deadline = time.monotonic() + 10
    while any(row.sessions or row.queued for row in await router.servers()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("keep_alive", [False, True], ids=["new connections", "kept connections"])
async def test_the_account_is_exactly_what_sixty_concurrent_clients_counted(
    make_router: MakeRouter, keep_alive: bool
) -> None:
    pressure = {"max_concurrent": 25, "long_share": 1, "max_queue": 4, "queue_timeout_s": 0.5}
    site, router = await make_router(back_pressure=pressure)
    seen: Counter[str] = Counter()
    since_s = time.time()
    connector = aiohttp.TCPConnector(limit=0, force_close=not keep_alive)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        site.tp.service_s = 30
        for _ in range(20):  # no byte of these is answered until tp is aborted
            group.create_task(ask(site, session, seen, "/v1/completions"))
        for _ in range(30):  # these are in the middle of their answer
            group.create_task(ask(site, session, seen, "/v1/completions?chunks=2000&gap=0.02"))
        for _ in range(10):  # and these hang up first
            group.create_task(ask(site, session, seen, "/v1/completions?chunks=2000&gap=0.02", leave=0.8))
        await until_inflight(site, STREAMS)
        await asyncio.sleep(1)
        site.fallback.service_s = 1.0
        await router.apply_back_pressure("single")
        await router.shift({"single": 90, "tp": 0})
        assert await router.abort_sessions("tp") == 50
        for _ in range(60):  # more than the fallback takes
            group.create_task(ask(site, session, seen, "/v1/completions"))
    await until_closed(router)
    account = await router.requests(since_s, time.time())
    assert account.incomplete == ""
    counted = {
        name: getattr(account, name) for name in ("finished", "refused", "aborted", "failed", "client_left")
    }
    assert counted == {name: seen[name] for name in counted}, (account, seen)
    assert sum(counted.values()) == 120
    assert (account.aborted, account.client_left, account.resent) == (30, 10, 20)
    assert account.ended_by_us == {"tp": 30}
    assert account.refused > 10
    assert account.finished == seen["by_other"]
    assert (account.open_now, account.own_finished) == (0, 0)


async def test_requests_that_no_other_tier_can_take_are_refused_not_resent(make_router: MakeRouter) -> None:
    site, router = await make_router()
    site.tp.service_s = 30
    seen: Counter[str] = Counter()
    since_s = time.time()
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(ask(site, session, seen, "/v1/completions"))
        await until_inflight(site, 5)
        await router.drain("tp", allow_zero_total=True)
        await router.abort_sessions("tp")
    await until_closed(router)
    account = await router.requests(since_s, time.time())
    assert (account.refused, account.failed) == (seen["refused"], seen["failed"]), (
        router.record.path.read_text()
    )
    assert (account.refused, account.resent, account.resent_to_none, account.ended_by_us) == (5, 0, 5, {})


async def finished(site: Site, count: int) -> None:
    for _ in range(count):
        async with site.session.get(site.url) as response:
            assert response.status == 200


async def recorded(router: ManagedRouter, count: int) -> None:
    """Wait until the record has so many finished requests. Its moments are those of the router's loop, in milliseconds."""
    while (await router.requests(0, time.time())).finished < count:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.05)


async def test_the_window_takes_only_what_ended_in_it_and_probes_are_counted_apart(
    make_router: MakeRouter,
) -> None:
    site, router = await make_router()
    await finished(site, 3)
    await recorded(router, 3)
    middle_s = time.time()
    await finished(site, 5)
    async with site.session.get(site.url, headers={"User-Agent": "gpu-oncall-loadtest"}) as response:
        assert response.status == 200
    await asyncio.sleep(0.05)
    account = await router.requests(middle_s, time.time())
    assert (account.finished, account.own_finished, account.incomplete) == (5, 1, "")


async def test_the_record_has_no_prompt_no_header_and_no_address(make_router: MakeRouter) -> None:
    site, router = await make_router()
    async with site.session.post(
        site.url + "/v1/secret?key=topsecret",
        data=b"topsecret",
        headers={"Authorization": "Bearer topsecret"},
    ) as response:
        assert response.status == 200
    with socket_to(site) as connection:
        connection.sendall(b'GET / topsecret"{ HTTP/9\r\n\r\n')
        assert b"400" in connection.recv(100)
    account = await router.requests(0, time.time())
    assert account.finished == 2
    text = router.record.path.read_text()
    assert "secret" not in text
    assert "127.0.0.1" not in text
    assert all(json.loads(line) for line in text.splitlines())
    assert router.record.path.stat().st_mode & 0o777 == 0o600
    assert text not in await router.unit.log_tail()


def socket_to(site: Site) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(site.url)))


async def test_a_record_that_begins_later_is_not_complete(make_router: MakeRouter) -> None:
    _, router = await make_router()
    now_s = time.time()
    assert "begins at" in (await router.requests(now_s - 3600, now_s)).incomplete


async def test_a_restart_of_the_router_leaves_open_requests_without_a_line_and_the_account_says_so(
    make_router: MakeRouter,
) -> None:
    site, router = await make_router()
    await finished(site, 2)
    await recorded(router, 2)
    since_s = time.time()
    os.kill((await router.unit.state()).main_pid or 0, signal.SIGKILL)
    await asyncio.sleep(0.5)
    await router.ensure_running()
    await finished(site, 1)
    account = await router.requests(since_s, time.time())
    assert account.finished == 1
    assert "the router was started at" in account.incomplete
    since_s = time.time()
    await finished(site, 1)
    assert (await router.requests(since_s, time.time())).incomplete == ""


async def keeper_of(router: ManagedRouter) -> int:
    return int(json.loads((router.unit.folder / "state.json").read_text())["supervisor"][0])


async def test_a_dead_reader_delays_no_request_and_the_dropped_lines_are_known(
    make_router: MakeRouter,
) -> None:
    site, router = await make_router()
    since_s = time.time()
    os.kill(await keeper_of(router), signal.SIGSTOP)
    try:
        connector = aiohttp.TCPConnector(limit=20)
        slowest_s = 0.0
        async with aiohttp.ClientSession(connector=connector) as session:

            async def client() -> None:
                nonlocal slowest_s
                for _ in range(400):
                    began = time.monotonic()
                    async with session.get(site.url + "/_router/mark") as response:
                        assert response.status == 204
                    slowest_s = max(slowest_s, time.monotonic() - began)

            await asyncio.gather(*(client() for _ in range(16)))
        assert slowest_s < 2
        assert int((await router.admin.info())["DroppedLogs"]) > 0
        with pytest.raises(RequestsUnknown, match="not being written"):
            await router.requests(since_s, time.time())
    finally:
        os.kill(await keeper_of(router), signal.SIGCONT)
    assert "dropped" in (await router.requests(since_s, time.time())).incomplete
    since_s = time.time()
    await finished(site, 1)
    assert (await router.requests(since_s, time.time())).incomplete == ""


async def test_a_killed_supervisor_loses_no_line_that_was_in_the_pipe(make_router: MakeRouter) -> None:
    site, router = await make_router()
    since_s = time.time()
    await finished(site, 3)
    keeper = await keeper_of(router)
    os.kill(keeper, signal.SIGKILL)
    while (row := read_process(keeper)) is not None and not row.zombie:
        await asyncio.sleep(0.01)
    await finished(site, 4)
    await router.unit.start()  # a new supervisor takes the running router over
    await finished(site, 5)
    account = await router.requests(since_s, time.time())
    assert account.finished == 12
    assert "was replaced" in account.incomplete


async def test_a_record_that_cannot_be_written_is_not_known_and_goes_on_once_it_can(
    make_router: MakeRouter,
) -> None:
    site, router = await make_router()
    await finished(site, 1)
    await router.requests(0, time.time())
    await asyncio.sleep(0.05)
    since_s = time.time()
    path = router.record.path
    path.unlink()
    path.mkdir()  # any error of the file system
    await finished(site, 7)
    await asyncio.sleep(0.3)
    with pytest.raises(RequestsUnknown, match="cannot be read"):
        await router.requests(since_s, time.time())
    path.rmdir()
    await finished(site, 2)
    account = await router.requests(since_s, time.time())
    assert account.finished == 2
    assert "could not be written" in account.incomplete


async def test_the_record_stays_below_its_bound_and_is_read_over_both_files(make_site: MakeSite) -> None:
    site = await make_site()
    router = ManagedRouter(site.config, site.config.router, state_dir=site.state_dir)
    path = router.record.path
    router.unit = SupervisedProcess(
        "router", router.unit.config, state_dir=site.state_dir / "units", output=(path, 30_000)
    )
    await router.ensure_running()
    try:
        since_s = time.time()
        for _ in range(4):
            await finished(site, 25)
            await asyncio.sleep(0.1)
        account: RequestAccount = await router.requests(since_s, time.time())
        assert older(path).exists()
        assert (account.finished, account.incomplete) == (100, "")
        for _ in range(8):
            await finished(site, 20)
            await asyncio.sleep(0.1)
        account = await router.requests(since_s, time.time())
        async with asyncio.timeout(20):
            while not path.exists():  # for a moment there is only the older one
                await asyncio.sleep(0.02)
        assert path.stat().st_size + older(path).stat().st_size < 45_000
        assert account.finished < 200
        assert "begins at" in account.incomplete
    finally:
        await router.unit.stop(grace_s=0)
