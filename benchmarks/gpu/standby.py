"""What a standby is worth: cold, page-cached, sleeping and resident starts of the reference engine, in one run.

The weights are read from a file, so that a cold start means what it means for a real model. Then a fallback from a hung tier to
a woken standby.
"""

import asyncio
import ctypes
import math
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_actions.serving.interfaces import Engine, Unit
from gpu_actions.system.proc import resident_gib
from gpu_actions.tier.gpu_memory import read_gpus

if TYPE_CHECKING:
    from benchmarks.gpu.validate import Record, Validation

REPEATS = 3
GIB = 1024**3
SIZES = {"8 GiB": ("4096", "20", "32"), "1 GiB": ("2048", "10", "16")}
"""Hidden size, layers and heads: 12 * hidden^2 weights of two bytes per layer."""

COPY = """
import sys, time, torch
from pathlib import Path
from demo.engine.weights import Weights
path = Path(sys.argv[1]); size = path.stat().st_size
torch.cuda.init(); torch.zeros(1, device="cuda")
w = Weights({"all": (size // 2,)}, torch.device("cuda", 0), torch.bfloat16)
began = time.monotonic(); assert w.load(path); torch.cuda.synchronize(); print(time.monotonic() - began)
began = time.monotonic(); w.leave_device(); print(time.monotonic() - began)
began = time.monotonic(); w.return_to_device(); print(time.monotonic() - began)
"""


async def standby(v: "Validation") -> "Record":
    """Measure the starts for two sizes of weights; on a machine without GPUs only the path is exercised."""
    sizes = SIZES if v.gpus else {"tiny": ("256", "4", "8")}
    return {name: await _starts(v, name, *shape) for name, shape in sizes.items()}


async def _starts(v: "Validation", name: str, hidden: str, layers: str, heads: str) -> dict[str, Any]:
    folder = v.work / name.replace(" ", "")
    folder.mkdir()
    flags = (
        "--hidden-size", hidden, "--num-layers", layers, "--num-heads", heads, "--max-num-seqs", "8",
        "--max-model-len", "512", "--enable-sleep-mode", "1", "--weights-dir", str(folder),
    )  # fmt: skip
    record: dict[str, Any] = {}
    async with v.engine(1, *flags) as (unit, _, ready_s):
        record["first_start_draws_and_writes_s"] = round(ready_s, 2)
    (file,) = folder.glob("*.weights")
    record["weights_gib"] = round(file.stat().st_size / GIB, 2)
    record["cold"], record["page_cached"] = [], []
    for _ in range(REPEATS):
        record["cached_before_cold_start_gib"] = round(_drop_from_page_cache(file), 2)
        async with v.engine(1, *flags) as (unit, _, ready_s):
            record["cold"].append(await _start_of(unit, ready_s))
    for _ in range(REPEATS):
        async with v.engine(1, *flags) as (unit, engine, ready_s):
            record["page_cached"].append(await _start_of(unit, ready_s))
            if len(record["page_cached"]) == REPEATS:
                record["resident"] = await _resident(unit, engine)
                record["asleep"] = [await _sleep_and_wake(unit, engine) for _ in range(REPEATS)]
    if v.gpus:
        done = subprocess.run(  # noqa: ASYNC221  (nothing else runs)
            [sys.executable, "-c", COPY, str(file)],
            check=True,
            capture_output=True,
            env=os.environ | v.environment(),
        )
        read, lock, back = (round(float(line), 3) for line in done.stdout.split())
        record["copy_alone_s"] = {
            "file_in_page_cache_to_gpu": read,
            "to_locked_host_memory": lock,
            "back": back,
        }
    file.unlink()
    return record


async def _start_of(unit: Unit, ready_s: float) -> dict[str, float]:
    """Return the seconds to the first token and those of the engine's own phases."""
    phases = {"first_token_s": round(ready_s, 2)}
    for line in (await unit.log_tail(20_000)).splitlines():
        _, found, rest = line.partition("start-up: ")
        name, took, seconds = rest.partition(" took ")
        if found and took:
            phases[name] = float(seconds.removesuffix(" s"))
    return phases


async def _resident(unit: Unit, engine: Engine) -> dict[str, Any]:
    answer = await engine.complete("hello", max_tokens=2, timeout_s=20)
    return {"first_token_s": round(answer.ttft_ms / 1000, 3), "gpu_gib": await gpu_gib()}


async def _sleep_and_wake(unit: Unit, engine: Engine) -> dict[str, Any]:
    """Put the engine to sleep and wake it; the first token counts from the request to wake."""
    state = await unit.state()
    began = time.monotonic()
    await engine.sleep(timeout_s=120)
    slept = time.monotonic()
    kept, host = await gpu_gib(), round(resident_gib(state.pids), 2)
    asked = time.monotonic()
    await engine.wake(timeout_s=60)
    woken = time.monotonic()
    await engine.complete("hello", max_tokens=2, timeout_s=20)
    return {
        "sleep_s": round(slept - began, 3),
        "gpu_gib_kept": kept,
        "host_gib": host,
        "wake_s": round(woken - asked, 3),
        "first_token_s": round(time.monotonic() - asked, 3),
    }


async def gpu_gib() -> float | None:
    """Return the memory that is used on GPU 0: NVML does not list processes of another pid namespace."""
    await asyncio.sleep(0.5)
    gpus = (await read_gpus()).gpus
    return round((gpus[0].total_mib - gpus[0].free_mib) / 1024, 2) if gpus else None


def _drop_from_page_cache(file: Path) -> float:
    """Drop a file from the page cache. Return the GiB of it that are still there, by mincore(2)."""
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), pages
        )
        del start  # the map cannot be closed while it is referred to
        return math.nan if failed else sum(page & 1 for page in pages) * mmap.PAGESIZE / GIB


async def fall_back_to_standby(v: "Validation") -> "Record":
    """Make a standby beside a serving tier, stop one of the tier's ranks, and fall back to the woken standby."""
    from benchmarks.gpu.runbook import act, host_config
    from gpu_actions.fallback.action import SPEC as FALLBACK
    from gpu_actions.host import build_host
    from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
    from gpu_actions.standby.action import SPEC as STANDBY

    folder = v.work / "standby"
    config = host_config(folder, gpus=v.gpus, environment=v.environment())
    fallback = config.tiers["fallback"]
    unit = fallback.unit.model_copy(update={"argv": (*fallback.unit.argv, "--enable-sleep-mode", "1")})
    tiers = {**config.tiers, "fallback": fallback.model_copy(update={"standby": "sleep", "unit": unit})}
    host = build_host(config.model_copy(update={"tiers": tiers}), state_dir=folder / "state")
    record: dict[str, Any] = {}
    try:
        await host.router.ensure_running()
        await host.tp.unit.start()
        await host.tp.engine.wait_ready(timeout_s=120)
        await host.router.shift({"tp": host.tp.config.weight, "fallback": 0})
        record["standby"] = await act(STANDBY, host, folder, None)
        state = await host.tp.unit.state()
        ranks = [p for p in state.pids if b"--rank\0001" in Path(f"/proc/{p}/cmdline").read_bytes()]
        os.kill(ranks[0], signal.SIGSTOP)
        record["fallback"] = await act(FALLBACK, host, folder, None, skip_validation=True)
    finally:
        for tier in (host.tp, host.fallback):
            await tier.unit.stop(grace_s=3)
        if isinstance(host.router, ManagedRouter):
            await host.router.stop()
    return record
