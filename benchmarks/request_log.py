"""Measure what the router's record of requests costs a request, and what looking into answers costs a chunk of a stream.

    python -m benchmarks.request_log [record|answers]

The same load on two routers, with and without it. Both run at once and are loaded in turns, so the ratio does not depend on
the machine's other work: time per request with it divided by that without it, p50 and p99, and CPU time of router and writer
per request (for `answers`: per chunk).
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
from aiohttp import web

from gpu_actions.serving.routers import haproxy_managed
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from gpu_actions.system.proc import TICKS_PER_S
from tests.gpu_actions.serving.conftest import host_config
from tests.ports import free_port

ROUNDS = 12
CLIENTS = 16
REQUESTS = 150
"""Per client and round."""

STREAMS, CHUNKS = 10, 100
"""Streams per client and round, and the chunks of each, of the size of a token's event."""

EVENT = (
    b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1764200000,"model":"m","choices":'
    b'[{"index":0,"text":" token","logprobs":null,"finish_reason":null,"stop_reason":null}],"usage":null}\n\n'
)


class WithoutRecord(ManagedRouter):
    """The managed router with a configuration that writes no line."""

    def _write_files(self, limited: frozenset[str]) -> None:
        super()._write_files(limited)
        file = self.folder / haproxy_managed.haproxy_config.CONFIG_NAME
        text = file.read_text()
        assert "    log stdout" in text
        file.write_text(text.replace("    log stdout", "    # log stdout"))


async def answer(request: web.Request) -> web.StreamResponse:
    if not request.path.endswith("completions"):
        return web.Response(text="ok")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for _ in range(CHUNKS):
        await response.write(EVENT)
        await asyncio.sleep(0.001)
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


async def load(url: str, requests: int) -> list[float]:
    """Return how long each request of one round took."""
    taken: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CLIENTS)) as session:

        async def client() -> None:
            for _ in range(requests):
                began = time.perf_counter()
                async with session.get(url) as response:
                    await response.read()
                taken.append(time.perf_counter() - began)

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return taken


async def main(what: str) -> None:
    streams = what == "answers"
    path, requests, unit = ("/v1/completions", STREAMS, CHUNKS) if streams else ("", REQUESTS, 1)
    port = free_port()
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    with tempfile.TemporaryDirectory() as folder:
        routers: dict[str, ManagedRouter] = {}
        for name in ("without", "with"):
            config = host_config(port, port, check_answers=streams and name == "with")
            kind = WithoutRecord if not streams and name == "without" else ManagedRouter
            routers[name] = kind(config, config.router, state_dir=Path(folder) / name)
            await routers[name].ensure_running()
        taken: dict[str, list[float]] = {name: [] for name in routers}
        pids = {
            name: [(await router.unit.state()).main_pid or 0, _supervisor(router)]
            for name, router in routers.items()
        }
        before = {name: [cpu_s(pid) for pid in pids[name]] for name in routers}
        for number in range(ROUNDS):
            for name in sorted(routers, reverse=bool(number % 2)):
                taken[name] += await load(routers[name].config.url + path, requests)
        used = {
            name: [cpu_s(pid) - earlier for pid, earlier in zip(pids[name], before[name], strict=True)]
            for name in routers
        }
        for router in routers.values():
            await router.unit.stop(grace_s=0)
    await runner.cleanup()
    p50 = {name: statistics.median(values) for name, values in taken.items()}
    p99 = {name: statistics.quantiles(values, n=100)[98] for name, values in taken.items()}
    count = len(taken["with"])
    print(
        json.dumps(
            {
                "requests": count,
                "p50_ratio": round(p50["with"] / p50["without"], 3),
                "p99_ratio": round(p99["with"] / p99["without"], 3),
                "per": "chunk" if streams else "request",
                "router_cpu_us": {n: round(1e6 * used[n][0] / count / unit, 1) for n in used},
                "writer_cpu_us": round(1e6 * used["with"][1] / count / unit, 1),
                "cpu_count": os.cpu_count(),
            },
            indent=1,
        )
    )


def _supervisor(router: ManagedRouter) -> int:
    return int(json.loads((router.unit.folder / "state.json").read_text())["supervisor"][0])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "record"))
