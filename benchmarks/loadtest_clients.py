"""Compare load generators on the same server: ours, vLLM's benchmark client, plain aiohttp, httpx. One core, one process.

For each: the highest rate of a ladder at which the p99 of the client's own lateness (start of the request after its due time)
stays under 5 ms and 99 % are served; and at 200 requests/s, as the median of three runs, the CPU a request and the error of
TTFT p50 and p99 against the times that the server itself logged for the same requests (its jitter is part of the truth).
All get the same schedule, prompts, uvloop and core. vLLM's request function is loaded from its file, unchanged:
  pip install --no-deps --target DIR vllm; pip install --target DIR httpx regex tqdm
  PYTHONPATH=.:DIR VLLM_REQUEST_FUNC=DIR/vllm/benchmarks/lib/endpoint_request_func.py python benchmarks/loadtest_clients.py
A client that is not installed is named as missing. aiohttp and httpx clients are written here, for this comparison. Then the
whole tools aiperf and guidellm beside our command (see `loadtest_tools.py`).
"""

import asyncio
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks import loadtest_tools
from benchmarks.loadtest_server import CHUNKS, ITL_MS, TTFT_MS, log_entries, port_of, quantile, start_server
from gpu_actions.loadtest.generator import Generator
from gpu_actions.loadtest.outcomes import Outcome
from gpu_actions.loadtest.prompts import PromptMaker
from gpu_actions.loadtest.schedule import Schedule, make_schedule
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import resolve_target

LADDER = (50, 100, 200, 400, 700, 1000, 1500, 2000, 2500, 3000)
SECONDS = 3.0
LATENESS_LIMIT_MS = 5.0
CLIENTS = ("ours", "vllm", "aiohttp", "httpx")
Request = Callable[[int, bytes], Awaitable[tuple[float, bool]]]
"""Sends one request for a row and its prompt. Returns the seconds to its first token and whether it was served."""


async def run_ours(spec: LoadSpec, schedule: Schedule) -> tuple[list[float], list[float], int]:
    """Return lateness and TTFT (both from the due time, ms), and how many requests were served."""
    generator = Generator(
        spec, schedule, range(len(schedule)), await resolve_target(spec), PromptMaker(spec, "bytes")
    )
    await generator.run(monotonic() + spec.warmup_s + 0.3, asyncio.Event(), drain_s=10)
    records = generator.records
    rows = range(schedule.warmup, len(schedule))
    late = [(records.dispatched_s[row] - schedule.due_s[row]) * 1e3 for row in rows]
    served = [row for row in rows if records.outcome[row] == Outcome.OK]
    return late, [(records.first_s[row] - schedule.due_s[row]) * 1e3 for row in served], len(served)


async def run_other(
    spec: LoadSpec, schedule: Schedule, request: Request
) -> tuple[list[float], list[float], int]:
    """Run the same schedule through a request function, one task per request, timed from sending as such tools do."""
    maker = PromptMaker(spec, "bytes")
    start = monotonic() + spec.warmup_s + 0.3
    late: list[float] = []
    ttft: list[float] = []

    async def one(row: int) -> None:
        begun = monotonic()
        first, served = await request(row, maker.prompt(row, schedule.prompt_len[row]))
        if row >= schedule.warmup:
            late.append((begun - start - schedule.due_s[row]) * 1e3)
            if served:
                ttft.append(first * 1e3)

    tasks = []
    for row in range(len(schedule)):
        if (wait := start + schedule.due_s[row] - monotonic()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(row)))
    await asyncio.wait(tasks, timeout=20)
    unfinished = [task for task in tasks if not task.done()]
    for task in unfinished:
        task.cancel()
    late += [20_000.0] * len(unfinished)
    return late, ttft, len(ttft)


async def run_client(name: str, spec: LoadSpec, schedule: Schedule) -> tuple[list[float], list[float], int]:
    if name == "ours":
        return await run_ours(spec, schedule)
    url = f"{spec.url}/v1/completions"

    def body(prompt: bytes) -> dict[str, Any]:
        return {
            "model": "truth", "prompt": prompt.decode(), "max_tokens": CHUNKS, "stream": True, "ignore_eos": True,
            "stream_options": {"include_usage": True}, "temperature": 0,
        }  # fmt: skip

    if name == "httpx":
        import httpx

        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:

            async def with_httpx(row: int, prompt: bytes) -> tuple[float, bool]:
                begun, first, usage = monotonic(), 0.0, False
                async with client.stream("POST", url, json=body(prompt)) as response:
                    async for line in response.aiter_lines():
                        if line.startswith("data: {"):
                            first = first or monotonic() - begun
                            usage = usage or bool(json.loads(line[6:]).get("usage"))
                return first, usage

            return await run_other(spec, schedule, with_httpx)
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=60, ttl_dns_cache=300)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        if name == "vllm":
            module = load_vllm()

            async def with_vllm(row: int, prompt: bytes) -> tuple[float, bool]:
                wanted = module.RequestFuncInput(
                    prompt=prompt.decode(),
                    api_url=url,
                    prompt_len=len(prompt),
                    output_len=CHUNKS,
                    model="truth",
                    ignore_eos=True,
                )
                output = await module.async_request_openai_completions(wanted, session)
                return output.ttft, output.success

            return await run_other(spec, schedule, with_vllm)

        async def with_aiohttp(row: int, prompt: bytes) -> tuple[float, bool]:
            begun, first, usage = monotonic(), 0.0, False
            async with session.post(url, json=body(prompt)) as response:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        first = first or monotonic() - begun
                        usage = usage or bool(json.loads(line[6:]).get("usage"))
            return first, usage

        return await run_other(spec, schedule, with_aiohttp)


