"""Conditions told apart on real GPUs: idle, a long prefill, a GPU hogged by a stranger, ranks that spin beside a stopped one.

Each record has the utilisation, the power and the shares that the judgement saw, which is what `triage.working_power_ratio` and
`triage.stranger_share_percent` are set from.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from benchmarks.gpu.golden import LARGE
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.serving.interfaces import Engine, Unit
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.progress import progress_of
from gpu_actions.system.processes import child_environment
from gpu_actions.triage.judge import judge

if TYPE_CHECKING:
    from benchmarks.gpu.validate import Record, Validation

HOG = """
import torch
a = torch.randn(8192, 8192, device="cuda:0", dtype=torch.bfloat16)
while True:
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
"""
PROMPT_TOKENS, CPU_PROMPT_TOKENS = 120_000, 24_000
SETTLE_S = 2.0


async def conditions(v: "Validation") -> "Record":
    """Judge each condition once, with the defaults of the settings."""
    length = PROMPT_TOKENS if v.gpus else CPU_PROMPT_TOKENS
    size = LARGE if v.gpus else ()
    # The prompt is read in one step, so that only the processors show the work, not the KV cache.
    flags = (
        *size,
        "--max-model-len",
        str(length + 64),
        "--prefill-chunk",
        str(length),
        "--max-num-seqs",
        "4",
    )
    found: Record = {}
    ranks = max(1, v.gpus)
    async with v.engine(ranks, *flags) as (unit, engine, _ready):
        found["idle"] = await _look(v, unit, ranks)
        async with _asking(engine, length, count=1):
            await asyncio.sleep(SETTLE_S)
            found["a long prefill"] = await _look(v, unit, ranks)
    async with (
        v.engine(ranks, *size) as (unit, engine, _ready),
        _asking(engine, 64, count=4, max_tokens=1500),
    ):
        await asyncio.sleep(SETTLE_S)
        found["traffic"] = await _look(v, unit, ranks)
        if v.gpus:
            async with _hog():
                found["traffic beside a stranger"] = await _look(v, unit, ranks)
        if v.gpus > 1:
            found["a stopped rank"] = await _look_at_stopped_rank(v, unit, ranks)
    return found


async def _look(v: "Validation", unit: Unit, ranks: int) -> "Record":
    limits = TriageThresholds()
    snapshot = await collect(await v.target(unit, ranks, expect_gpus=v.gpus), limits)
    progress, verdict = progress_of(snapshot, limits), judge(snapshot, limits)
    tokens = [one.tokens for one in (snapshot.engine.samples if snapshot.engine else ())]
    return {
        "verdict": verdict.verdict.value,
        "cause": verdict.cause,
        "summary": verdict.summary,
        "condition": progress.condition,
        "why": progress.why,
        "processors": progress.activity.value,
        "tokens": tokens,
        "window_s": round(snapshot.window_s, 2),
        "gpus": [
            {
                "gpu": gpu.index,
                "utilisation_percent": gpu.latest.utilisation_percent,
                "power_w": gpu.latest.power_w,
                "power_limit_w": gpu.power_limit_w,
                "shares": {row.label: row.sm_percent for row in gpu.processes},
                "unread": gpu.unread,
            }
            for gpu in (snapshot.nvml.gpus if snapshot.nvml else ())
        ],
    }


async def _look_at_stopped_rank(v: "Validation", unit: Unit, ranks: int) -> "Record":
    pids = [
        pid
        for pid in (await unit.state()).pids
        if b"--rank\0001" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(pids[0], signal.SIGSTOP)
    try:
        await asyncio.sleep(SETTLE_S)
        return await _look(v, unit, ranks)
    finally:
        os.kill(pids[0], signal.SIGCONT)


@contextlib.asynccontextmanager
async def _asking(engine: Engine, length: int, *, count: int, max_tokens: int = 4) -> AsyncIterator[None]:
    """Keep `count` requests under way until the block ends."""

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        body: dict[str, Any] = {"model": "m", "max_tokens": max_tokens, "ignore_eos": True}
        while True:
            body["prompt"] = f"{number}" + "a" * (length - 8)
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.post(f"{engine.url}/v1/completions", json=body) as response:
                    await response.read()
            await asyncio.sleep(0.05)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        tasks = [asyncio.create_task(client(session, number)) for number in range(count)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _hog() -> AsyncIterator[None]:
    """Run a stranger that computes on GPU 0 without a pause."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", HOG, env=child_environment())
    try:
        await asyncio.sleep(8)  # its import of torch, and a second of work
        yield
    finally:
        process.kill()
        await process.wait()
