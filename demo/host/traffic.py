"""The demonstration's visitors: clients through the router, so that a fault has a visible effect."""

import contextlib
from collections.abc import AsyncIterator

from demo.traffic.account import Account, Ending
from demo.traffic.clients import Clients
from demo.traffic.schedule import Profile

REMEMBERED = 200


class Traffic:
    """Sends a profile's requests and sums up what the clients saw."""

    def __init__(self, url: str, profile: Profile) -> None:
        self.account = Account(kept=REMEMBERED)
        self._profile = profile
        self._clients = Clients(url, profile, model="demo", account=self.account)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send requests until the block ends."""
        async with self._clients.running(finish=False):
            yield

    def summary(self) -> str:
        """Return one line for the panel."""
        account = self.account
        ended = [answer for answer in account.answers if answer.ending is not None]
        good = sum(answer.ending is Ending.FINISHED for answer in ended)
        return (
            f"Visitors ({self._profile.requests_per_s:g}/s through the router): {account.describe()}. "
            f"Of the last {len(ended)} that ended: {good} finished. Last token {account.silence_s():.1f} s ago, "
            f"longest time without one {account.longest_silence_s():.1f} s."
        )