def load_vllm() -> Any:
    """Load vLLM's request function from its own file, without importing vLLM (which needs CUDA libraries)."""
    definition = importlib.util.spec_from_file_location(
        "endpoint_request_func", os.environ["VLLM_REQUEST_FUNC"]
    )
    assert definition is not None
    assert definition.loader is not None
    module = importlib.util.module_from_spec(definition)
    sys.modules["endpoint_request_func"] = module
    definition.loader.exec_module(module)
    return module


def missing(name: str) -> str | None:
    """Return why a client cannot be run here, or None."""
    if name == "vllm":
        path = os.environ.get("VLLM_REQUEST_FUNC")
        return None if path and Path(path).is_file() else "VLLM_REQUEST_FUNC does not name its file"
    if name != "ours" and importlib.util.find_spec(name) is None:
        return f"{name} is not installed"
    return None


def child(name: str, port: int, rate: float, seconds: float) -> None:
    """Run one client at one rate in this process and print its figures as JSON."""
    import uvloop

    spec = LoadSpec(
        url=f"http://127.0.0.1:{port}",
        model="truth",
        target_qps=rate,
        duration_s=seconds,
        warmup_s=1,
        max_new_tokens=CHUNKS,
        seed=4,
    )
    schedule = make_schedule(spec)
    before = resource.getrusage(resource.RUSAGE_SELF)
    late, ttft, served = uvloop.run(run_client(name, spec, schedule))
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        json.dumps({
            "lateness_p99_ms": quantile(late, 0.99),
            "ttft_p50_ms": quantile(ttft, 0.5) if ttft else None,
            "ttft_p99_ms": quantile(ttft, 0.99) if ttft else None,
            "served": served / max(1, len(late)),
            "cpu_us": cpu_s / len(schedule) * 1e6,
            "rss_mb": after.ru_maxrss / 1024,
        })
    )  # fmt: skip


def measure(name: str, port: int, rate: float) -> dict[str, float]:
    """Run one client at one rate in a process of its own on core 0."""
    argv = ["taskset", "-c", "0", sys.executable, __file__, "child", name, str(port), str(rate), str(SECONDS)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False)
    if ended.returncode:
        raise SystemExit(f"{name} at {rate}: {ended.stderr[-400:]}")
    figures: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def highest_rate(name: str, port: int) -> tuple[float, float]:
    """Return the highest rate that the client sustains, and its p99 lateness there. A failed rate is tried twice, as machines
    are shared."""

    def sustains(rate: float) -> float | None:
        figures = measure(name, port, rate)
        good = figures["lateness_p99_ms"] < LATENESS_LIMIT_MS and figures["served"] >= 0.99
        return figures["lateness_p99_ms"] if good else None

    best, late = 0.0, 0.0
    for rate in LADDER:
        found = sustains(rate)
        if found is None:
            found = sustains(rate)
        if found is None:
            break
        best, late = rate, found
    return best, late


def against_truth(name: str, port: int, log: Path) -> dict[str, float]:
    """Return CPU and errors at 200 requests/s against the server's log of the same run."""
    before = log.stat().st_size
    figures = measure(name, port, 200)
    entries = log_entries(log, before)
    truth = [(entry["first"] - entry["arrived"]) * 1e3 for entry in entries]
    return {
        "cpu_us": figures["cpu_us"],
        "rss_mb": figures["rss_mb"],
        "p50_error": figures["ttft_p50_ms"] - quantile(truth, 0.5),
        "p99_error": figures["ttft_p99_ms"] - quantile(truth, 0.99),
    }


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "truth.jsonl"
        servers = [start_server(None), start_server(log)]
        try:
            fast, logged = map(port_of, servers)
            print(
                f"server: TTFT {TTFT_MS:g} ms, ITL {ITL_MS:g} ms, {CHUNKS} chunks; load average {os.getloadavg()[0]:.1f}"
            )
            heads = f"{'late p99':>10}{'CPU/request':>13}{'p50 error':>11}{'p99 error':>11}{'RSS':>8}"
            print(f"{'client':<10}{'highest QPS':>12}{heads}")
            for name in CLIENTS:
                if reason := missing(name):
                    print(f"{name:<10}missing: {reason}")
                    continue
                best, late = highest_rate(name, fast)
                three = [against_truth(name, logged, log) for _ in range(3)]
                middle = {key: sorted(figures[key] for figures in three)[1] for key in three[0]}
                print(
                    f"{name:<10}{best:>12g}{late:>8.2f}ms{middle['cpu_us']:>11.0f}us{middle['p50_error']:>9.2f}ms"
                    f"{middle['p99_error']:>9.2f}ms{middle['rss_mb']:>6.0f}MB",
                    flush=True,
                )
        finally:
            for server in servers:
                server.kill()
                server.wait()
    loadtest_tools.table()
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
        sys.exit(0)
    sys.exit(main())
