"""A long prefill, a hang and an engine that lost its requests: with real processes, a fake driver and a real HAProxy."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Verdict
from gpu_actions.serving.condition import Condition
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.progress import progress_of
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.triage.judge import judge
from tests.gpu_actions.fakes import FakeEngine, end
from tests.ports import free_port

StartEngine = Callable[..., Awaitable[FakeEngine]]
LIMITS = TriageThresholds(window_s=0.6, completion_deadline_s=0.7, metrics_timeout_s=0.5)
BURN = "import sys\nwhile True: pass"
SLEEP = "import time; time.sleep(600)"


@contextmanager
def ranks(*programs: str) -> Iterator[list[int]]:
    """Run processes that call themselves ranks 0, 1, ..."""
    running = [
        subprocess.Popen([sys.executable, "-c", program, "--rank", str(number)])
        for number, program in enumerate(programs)
    ]
    try:
        yield [process.pid for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()


async def triage_of(url: str, pids: list[int], **fields: object) -> tuple[Snapshot, Verdict]:
    target = TriageTarget.model_validate(
        {
            "host": "h",
            "expect_gpus": 0,
            "engine_url": url,
            "model": "m",
            "pids": pids,
            "ranks": len(pids),
            **fields,
        }
    )
    snapshot = await collect(target, LIMITS)
    return snapshot, judge(snapshot, LIMITS)


@pytest.mark.parametrize(
    ("programs", "condition", "verdict"),
    [
        ((BURN,), Condition.SLOW, "healthy"),
        ((SLEEP,), Condition.HUNG, "unknown"),
        ((BURN, SLEEP), Condition.HUNG, "unknown"),  # the ranks compute in step: one idle rank holds up all
    ],
)
async def test_on_a_host_without_gpus_ranks_that_compute_are_a_prefill_and_idle_ones_a_stall(
    start_engine: StartEngine, programs: tuple[str, ...], condition: Condition, verdict: str
) -> None:
    engine = await start_engine(running=1, completion="hang")
    with ranks(*programs) as pids:
        snapshot, judged = await triage_of(engine.url, pids)
    assert progress_of(snapshot, LIMITS).condition is condition, judged.findings
    assert judged.verdict == verdict
    assert ("serving.prefill" in {row.id for row in judged.findings}) == (condition is Condition.SLOW)


GPU_CASES = {
    "reads a prompt": ("utilisation=45", "power_mw=260000", Condition.SLOW, "healthy"),
    "waits in NCCL": ("utilisation=100", "power_mw=150000", Condition.HUNG, "unknown"),
    "is stopped": ("utilisation=0", "power_mw=122000", Condition.HUNG, "unknown"),
}


@pytest.mark.parametrize("name", GPU_CASES)
async def test_a_prefill_is_told_from_a_hang_by_utilisation_and_power(
    start_engine: StartEngine, fake_nvml: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    utilisation, power, condition, verdict = GPU_CASES[name]
    engine = await start_engine(running=1, completion="hang")
    log = tmp_path / "kernel.log"
    log.write_text("kernel: usb 1-1: new device\n")
    with ranks(SLEEP) as pids:
        fake_nvml(
            "gpus=8",
            f"gpu.*.process={pids[0]}",
            "gpu.*.process_sm=40",
            f"gpu.*.{utilisation}",
            f"gpu.*.{power}",
        )
        snapshot, judged = await triage_of(engine.url, pids, expect_gpus=8, kernel_log=log)
    assert progress_of(snapshot, LIMITS).condition is condition, judged.findings
    assert judged.verdict == verdict, [f"{row.severity} {row.id}: {row.summary}" for row in judged.findings]
    assert snapshot.nvml is not None
    assert snapshot.nvml.gpus[0].processes[0].sm_percent == 40
    assert snapshot.nvml.gpus[0].processes[0].name.startswith("python")


async def test_a_stranger_on_a_gpu_of_the_tier_is_named_with_its_share(
    start_engine: StartEngine, fake_nvml: Callable[..., Path], tmp_path: Path
) -> None:
    engine = await start_engine(running=1, tokens_per_s=9)
    log = tmp_path / "kernel.log"
    log.write_text("kernel: usb 1-1: new device\n")
    with ranks(SLEEP) as pids, ranks(SLEEP) as strangers:
        fake_nvml(
            "gpus=8", f"gpu.*.process={pids[0]}", "gpu.*.process_sm=4", f"gpu.5.stranger={strangers[0]}",
            "gpu.5.stranger_sm=93", "gpu.5.stranger_mib=10240", "gpu.*.utilisation=97", "gpu.*.power_mw=300000",
        )  # fmt: skip
        _, verdict = await triage_of(engine.url, pids, expect_gpus=8, kernel_log=log)
    assert (verdict.verdict, verdict.cause) == ("watch", "gpu_hogged"), verdict.findings
    for part in (
        "GPU 5",
        "python",
        f"(pid {strangers[0]}) uses 93 % and holds 10.0 GiB",
        "own processes 4 %",
    ):
        assert part in verdict.summary
    assert verdict.fallback_gpu is not None and verdict.fallback_gpu.index != 5


async def test_a_monitor_reads_the_gpus_only_once_requests_are_stuck(
    start_engine: StartEngine, fake_nvml: Callable[..., Path]
) -> None:
    only = frozenset({"engine", "ranks", "activity", "stacks"})
    with ranks(SLEEP) as pids:
        fake_nvml("gpus=8", f"gpu.*.process={pids[0]}", "gpu.*.utilisation=45", "gpu.*.power_mw=260000")
        for tokens_per_s, status, state in ((300.0, "skipped", "flowing"), (0.0, "ok", "prefill")):
            engine = await start_engine(running=1, tokens_per_s=tokens_per_s)
            target = TriageTarget(host="h", expect_gpus=8, engine_url=engine.url, pids=(pids[0],))
            snapshot = await collect(target, LIMITS, only=only)
            assert snapshot.collectors["activity"].status == status
            assert snapshot.collectors["stacks"].status == "skipped", "a prefill needs no stacks"
            assert progress_of(snapshot, LIMITS).state == state


CONFIG = """
global
  stats socket {socket} mode 600 level admin
