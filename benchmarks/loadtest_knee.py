"""The knee that a search finds, beside the capacity of servers whose truth is known: places / time of an answer.

Prints one line per server. Exits 1 when a knee is more than 10 % off or a search took more than 90 s. The TTFT limit is some
answers long, so that the queue of a server that is nearly full stays within it and the knee is close to the capacity.
"""

import asyncio
import json
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


def search(places: int, ttft_ms: int, itl_ms: int, tokens: int, slo_ms: int) -> bool:
    """Search on one server, print what was found, and return True if it is within the goals."""
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
    return off is not None and abs(off) <= GOAL_PERCENT and result.seconds <= GOAL_S


def main() -> int:
    """Search on every server, one after the other."""
    failed = sum(not search(*case) for case in CASES)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
