"""The knee that a search finds, beside the capacity of servers whose truth is known: places / time of an answer.

`python -m benchmarks.loadtest_knee [RUNS]` prints one line per search, then one per server (default: one run). Exits 1 when a
knee is more than 10 % off or a search took more than 90 s. The TTFT limit is some answers long, so that the queue of a server
that is nearly full stays within it and the knee is close to the capacity.
"""

import asyncio
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

from gpu_actions.loadtest.knee import find_knee
from gpu_actions.loadtest.spec import LoadSpec

SERVER = Path(__file__).parents[1] / "tests" / "gpu_actions" / "loadtest" / "truth_server.py"
CASES = (
    # places, ms to the first token, ms between tokens, tokens, TTFT limit in ms
    (2, 100, 50, 9, 3000),
    (8, 50, 50, 6, 1000),
    (16, 50, 50, 6, 1000),
    (64, 200, 50, 37, 4000),
)
GOAL_PERCENT = 10.0
GOAL_S = 90.0


def search(places: int, ttft_ms: int, itl_ms: int, tokens: int, slo_ms: int) -> tuple[float, float]:
    """Search on one server and print what was found. Return how far off it is in percent, and the seconds."""
    options = {"slots": places, "ttft_ms": ttft_ms, "itl_ms": itl_ms}
    server = subprocess.Popen(
        [sys.executable, str(SERVER), json.dumps(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        spec = LoadSpec(
            url=f"http://127.0.0.1:{port}",
            model="truth",
            max_new_tokens=tokens,
            slo_ttft_ms=slo_ms,
            slo_e2e_ms=20_000,
        )
        result = asyncio.run(find_knee(spec, max_qps=300))
    finally:
        server.kill()
        server.wait()
    answer_ms = ttft_ms + itl_ms * (tokens - 1)
    capacity = places / (answer_ms / 1000)
    off = None if result.knee_qps is None else 100 * (result.knee_qps / capacity - 1)
    knee = "none" if off is None else f"{result.knee_qps:6.2f}/s ({off:+.1f} %)"
    print(
        f"{places:3} places, answers of {answer_ms:4} ms: capacity {capacity:6.2f}/s, knee {knee}, "
        f"{len(result.trials)} trials in {result.seconds:.0f} s, {result.verdict.value}",
        flush=True,
    )
    return math.inf if off is None else off, result.seconds


def main(runs: int) -> int:
    """Search on every server, one after the other, `runs` times."""
    found: dict[tuple[int, ...], list[tuple[float, float]]] = {case: [] for case in CASES}
    for _ in range(runs):
        for case in CASES:
            found[case].append(search(*case))
    missed = 0
    for case, searches in found.items():
        offs = [off for off, _ in searches]
        missed += sum(abs(off) > GOAL_PERCENT or seconds > GOAL_S for off, seconds in searches)
        print(
            f"{case[0]:3} places: {min(offs):+.1f} to {max(offs):+.1f} % off, median {statistics.median(offs):+.1f} %, "
            f"longest search {max(seconds for _, seconds in searches):.0f} s, {runs} runs"
        )
    print(f"goal {GOAL_PERCENT:g} % within {GOAL_S:g} s: {'met' if not missed else f'MISSED by {missed}'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
