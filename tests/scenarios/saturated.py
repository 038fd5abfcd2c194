"""A host under real traffic: 60 streams, of which the fallback can take a third, and figures from the clients' own account.

`NIGHT` is the traffic of a bad night: answers of 5 to 20 s. In the short siblings (`SHORT`) they take 1 to 2 s, so that a stage
is over in seconds; concurrency and saturation are the same.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from demo.traffic.account import Account, Answer, Ending
from demo.traffic.schedule import Profile
from gpu_actions.restore.analysis import weights_for
from gpu_actions.serving.interfaces import RouterError
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import Site

TOKEN_S = 0.05
PLACES, LONG_PLACES = 24, 2
QUEUE_TIMEOUT_S = 1.0
SLACK_S = 0.8
"""What a busy machine with two cores adds to a wait, beside what the clients' own schedule was late."""

PROFILE = Profile(requests_per_s=40, answer_tokens=(20, 40))
"""60 answers at once. The fallback finishes 16 requests/s, so 40/s is 2.5 times what it can take."""

PRESSURE = {
    "max_concurrent": PLACES + LONG_PLACES,
    "long_share": LONG_PLACES,
    "max_queue": 12,
    "queue_timeout_s": QUEUE_TIMEOUT_S,
    "retry_after_s": 2,
}


@dataclass(frozen=True)
class Load:
    """What clients ask, and how fast the engines are. `full_s`: after this long as many answers are under way as stay under
    way. `stage_s`: a stage of this length has the 50 requests that judge its share."""

    profile: Profile
    token_s: float
    full_s: float
    stage_s: float
    drain_s: float

    @property
    def host(self) -> dict[str, Any]:
        """A host whose tp can serve all of the profile, and whose fallback cannot."""
        token = ["--token-s", str(self.token_s)]
        return {
            "tp": token,
            "fb": [*token, "--slots", str(PLACES + LONG_PLACES)],
            "router": {"back_pressure": PRESSURE},
            "fallback": {"drain_timeout_s": self.drain_s},
        }


SHORT = Load(PROFILE, TOKEN_S, full_s=2.5, stage_s=2, drain_s=10)
NIGHT = Load(
    Profile(requests_per_s=5.5, answer_tokens=(25, 100), patience_s=120),
    0.2,
    full_s=14,
    stage_s=14,
    drain_s=30,
)
"""70 answers of 5 to 20 s at once: the fallback finishes 1.9 requests/s, so 5.5/s is 2.9 times what it can take."""

BOTH = [pytest.param(SHORT, id="short"), pytest.param(NIGHT, id="night", marks=pytest.mark.heavy)]
BUSY = SHORT.host


async def busy_site(make: MakeSite, load: Load = SHORT, **changes: Any) -> Site:
    """Return the host of a load with some changes."""
    merged = {
        name: {**load.host[name], **changes[name]} for name in ("router", "fallback") if name in changes
    }
    return await make(**{**load.host, **changes, **merged})


@dataclass
class Weights:
    """When the router had which weights (tp, fallback), read from it all the time. Times are monotonic seconds."""

    seen: list[tuple[float, tuple[int, int]]] = field(default_factory=list)

    def span(self, weights: tuple[int, int]) -> tuple[float, float]:
        """Return the first and the last moment at which these weights were seen."""
        times = [at for at, found in self.seen if found == weights]
        assert times, (
            f"the router never had the weights {weights}: {sorted({found for _, found in self.seen})}"
        )
        return times[0], times[-1]


@asynccontextmanager
async def watched_weights(site: Site) -> AsyncIterator[Weights]:
    """Read the router's weights every 50 ms until the block ends."""
    weights = Weights()

    async def watch() -> None:
        while True:
            try:
                found = await site.weights()
                weights.seen.append((time.monotonic(), (found["tp"][0], found["fallback"][0])))
            except RouterError:
                pass  # it is being restarted
            await asyncio.sleep(0.05)

    task = asyncio.create_task(watch())
    try:
        yield weights
    finally:
        task.cancel()


def is_binomial(hits: int, tries: int, share: float, *, tail: float = 1e-4) -> bool:
    """Return False if so few or so many hits come with less than `tail` probability."""
    if share in {0, 1}:
        return hits == tries * share

    def likelihood(
        n: int,
    ) -> float:  # over thousands of tries a binomial coefficient is too large for a float
        ways = math.lgamma(tries + 1) - math.lgamma(n + 1) - math.lgamma(tries - n + 1)
        return math.exp(ways + n * math.log(share) + (tries - n) * math.log1p(-share))

    at_most = sum(map(likelihood, range(hits + 1)))
    return at_most >= tail and 1 - at_most + likelihood(hits) >= tail


def servers_of(answers: list[Answer]) -> Counter[str]:
    """Return who answered, with `refused` for 429 and 503 and the ending of what was answered by nobody."""
    return Counter(answer.served_by or str(answer.ending) for answer in answers)


def check_shares(
    account: Account, weights: Weights, stages: Sequence[int], *, streamed_only: bool = False
) -> None:
    """Check the share of each stage, and that no request sent to tp waited behind another tier.

    With `streamed_only` requests whose answer comes as a whole do not count: a dying tier has answered no byte of them.
    """
    for percent in stages:
        start, end = weights.span(weights_for(percent, tp_weight=100, fallback_weight=100, standby_weight=1))
        asked = account.sent_between(start + 0.1, end - 0.1)
        if streamed_only:
            asked = [answer for answer in asked if answer.request.streamed]
        served = servers_of(asked)
        assert len(asked) >= 30, f"{percent} %: only {len(asked)} requests in {end - start:.1f} s"
        assert is_binomial(served["tp"], len(asked), percent / 100), f"{percent} % sent {served}"
        waits = sorted(a.wait_s or 0 for a in asked if a.served_by == "tp" and a.request.streamed)
        assert not waits or waits[-1] <= SLACK_S + account.lateness_s(), (
            f"{percent} %: waited {waits[-1]:.2f} s for tp"
        )


def check_refusals(account: Account, *, since: float = 0.0) -> None:
    """Check that each refusal was fast and named the time of the next attempt. A request that a tier held when it died at
    `since` was asked of the other tier then."""
    slack_s = SLACK_S + account.lateness_s()
    for answer in account.refused:
        assert answer.retry_after_s == PRESSURE["retry_after_s"], answer
        assert answer.first_byte_at is not None
        wait_s = answer.first_byte_at - max(answer.sent_at, min(since, answer.first_byte_at))
        limit_s = slack_s if answer.status == 429 else QUEUE_TIMEOUT_S + slack_s
        assert wait_s <= limit_s, f"{answer}: refused after {wait_s:.2f} s"


def check_only_begun_were_lost(account: Account, server: str, since: float) -> None:
    """Check that each lost request had its first byte from this server, before the moment it failed: no answer that was
    still to come was lost."""
    for answer in account.lost:
        assert answer.served_by in (server, ""), answer
        assert answer.ending is Ending.ABORTED, answer
        assert answer.sent_at < since, answer


@asynccontextmanager
async def busy_clients(site: Site) -> AsyncIterator[Account]:
    """Put the 60 streams on a `BUSY` host until the block ends, and check that all that was refused was refused fast."""
    async with site.real_traffic(PROFILE) as account:
        yield account
    check_refusals(account)


def lost_text(account: Account) -> str:
    return "\n".join([account.describe(), *map(str, account.lost[:20])])
