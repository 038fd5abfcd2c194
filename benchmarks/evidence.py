"""What evidence costs an incident: the capture before the drain, and a trace of the engine that serves.

`python -m benchmarks.evidence` starts the reference engine on two ranks behind HAProxy under 60 streams, freezes a rank, and
falls back: the capture must end within 10 s, before the hung tier is drained or stopped. Clients do not wait for it: a hung
tier stays for the evidence until the fallback generates. Then it traces a healthy engine under 16 streams again and again, and
compares its tokens per second with the seconds before and after each trace: a ratio, whatever else the machine does.
"""

import asyncio
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gpu_actions.host import Tier
from gpu_actions.models import Verdict, VerdictKind
from gpu_actions.serving.interfaces import EngineError
from tests.gpu_actions.site import Site, data_of, make_site, summary_of

GOAL_S = 10.0
STREAMS_AT_THE_HANG = 60
STREAMS = 16
TOKENS = 32
WINDOW_S = 4.0
TRACES = 5
MAX_ITERATIONS = 200


def engine(folder: Path, *flags: str) -> dict[str, object]:
    argv = [sys.executable, "-m", "demo.engine", "--model-name", "m", "--profiler-dir", str(folder), *flags]
    return {"kind": "reference", "argv": argv}


@asynccontextmanager
async def site(folder: Path, **changes: object) -> AsyncIterator[Site]:
    made = make_site(folder, **changes)
    await made.up()
    try:
        yield made
    finally:
        await made.down()


async def capture(folder: Path) -> bool:
    tiers = {
        "tp_engine": engine(folder / "a", "--tensor-parallel-size", "2"),
        "fallback_engine": engine(folder / "b", "--max-num-seqs", "16"),
        "fallback": {"capture_budget_s": 10},
    }
    async with site(folder, **tiers) as here, here.traffic(clients=STREAMS_AT_THE_HANG, tokens=TOKENS):
        await asyncio.sleep(2)
        await here.freeze_rank()
        verdict = Verdict(verdict=VerdictKind.FALL_BACK, cause="nccl_hang", summary="rank 1 hangs")
        end = await here.run(await here.plan(verdict=verdict, skip_validation=True))
    seconds = {step.outcome.step_id: step.seconds for step in end.steps}
    order, took_s = list(seconds), seconds["capture"]
    good = took_s <= GOAL_S and order.index("capture") < min(order.index("drain"), order.index("stop"))
    print(f"steps: {', '.join(f'{name} {took:.1f} s' for name, took in seconds.items())}")
    print(f"capture: {took_s:.1f} s before the drain: {summary_of(end, 'capture')[:160]}")
    first_s = data_of(end, "route")["first_token_through_router_s"]
    print(f"first token from the fallback, {first_s:.1f} s after the begin, did not wait for it")
    print(f"goal: before the drain, under {GOAL_S:g} s: {'met' if good else 'MISSED'}")
    return good


async def tokens_per_s(tier: Tier, seconds: float) -> float:
    """Return the tokens per second of a constant number of streams over a window."""
    made, began, going = 0, time.monotonic(), True

    async def stream(number: int) -> None:
        nonlocal made
        while going:
            try:
                answer = await tier.engine.complete(f"bench {number}", max_tokens=TOKENS, timeout_s=60)
            except EngineError:
                await asyncio.sleep(0.1)
                continue
            made += answer.completion_tokens if going else 0

    streams = [asyncio.create_task(stream(number)) for number in range(STREAMS)]
    await asyncio.sleep(seconds)
    rate, going = made / (time.monotonic() - began), False
    await asyncio.gather(*streams)
    return rate


async def overhead(folder: Path) -> None:
    async with site(folder, tp_engine=engine(folder / "traces", "--tensor-parallel-size", "2")) as here:
        tier, ratios, stops, stalls = here.host.tp, [], [], []
        await tokens_per_s(tier, WINDOW_S)
        before = await tokens_per_s(tier, WINDOW_S)
        for _ in range(TRACES):
            await tier.engine.start_profile(max_iterations=MAX_ITERATIONS)
            traced = await tokens_per_s(tier, WINDOW_S)
            began = time.monotonic()
            stopping = asyncio.create_task(tier.engine.stop_profile())
            await asyncio.sleep(0.01)
            await tier.engine.complete("after the trace", max_tokens=1, timeout_s=600)
            stalls.append(time.monotonic() - began)
            files = await stopping
            stops.append(time.monotonic() - began)
            after = await tokens_per_s(tier, WINDOW_S)
            ratios.append(traced / ((before + after) / 2))
            size_mb = sum(file.stat().st_size for file in files) / 1e6
            print(f"{before:.0f} tokens/s, traced {traced:.0f}, after {after:.0f}; {size_mb:.1f} MB")
            before = after
    print(
        f"trace overhead, median of {TRACES}: {100 * (1 - statistics.median(ratios)):.0f} % fewer tokens/s while tracing "
        f"({100 * (1 - max(ratios)):.0f} to {100 * (1 - min(ratios)):.0f} %), none after it; the stop took "
        f"{statistics.median(stops):.1f} s, a request beside it waited {statistics.median(stalls):.1f} s"
    )


async def run() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        good = await capture(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        await overhead(Path(folder))
    return good


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    raise SystemExit(0 if asyncio.run(run()) else 1)
