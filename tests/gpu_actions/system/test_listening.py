"""Finding listeners on real sockets: a listener, connections without one, and a process that never starts."""

import asyncio
import os
import socket
import time

import pytest

from gpu_actions.serving.interfaces import UnitState
from gpu_actions.serving.units.base import runs_although_frozen
from gpu_actions.system.listening import listener_of, listens, until_listening
from gpu_actions.system.urls import port_of
from tests.ports import free_port


def test_a_listener_is_named_with_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert f"(process {os.getpid()})" in (listener_of(server.getsockname()[1]) or "")


def test_a_listener_on_ipv6_counts_too() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert listener_of(server.getsockname()[1]) is not None


def test_connections_without_a_listener_do_not_count() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    client = socket.create_connection(("127.0.0.1", port))
    accepted, _ = server.accept()
    server.close()
    with client, accepted:  # one end of the connection still has the port
        assert listener_of(port) is None
    assert listener_of(port) is None


async def test_a_frozen_tier_that_runs_is_reported_with_the_process_that_runs_it() -> None:
    stopped = UnitState(active=False, frozen=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert (await runs_although_frozen(stopped, url)).endswith(
            f"(process {os.getpid()}) listens on its port {port_of(url)}"
        )
        assert await runs_although_frozen(UnitState(active=False, frozen=False), url) == ""
    assert await runs_although_frozen(stopped, url) == ""
    assert await runs_although_frozen(UnitState(active=True, frozen=True, main_pid=7), url) == "process 7"
    assert await runs_although_frozen(UnitState(active=True, frozen=False, main_pid=7), url) == ""


@pytest.mark.parametrize(
    ("url", "port"),
    [("http://h:81/x", 81), ("http://h", 80), ("https://h/v1", 443), ("http://[::1]:9000", 9000)],
)
def test_the_port_of_a_url_has_its_schemes_default(url: str, port: int) -> None:
    assert port_of(url) == port


async def test_waiting_ends_as_soon_as_a_process_listens() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    waiting = asyncio.create_task(until_listening(url, deadline=time.monotonic() + 30))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)
    async with server:
        await asyncio.wait_for(waiting, 5)
        assert await listens(url)


async def test_waiting_ends_when_the_process_is_gone_and_at_the_deadline() -> None:
    url = f"http://127.0.0.1:{free_port()}"

    async def gone() -> bool:
        return False

    began = time.monotonic()
    await until_listening(url, deadline=began + 60, still_starting=gone)
    assert time.monotonic() - began < 10
    await until_listening(url, deadline=time.monotonic() + 0.1)
    assert not await listens(url)
