"""A small slow backend and a host's settings, for tests that drive a real HAProxy."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gpu_actions.config.host import HostConfig
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from tests.ports import free_port


@dataclass
class Backend:
    """Counts its concurrent requests. A request takes `service_s`; `?chunks=N` streams N chunks; `answer` is a content type
    and the pieces to send instead."""

    name: str
    port: int
    service_s: float = 0.0
    inflight: int = 0
    peak: int = 0
    served: int = 0
    broken: int = 0
    arrivals: list[float] = field(default_factory=list)
    answer: tuple[str, tuple[bytes, ...]] | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        loop = asyncio.get_running_loop()
        self.arrivals.append(loop.time())
        self.inflight += 1
        self.peak = max(self.peak, self.inflight)
        try:
            chunks = int(request.query.get("chunks", "0"))
            if self.answer is not None:
                content_type, pieces = self.answer
                response = web.StreamResponse(headers={"Content-Type": content_type})
                await response.prepare(request)
                for piece in pieces:
                    await response.write(piece)
                    await asyncio.sleep(0.01)
                await response.write_eof()
                return response
            if not chunks:
                await asyncio.sleep(self.service_s)
                self.served += 1
                return web.Response(text=self.name)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for number in range(chunks):
                await response.write(f"data: {self.name} {number}\n\n".encode())
                await asyncio.sleep(float(request.query.get("gap", "0.05")))
            await response.write_eof()
            self.served += 1
            return response
        except (asyncio.CancelledError, ConnectionError):
            self.broken += 1
            raise
        finally:
            self.inflight -= 1


@dataclass
class Site:
    """A host: two backends and its settings."""

    tp: Backend
    fallback: Backend
    config: HostConfig
    state_dir: Path
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return self.config.router.url


def host_config(tp_port: int, fallback_port: int, **router: Any) -> HostConfig:
    def tier(name: str, port: int, weight: int) -> dict[str, Any]:
        return {
            "engine": {"url": f"http://127.0.0.1:{port}", "model": "m"},
            "unit": {"driver": "process", "argv": ["true"]},
            "server": name,
            "weight": weight,
        }

    return HostConfig.model_validate(
        {
            "name": "test",
            "tiers": {"tp": tier("tp", tp_port, 100), "fallback": tier("single", fallback_port, 90)},
            "router": {"url": f"http://127.0.0.1:{free_port()}", **router},
        }
    )


MakeSite = Callable[..., Awaitable[Site]]


@pytest.fixture
async def make_site(tmp_path: Path) -> AsyncIterator[MakeSite]:
    """Start two backends and return a host with them."""
    runners: list[web.AppRunner] = []
    sessions: list[aiohttp.ClientSession] = []

    async def serve(name: str) -> Backend:
        backend = Backend(name, free_port())
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", backend.handle)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", backend.port).start()
        runners.append(runner)
        return backend

    async def make(**router: Any) -> Site:
        tp, fallback = await serve("tp"), await serve("single")
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        sessions.append(session)
        return Site(tp, fallback, host_config(tp.port, fallback.port, **router), tmp_path / "state", session)

    yield make
    for session in sessions:
        await session.close()
    for runner in runners:
        await runner.cleanup()


MakeRouter = Callable[..., Awaitable[tuple[Site, ManagedRouter]]]


@pytest.fixture
async def make_router(make_site: MakeSite) -> AsyncIterator[MakeRouter]:
    """Start a managed router in front of two backends; it is stopped after the test."""
    made: list[ManagedRouter] = []

    async def make(**router: Any) -> tuple[Site, ManagedRouter]:
        site = await make_site(**router)
        made.append(ManagedRouter(site.config, site.config.router, state_dir=site.state_dir))
        await made[-1].ensure_running()
        return site, made[-1]

    yield make
    for router in made:
        await router.unit.stop(grace_s=0)
