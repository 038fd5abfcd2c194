"""Limit how often messages are edited: one budget for the whole workspace, and the pauses that Slack asks for.

Slack allows about 50 `chat.update` calls a minute (Tier 3) and answers 429 with `Retry-After` beyond that. Source:
docs.slack.dev/apis/web-api/rate-limits.
"""

import time
from collections.abc import Callable

MINUTE_S = 60.0
BURST = 10
"""Edits that may follow each other immediately after a quiet period."""


EPSILON_S = 0.001


class BudgetSpent(Exception):
    """Raised if an edit must wait; `wait_s` says for how long."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"the next edit is allowed in {wait_s:.1f} s")
        self.wait_s = wait_s


class EditBudget:
    """A token bucket. `clock` returns monotonic seconds."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        # Burst and refill together make up `per_minute`, so that no minute has more.
        self._burst = float(min(BURST, (per_minute + 1) // 2))
        self._rate = max(per_minute - self._burst, 0.5) / MINUTE_S
        self._clock = clock
        self._tokens = self._burst
        self._at = clock()
        self._closed_until = 0.0

    def wait_s(self) -> float:
        """Return the seconds until the next edit is allowed; 0 if it is allowed now."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        missing = (1.0 - self._tokens) / self._rate if self._tokens < 1.0 else 0.0
        return max(missing, self._closed_until - now, 0.0)

    def spend(self) -> None:
        """Count one edit. Raise BudgetSpent if none is allowed now."""
        if (wait_s := self.wait_s()) > EPSILON_S:
            raise BudgetSpent(wait_s)
        self._tokens -= 1.0

    def close_for(self, seconds: float) -> None:
        """Allow no edit for as long as Slack's `Retry-After` asks."""
        self._closed_until = max(self._closed_until, self._clock() + seconds)
