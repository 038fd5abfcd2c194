"""Which rate a knee search tries next. Pure: rates and outcomes in, the next rate out.

Short trials at growing rates find a rate that fails. What the service completes while it is overloaded is then a guess of its
capacity, so full trials just below and just above it nearly always enclose the knee. Bisection does the rest.
"""

import math
from dataclasses import dataclass

GROWTH = 4.0
ENOUGH = 1.05
"""The search ends when the lowest rate that failed is at most 5 % above the highest that held."""
GUESSES = (0.95, 1.05)
APART = 1.02
"""A guess this close to a rate that was tried already says nothing new."""


@dataclass(frozen=True, slots=True)
class Try:
    """The next trial. A short one only brackets the knee; a full one may become it."""

    rate: float
    is_full: bool


class KneeSearch:
    """The state of a search between `lowest` and `highest` requests a second."""

    def __init__(self, start: float, *, lowest: float, highest: float) -> None:
        self._lowest, self._highest = lowest, highest
        self._start = min(max(start, lowest), highest)
        self._short_held: list[float] = []
        self._failures: list[float] = []
        self._repeated: set[float] = set()
        self.held: float | None = None
        self.capacity: float | None = None

    @property
    def failed(self) -> float | None:
        """The lowest rate that failed."""
        return min(self._failures, default=None)

    def repeat(self) -> Try | None:
        """Return the lowest rate that failed, for a second trial, or None if it had one or no trial is needed.

        For a search that is over with time left: a moment's stall fails a rate that the service holds.
        """
        failed = self.failed
        if failed is None or failed in self._repeated or self.held is None:
            return None
        self._repeated.add(failed)
        return Try(failed, is_full=True)

    def next(self) -> Try | None:
        """Return the next trial, or None when the knee is known as well as it can be."""
        low = self._low()
        if self.failed is None:
            return self._grow(low)
        if low is None:
            return self._shrink(self.failed)
        if self.failed / low <= ENOUGH:
            return None if low == self.held else Try(low, is_full=True)
        for factor in GUESSES:
            guess = factor * (self.capacity or 0)
            if low * APART < guess < self.failed / APART:
                return Try(guess, is_full=True)
        return Try(math.sqrt(low * self.failed), is_full=True)

    def _low(self) -> float | None:
        """Return the highest rate that held, in a full trial or in a short one."""
        return max([*self._short_held, *([] if self.held is None else [self.held])], default=None)

    def _grow(self, low: float | None) -> Try | None:
        if low is None:
            return Try(self._start, is_full=False)
        if low < self._highest:
            return Try(min(low * GROWTH, self._highest), is_full=False)
        return None if self.held == self._highest else Try(self._highest, is_full=True)

    def _shrink(self, failed: float) -> Try | None:
        if failed <= self._lowest:
            return None
        guess = GUESSES[0] * (self.capacity or 0)
        if self._lowest < guess < failed / APART:
            return Try(guess, is_full=True)
        return Try(max(failed / GROWTH, self._lowest), is_full=True)

    def note(self, tried: Try, *, held: bool, completed: float | None) -> None:
        """Take in how a trial ended. `completed`: requests a second that the service completed, if the trial failed."""
        if held:
            # A lower rate that failed did so because of a stall.
            self._failures = [rate for rate in self._failures if rate > tried.rate]
            if tried.is_full:
                self.held = max(tried.rate, self.held or 0)
            else:
                self._short_held.append(tried.rate)
            return
        self._failures.append(tried.rate)
        # A full trial outweighs a short one, and a lower rate a higher one that held by luck.
        self._short_held = [rate for rate in self._short_held if rate < tried.rate]
        if self.held is not None and self.held >= tried.rate:
            self.held = None
        if completed and completed < tried.rate:
            self.capacity = completed