defaults
  mode http
  timeout connect 1s
  timeout client 30s
  timeout server 30s
frontend in
  bind 127.0.0.1:{port}
  default_backend serve
backend serve
  server tp {engine}
"""


@contextmanager
def haproxy(folder: Path, engine_url: str) -> Iterator[tuple[str, Path]]:
    """Run a real HAProxy in front of an engine. Yield its URL and its admin socket."""
    program = shutil.which("haproxy")
    assert program, "install haproxy (make setup)"
    port, socket = free_port(), folder / "admin.sock"
    config = CONFIG.format(socket=socket, port=port, engine=engine_url.removeprefix("http://"))
    (folder / "h.cfg").write_text(config)
    process = subprocess.Popen([program, "-db", "-q", "-f", str(folder / "h.cfg")], start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}", socket
    finally:
        end(process)


async def ask(url: str, clients: int) -> None:
    """Send requests through the router and wait for their answers, as clients do."""
    async with aiohttp.ClientSession() as session:

        async def one() -> None:
            body = {"model": "m", "prompt": "a", "max_tokens": 4}
            async with session.post(f"{url}/v1/completions", json=body) as response:
                await response.read()

        await asyncio.gather(*(one() for _ in range(clients)))


@pytest.mark.parametrize(
    ("only", "in_doubt"),
    [
        (None, frozenset()),
        (frozenset({"engine", "ranks", "router", "completion"}), frozenset({"completion"})),
    ],
    ids=["triage", "hang watch"],
)
async def test_an_engine_that_lost_its_requests_is_found_at_once_by_the_routers_open_sessions(
    start_engine: StartEngine, tmp_path: Path, only: frozenset[str] | None, in_doubt: frozenset[str]
) -> None:
    engine = await start_engine(running=0, completion="hang")
    with ranks(SLEEP) as pids, haproxy(tmp_path, engine.url) as (url, socket):
        target = TriageTarget(
            host="h", expect_gpus=0, engine_url=engine.url, model="m", pids=(pids[0],), ranks=1,
            router_address=str(socket), router_server="tp",
        )  # fmt: skip
        while not socket.exists():
            await asyncio.sleep(0.02)
        clients = asyncio.create_task(ask(url, 3))
        await asyncio.sleep(0.3)
        snapshot = await collect(target, LIMITS, only=only, in_doubt=in_doubt)
        clients.cancel()
    verdict = judge(snapshot, LIMITS)
    assert (verdict.verdict, verdict.cause) == ("fall_back", "engine_stalled"), verdict.findings
    assert "the router holds 3 open" in verdict.summary


async def test_a_client_that_is_slow_does_not_make_an_idle_engine_look_wedged(
    start_engine: StartEngine, tmp_path: Path
) -> None:
    """The router holds its request open while the engine has none; the probe is answered."""
    engine = await start_engine(running=0, completion_s=0.1)
    with ranks(SLEEP) as pids, haproxy(tmp_path, engine.url) as (url, socket):
        while not socket.exists():
            await asyncio.sleep(0.02)
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        target = TriageTarget(
            host="h", expect_gpus=0, engine_url=engine.url, model="m", pids=(pids[0],), ranks=1,
            router_address=str(socket), router_server="tp",
        )  # fmt: skip
        snapshot = await collect(target, LIMITS)
        writer.close()
    assert snapshot.router is not None and snapshot.router.servers[0].sessions == 1
    assert progress_of(snapshot, LIMITS).condition is Condition.SERVING
    assert judge(snapshot, LIMITS).verdict == "healthy"
