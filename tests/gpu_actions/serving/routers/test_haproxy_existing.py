"""An existing HAProxy, driven through its admin socket alone: names that it does not have are refused."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from gpu_actions.serving.interfaces import RouterError
from gpu_actions.serving.routers.haproxy_router import ExistingRouter
from tests.gpu_actions.serving.conftest import MakeSite, Site
from tests.ports import free_port

StartTheirs = Callable[..., Awaitable[tuple[Site, ExistingRouter]]]


@pytest.fixture
async def start_theirs(make_site: MakeSite, tmp_path: Path) -> AsyncIterator[StartTheirs]:
    """Start a HAProxy with a configuration of its own, and return a router that drives it."""
    running: list[asyncio.subprocess.Process] = []

    async def start(
        *backends: str, servers: str = "tp single", **settings: object
    ) -> tuple[Site, ExistingRouter]:
        port, socket = free_port(), tmp_path / "theirs.sock"
        site = await make_site(managed=False, socket=socket, url=f"http://127.0.0.1:{port}", **settings)
        lines = [
            f"global\n stats socket {socket} mode 600 level admin",
            "defaults\n mode http\n timeout connect 2s\n timeout client 9s\n timeout server 9s",
            f"frontend in\n bind 127.0.0.1:{port}\n default_backend {backends[0]}",
        ]
        ports = dict(zip(servers.split(), (site.tp.port, site.fallback.port), strict=True))
        for backend in backends:
            lines.append(f"backend {backend}")
            lines += [
                f" server {name} 127.0.0.1:{number} weight 100 maxconn 50" for name, number in ports.items()
            ]
        config = tmp_path / "theirs.cfg"
        config.write_text("\n".join(lines) + "\n")
        process = await asyncio.create_subprocess_exec("haproxy", "-db", "-f", str(config))
        running.append(process)
        while not socket.exists():
            await asyncio.sleep(0.01)
        router = site.config.router.build(site.config, state_dir=site.state_dir)
        assert isinstance(router, ExistingRouter)
        return site, router

    yield start
    for process in running:
        process.kill()
        await process.wait()


async def test_weights_and_drain_work_on_an_existing_router(start_theirs: StartTheirs) -> None:
    site, router = await start_theirs("serve", "serve_long")
    await router.ensure_running()
    await router.shift({"single": 256, "tp": 0})
    assert (await router.server("tp")).weight == 0
    async with site.session.get(site.url) as response:
        assert await response.text() == "single"
    with pytest.raises(RouterError, match="without usable weight"):
        await router.drain("single")


async def test_the_long_backend_is_optional(start_theirs: StartTheirs) -> None:
    _, router = await start_theirs("serve")
    await router.ensure_running()
    assert {row.backend for row in await router.servers()} == {"serve"}
    in_force = await router.apply_back_pressure("single")
    assert in_force == {"max_concurrent": 16}


async def test_an_unknown_server_is_refused_with_the_ones_that_the_router_has(
    start_theirs: StartTheirs,
) -> None:
    _, router = await start_theirs("serve", servers="blue green")
    with pytest.raises(RouterError, match=r"no server serve/tp; it has: serve/blue, serve/green"):
        await router.ensure_running()
    with pytest.raises(RouterError, match=r"no server serve/tp; it has: serve/blue, serve/green"):
        await router.set_weight("tp", 5)


async def test_an_unknown_backend_is_refused_with_the_ones_that_the_router_has(
    start_theirs: StartTheirs,
) -> None:
    _, router = await start_theirs("llm", "llm_batch")
    with pytest.raises(RouterError, match=r"no backend 'serve'; it has: llm, llm_batch"):
        await router.ensure_running()


async def test_names_of_the_settings_are_used(start_theirs: StartTheirs) -> None:
    _, router = await start_theirs("llm", "llm_batch", backend="llm", long_backend="llm_batch")
    await router.ensure_running()
    await router.set_weight("tp", 3)
    assert {(row.backend, row.weight) for row in await router.servers() if row.server == "tp"} == {
        ("llm", 3),
        ("llm_batch", 3),
    }


async def test_lifting_back_pressure_restores_the_earlier_limits(start_theirs: StartTheirs) -> None:
    _, router = await start_theirs("serve", "serve_long")

    async def limits() -> dict[str, int | None]:
        return {row.backend: row.limit for row in await router.admin.stat() if row.server == "single"}

    before = await limits()
    assert await router.apply_back_pressure("single") == {
        "max_concurrent": 16,
        "short_concurrent": 12,
        "long_concurrent": 4,
    }
    await router.apply_back_pressure("single")
    assert await limits() == {"serve": 12, "serve_long": 4}
    await router.clear_back_pressure("single")
    assert await limits() == before
    await router.clear_back_pressure("single")


async def test_a_router_that_is_down_is_an_error_that_names_its_socket(
    make_site: MakeSite, tmp_path: Path
) -> None:
    site = await make_site(managed=False, socket=tmp_path / "nobody.sock")
    with pytest.raises(RouterError, match=r"nobody\.sock does not answer"):
        await site.config.router.build(site.config, state_dir=site.state_dir).ensure_running()
