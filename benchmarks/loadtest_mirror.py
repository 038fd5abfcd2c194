"""How often a mirrored load alerts: on a healthy tier, and on one whose first tokens come later. Simulated, no load is sent.

`python -m benchmarks.loadtest_mirror [DAYS]`. TTFTs are gamma-distributed (a third of spread), and runs of one healthy tier
differ by 5 %. An alert needs 2 of the last 3 readings; an inconclusive comparison is no reading. A day has 96 readings (every
15 minutes). Prints alerts per day of a healthy tier, and how many readings a slower one takes.
"""

import random
import statistics
import sys
from collections import deque

from gpu_actions.loadtest.baseline import make_baseline
from gpu_actions.loadtest.comparison import Change, compare
from gpu_actions.loadtest.mirror import LEARNED_RUNS, TOLERANCE_PERCENT
from gpu_actions.loadtest.result import LoadTestResult
from tests.gpu_actions.loadtest.test_baseline import a_result

REQUESTS = (30, 120)
FACTORS = (1.5, 2.0)
READINGS_A_DAY = 96
RUN_SPREAD = 0.05
TRIES, PATIENCE = 10, 12


def run(seed: int, requests: int, factor: float) -> LoadTestResult:
    """Return a run of a tier that is slower by `factor`."""
    healthy = random.Random(seed).lognormvariate(0, RUN_SPREAD)
    return a_result(seed, n=requests, ttft_ms=100 * factor * healthy)


def alerts(seed: int, requests: int, factor: float, readings: int, *, until_first: bool) -> tuple[int, int]:
    """Return how many alerts begin within so many readings, and the number of readings that were taken."""
    baseline = make_baseline("b", [run(seed + number, requests, 1) for number in range(LEARNED_RUNS)])
    last: deque[bool] = deque(maxlen=3)
    begun, is_on = 0, False
    for number in range(readings):
        verdict = compare(
            run(seed + 1000 + number, requests, factor), baseline, tolerance_percent=TOLERANCE_PERCENT
        ).verdict
        if verdict is Change.INCONCLUSIVE:
            continue
        last.append(verdict is Change.REGRESSED)
        if not is_on and sum(last) >= 2:
            is_on, begun = True, begun + 1
            if until_first:
                return begun, number + 1
        elif is_on and not any(last):
            is_on = False
    return begun, readings


def main(days: int) -> int:
    """Print a line per number of requests."""
    for requests in REQUESTS:
        false = sum(
            alerts(10_000 * day, requests, 1, READINGS_A_DAY, until_first=False)[0] for day in range(days)
        )
        line = f"{requests:3} requests: {false} alerts in {days} healthy days"
        for factor in FACTORS:
            found = [alerts(10_000 * n, requests, factor, PATIENCE, until_first=True) for n in range(TRIES)]
            took = [readings for begun, readings in found if begun]
            median = f", median after {statistics.median(took):.0f} readings" if took else ""
            line += f"; TTFT x {factor:g}: found in {len(took)} of {TRIES} within {PATIENCE} readings{median}"
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
