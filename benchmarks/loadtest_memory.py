"""Memory of the generator with 10,000 requests in flight: resident size of one process, on a server that answers only when
all requests have arrived. Prints one line; exits 1 when it is over the goal of 200 MB or a request was lost."""

import asyncio
import json
import os
import resource
import subprocess
import sys
from array import array
from pathlib import Path
from time import monotonic

import psutil

from gpu_actions.loadtest.generator import Generator
from gpu_actions.loadtest.outcomes import Outcome
from gpu_actions.loadtest.prompts import PromptMaker
from gpu_actions.loadtest.schedule import Schedule
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import resolve_target

SERVER = Path(__file__).parents[1] / "tests" / "gpu_actions" / "loadtest" / "truth_server.py"
GOAL_MB = 200
HOLD_S = 6.0


async def load_waiting_server(port: int, requests: int) -> tuple[float, float, int, int]:
    """Send `requests` over two seconds to a server that waits. Return MB before, MB at the peak, most in flight, served."""
    spec = LoadSpec(url=f"http://127.0.0.1:{port}", model="truth", timeout_s=60, max_new_tokens=16)
    schedule = Schedule(
        due_s=array("d", (2.0 * number / requests for number in range(requests))),
        prompt_len=array("i", [64]) * requests,
        new_tokens=array("i", [16]) * requests,
        warmup=0,
    )
    generator = Generator(
        spec, schedule, range(requests), await resolve_target(spec), PromptMaker(spec, "bytes")
    )
    process = psutil.Process()
    before = process.memory_info().rss / 1e6
    run = asyncio.create_task(generator.run(monotonic() + 0.2, asyncio.Event(), drain_s=60))
    top, most = before, 0
    while not run.done():
        await asyncio.wait([run], timeout=0.2)
        top = max(top, process.memory_info().rss / 1e6)
        most = max(most, generator.counters.in_flight)
    await run
    served = sum(outcome == Outcome.OK for outcome in generator.records.outcome)
    return before, top, most, served


def main() -> int:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options = {"ttft_ms": HOLD_S * 1000, "itl_ms": 20}
    argv = [sys.executable, str(SERVER), json.dumps(options)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        try:
            import uvloop

            before, top, most, served = uvloop.run(load_waiting_server(port, requests))
        finally:
            server.kill()
    print(
        f"{most:,} in flight at once, {served:,} of {requests:,} served: {top:.0f} MB resident at the top "
        f"({before:.0f} MB before, {(top - before) * 1e3 / max(1, most):.1f} kB a request); goal under {GOAL_MB} MB"
    )
    return 0 if top < GOAL_MB and served == requests and most >= 0.95 * requests else 1


if __name__ == "__main__":
    sys.exit(main())
