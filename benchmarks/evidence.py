"""What evidence costs an incident: the capture before the drain, and a trace of the engine that serves.

`python -m benchmarks.evidence` starts the reference engine on two ranks behind HAProxy under 60 streams, freezes a rank, and
falls back: the capture must end within 10 s, before the hung tier is drained or stopped. Clients do not wait for it: a hung
tier stays for the evidence until the fallback generates. Then it traces a healthy engine under 16 streams again and again, and
compares its tokens per second of its own CPU time with those before and after each trace, so that other load does not count.
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

import psutil

from gpu_actions.host import Tier
from gpu_actions.models import Verdict, VerdictKind
from tests.gpu_actions.site import Site, data_of, make_site, summary_of

GOAL_S = 10.0
STREAMS_AT_THE_HANG = 60
STREAMS = 16
TOKENS = 32
ANSWERS = 3
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


async def cpu_s(tier: Tier) -> float:
    """Return the CPU seconds that the tier's processes have used."""
    used = [psutil.Process(pid).cpu_times() for pid in (await tier.unit.state()).pids]
    return sum(times.user + times.system for times in used)


async def cost_s(tier: Tier) -> float:
    """Return the CPU seconds of the engine for the same work: so many streams with so many answers each."""
    began = await cpu_s(tier)

    async def stream(number: int) -> None:
        for _ in range(ANSWERS):
            await tier.engine.complete(f"bench {number}", max_tokens=TOKENS, timeout_s=300)

    await asyncio.gather(*(stream(number) for number in range(STREAMS)))
    return await cpu_s(tier) - began


async def overhead(folder: Path) -> None:
    async with site(folder, tp_engine=engine(folder / "traces", "--tensor-parallel-size", "2")) as here:
        tier, cost, stops, stalls = here.host.tp, [], [], []
        await cost_s(tier)
        before = await cost_s(tier)
        for _ in range(TRACES):
            await tier.engine.start_profile(max_iterations=MAX_ITERATIONS)
            traced = await cost_s(tier)
            began = time.monotonic()
            stopping = asyncio.create_task(tier.engine.stop_profile())
            await asyncio.sleep(0.01)
            await tier.engine.complete("after the trace", max_tokens=1, timeout_s=600)
            stalls.append(time.monotonic() - began)
            files = await stopping
            stops.append(time.monotonic() - began)
            after = await cost_s(tier)
            cost.append(100 * (1 - (before + after) / 2 / traced))
            size_mb = sum(file.stat().st_size for file in files) / 1e6
            print(
                f"{before:.1f} s of CPU, traced {traced:.1f} s, after {after:.1f} s; {size_mb:.1f} MB",
                flush=True,
            )
            before = after
    print(
        f"trace overhead, median of {TRACES}: {statistics.median(cost):.0f} % fewer tokens per CPU second while tracing "
        f"({min(cost):.0f} to {max(cost):.0f} %); the stop took {statistics.median(stops):.1f} s, "
        f"a request beside it waited {statistics.median(stalls):.1f} s"
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
