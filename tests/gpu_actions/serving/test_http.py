"""The HTTP client for engines and routers: its classes of failure, its deadline and its cap."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from gpu_actions.serving.http import HttpFailure, fetch, request
from tests.ports import free_port


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """Serve pages that answer well, late, partly, or with an error status."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="x" * 200_000)

    async def late(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async def part(call: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(call)
        await response.write(b"half")
        assert call.transport is not None
        call.transport.abort()
        return response

    async def sick(call: web.Request) -> web.Response:
        return web.json_response({"key": call.headers.get("Authorization")}, status=503)

    app = web.Application()
    for path, handler in (("/page", page), ("/late", late), ("/part", part), ("/sick", sick)):
        app.router.add_get(path, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}"
    await runner.cleanup()


async def test_a_page_is_read_up_to_its_cap_and_says_if_there_was_more(url: str) -> None:
    whole = await fetch(f"{url}/page", timeout_s=5)
    assert (whole.status, len(whole.body), whole.truncated) == (200, 200_000, False)
    exact = await fetch(f"{url}/page", timeout_s=5, max_bytes=200_000)
    assert (len(exact.body), exact.truncated) == (200_000, False)
    start = await fetch(f"{url}/page", timeout_s=5, max_bytes=1000)
    assert (len(start.text), start.truncated) == (1000, True)


async def test_an_error_status_is_an_answer_and_the_key_is_sent(url: str) -> None:
    page = await fetch(f"{url}/sick", timeout_s=5, api_key="sk-1")
    assert (page.status, page.json()) == (503, {"key": "Bearer sk-1"})
    assert (await fetch(f"{url}/page", timeout_s=5)).json() is None


async def test_each_failure_has_its_reason(url: str) -> None:
    cases = {
        "timeout": f"{url}/late",
        "refused": f"http://127.0.0.1:{free_port()}/",
        "broken": f"{url}/part",
        "invalid_url": "http://",
    }
    for reason, address in cases.items():
        begun = time.monotonic()
        with pytest.raises(HttpFailure) as failure:
            await fetch(address, timeout_s=0.5)
        assert failure.value.reason == reason
        assert time.monotonic() - begun < 5


async def test_a_failure_while_the_caller_reads_has_its_reason_too(url: str) -> None:
    with pytest.raises(HttpFailure) as broken:
        async with request("GET", f"{url}/part", timeout_s=5) as response:
            await response.read()
    assert broken.value.reason == "broken"
    with pytest.raises(HttpFailure) as malformed:
        async with request("GET", f"{url}/page", timeout_s=5) as response:
            int(await response.text())
    assert malformed.value.reason == "malformed"
