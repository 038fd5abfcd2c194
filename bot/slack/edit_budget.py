"""How often messages may be edited: one budget for the whole workspace, and a pause that Slack itself asks for.

Slack allows about 50 `chat.update` a minute (Tier 3) and answers 429 with `Retry-After` beyond it (slack.md).
"""

import time
from collections.abc import Callable

MINUTE_S = 60.0
BURST = 10
"""Edits that may follow each other at once after a quiet time."""


class EditBudget:
    """A token bucket. `clock` gives monotonic seconds."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_minute / MINUTE_S
        self._burst = float(min(BURST, per_minute))
        self._clock = clock
        self._tokens = self._burst
        self._at = clock()
        self._closed_until = 0.0

    def wait_s(self) -> float:
        """Seconds until an edit may go out; 0 when one may now."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        missing = (1.0 - self._tokens) / self._rate if self._tokens < 1.0 else 0.0
        return max(missing, self._closed_until - now, 0.0)

    def spend(self) -> None:
        """Count one edit. A final state goes out even when nothing is left; the debt delays the others."""
        self.wait_s()
        self._tokens -= 1.0

    def close_for(self, seconds: float) -> None:
        """Slack said `Retry-After`: nothing goes out until then."""
        self._closed_until = max(self._closed_until, self._clock() + seconds)
