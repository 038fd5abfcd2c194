"""Golden prompts of the reference engine on GPUs: how far log-probabilities move across restarts, traffic and TP sizes."""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from gpu_actions.serving.golden.judgement import judge_golden
from gpu_actions.serving.golden.reading import read_golden
from gpu_actions.serving.golden.record import GoldenRecord
from gpu_actions.serving.golden.recording import record_golden
from gpu_actions.serving.interfaces import Engine, EngineError

if TYPE_CHECKING:
    from benchmarks.gpu.validate import Record, Validation

LARGE = ("--hidden-size", "4096", "--num-layers", "16", "--num-heads", "32", "--max-num-seqs", "16")
"""2.8 billion parameters, so that matrix products have the shapes of a real model."""


TP_SIZES = (2, 4, 8)


async def golden_prompts(v: "Validation") -> "Record":
    """Record on one GPU; compare after a restart, beside traffic, with each TP size, and with other weights."""
    size = LARGE if v.gpus else ()
    found: Record = {"model": " ".join(size) or "default"}
    for dtype in ("bfloat16", "float32"):
        flags = (*size, "--dtype", dtype)
        async with v.engine(1, *flags) as (_, engine, ready_s):
            record = await record_golden(engine, host="gpu-host", tier="tp", repeats=5, timeout_s=60)
            found[f"{dtype}: recorded on 1 rank"] = {
                "first_token_s": round(ready_s, 2),
                "exact": record.exact,
                "idle_spread_nats": record.idle_spread_nats,
                "load_spread_nats": record.load_spread_nats,
            }
        async with v.engine(1, *flags) as (_, engine, _ready):
            found[f"{dtype}: 1 rank, restarted"] = await _compared(engine, record)
            found[f"{dtype}: 1 rank, beside 8 streams"] = await _beside_traffic(engine, record)
        for ranks in (size for size in TP_SIZES if size <= v.gpus):
            async with v.engine(ranks, *flags) as (_, engine, _ready):
                found[f"{dtype}: {ranks} ranks"] = await _compared(engine, record)
    async with v.engine(1, *size, "--dtype", "float32", "--seed", "1") as (_, engine, _ready):
        found["other weights"] = await _compared(engine, record)
    return found


async def _compared(engine: Engine, record: GoldenRecord) -> dict[str, Any]:
    reading = await read_golden(engine, record, budget_s=60)
    judgement = judge_golden(record, reading)
    moved = [
        abs(now - then)
        for answer in reading.answers
        for now, then in zip(
            answer.forced_logprobs, record.prompts[answer.prompt].forced_logprobs, strict=True
        )
    ]
    equal = [
        answer.generated.texts == record.prompts[answer.prompt].texts
        for answer in reading.answers
        if answer.generated is not None
    ]
    return {
        "outcome": judgement.outcome.value,
        "summary": judgement.summary,
        "idle": reading.idle,
        "seconds": round(reading.seconds, 3),
        "moved_nats_max": max(moved, default=None),
        "moved_nats_mean": sum(moved) / len(moved) if moved else None,
        "prompts_with_equal_tokens": f"{sum(equal)} of {len(equal)}",
    }


async def _beside_traffic(engine: Engine, record: GoldenRecord) -> dict[str, Any]:
    async def stream(number: int) -> None:
        with contextlib.suppress(EngineError):
            await engine.complete(f"traffic {number}", max_tokens=1000, timeout_s=60)

    tasks = [asyncio.create_task(stream(number)) for number in range(8)]
    try:
        while True:
            if ((await engine.metrics()).running or 0) >= len(tasks):
                break
            await asyncio.sleep(0.05)
        return await _compared(engine, record)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
