"""Measure a shift under saturation: the share of each stage against its set value, and how fast the rest is refused.

    python -m benchmarks.shift_accuracy [--seconds 15]

A real HAProxy in front of two small engines, open-loop clients on kept and new connections (`demo.traffic`), at 1, 2 and 3
times what the fallback can finish. A share is within its bounds if so few or so many hits come by chance with at least 1 %
probability.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from demo.traffic.account import Account, Answer, Ending
from demo.traffic.schedule import Profile
from gpu_actions.restore.analysis import weights_for
from tests.gpu_actions.site import Site, make_site
from tests.scenarios.saturated import BUSY, PLACES, TOKEN_S, is_binomial, servers_of

STAGES = (5, 25, 50, 75, 95, 100)
ANSWER_TOKENS = (20, 40)
CAPACITY = PLACES / (TOKEN_S * sum(ANSWER_TOKENS) / 2)
"""Requests per second that the fallback finishes."""

TIMES = (1, 2, 3)
SETTLE_S = 0.2
"""Requests sent so close to a change of the weights belong to neither stage."""


async def measure(site: Site, times: int, seconds: float) -> list[Answer]:
    """Go through the stages at one load and print a row for each. Return the refused requests."""
    profile = Profile(requests_per_s=times * CAPACITY, answer_tokens=ANSWER_TOKENS, seed=times)
    router = site.host.router
    await router.shift({"tp": 0, "fallback": 100})
    spans: dict[int, tuple[float, float]] = {}
    async with site.real_traffic(profile) as account:
        await asyncio.sleep(4)
        for percent in STAGES:
            tp, fallback = weights_for(
                percent, tp_weight=100, fallback_weight=100, standby_weight=router.standby_weight
            )
            await router.shift({"tp": tp, "fallback": fallback})
            began = time.monotonic()
            await asyncio.sleep(seconds)
            spans[percent] = (began + SETTLE_S, time.monotonic() - SETTLE_S)
    for percent, span in spans.items():
        print(row(account, times, percent, span), flush=True)
    assert account.lost == [], account.describe()
    return account.where(lambda answer: answer.ending is Ending.REFUSED)


def row(account: Account, times: int, percent: int, span: tuple[float, float]) -> str:
    """Return a stage's row of the table. A client that hung up asked too, and its server is known from its stream."""
    asked = account.sent_between(*span)
    served = servers_of(asked)
    inside = "yes" if is_binomial(served["tp"], len(asked), percent / 100, tail=0.005) else "NO"
    return (
        f"| {times} x | {percent} % | {len(asked)} | {100 * served['tp'] / len(asked):.1f} % | {inside} "
        f"| {100 * served[str(Ending.REFUSED)] / len(asked):.0f} % |"
    )


def waits_ms(answers: list[Answer], status: int) -> str:
    """Return how many requests were refused with a status, and the median and the 99th percentile of their wait."""
    waits = sorted(1000 * (one.wait_s or 0) for one in answers if one.status == status)
    if not waits:
        return f"| {status} | 0 | - | - |"
    p99 = waits[min(len(waits) - 1, round(0.99 * len(waits)))]
    return f"| {status} | {len(waits)} | {statistics.median(waits):.1f} ms | {p99:.1f} ms |"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = make_site(Path(folder), **BUSY)
        try:
            await site.up()
            await site.host.fallback.unit.start()
            await site.host.fallback.engine.wait_ready(timeout_s=60)
            await site.host.router.apply_back_pressure("fallback")
            print(f"the fallback finishes {CAPACITY:.0f} requests/s")
            print("| load | set | requests | measured share of tp | within its bounds | refused |")
            print("|---|---|---|---|---|---|")
            refused = [one for times in TIMES for one in await measure(site, times, options.seconds)]
            print("\n| refused with | requests | p50 | p99 |\n|---|---|---|---|")
            print("\n".join(waits_ms(refused, status) for status in (429, 503)))
        finally:
            await site.down()


if __name__ == "__main__":
    asyncio.run(main())
