"""The record of a running load test: one row per request in plain arrays, and histograms of times.

Plain `array` columns (61 bytes a row) rather than objects keep the generator's memory flat. Workers send them as bytes.
"""

import math
from array import array
from collections.abc import Iterable
from typing import Any

from gpu_actions.loadtest.outcomes import Outcome

NAN = math.nan
_FLOAT_COLUMNS = ("dispatched_s", "written_s", "first_s", "last_token_s", "ended_s")
_INT_COLUMNS = ("tokens", "prompt_tokens", "chunks")


class Records:
    """Columns with one row per scheduled request. Times are seconds on the schedule's clock, NaN for what never happened.

    dispatched_s: when the generator took up the request; written_s: when its bytes went out; first_s, last_token_s: first
    and last chunk with text; ended_s: [DONE], or the failure.
    """

    __slots__ = (*_FLOAT_COLUMNS, *_INT_COLUMNS, "outcome", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.dispatched_s, self.written_s, self.first_s, self.last_token_s, self.ended_s = (
            array("d", [NAN]) * size for _ in _FLOAT_COLUMNS
        )
        self.tokens, self.prompt_tokens, self.chunks = (array("i", [0]) * size for _ in _INT_COLUMNS)
        self.outcome = array("B", [Outcome.UNSENT]) * size

    def dump_rows(self, rows: range) -> bytes:
        """Return the rows of a worker as bytes, column after column."""
        step = slice(rows.start, rows.stop, rows.step)
        return b"".join(
            getattr(self, name)[step].tobytes() for name in (*_FLOAT_COLUMNS, *_INT_COLUMNS, "outcome")
        )

    def load_rows(self, rows: range, raw: bytes) -> None:
        """Store the rows that a worker dumped. Raises ValueError when the size does not fit."""
        count = len(rows)
        step = slice(rows.start, rows.stop, rows.step)
        expected = count * (len(_FLOAT_COLUMNS) * 8 + len(_INT_COLUMNS) * 4 + 1)
        if len(raw) != expected:
            raise ValueError(f"a worker sent {len(raw)} bytes for {count} rows, expected {expected}")
        position = 0
        for names, code, width in ((_FLOAT_COLUMNS, "d", 8), (_INT_COLUMNS, "i", 4), (("outcome",), "B", 1)):
            for name in names:
                column = array(code)
                column.frombytes(raw[position : position + count * width])
                getattr(self, name)[step] = column
                position += count * width


class LogHistogram:
    """Counts of times in bins that grow by 0.5 %, from 1 microsecond to 1000 s; a bin's middle is within 0.25 %."""

    GROWTH = 1.005
    FLOOR_S = 1e-6
    _PER_LOG = 1 / math.log(GROWTH)
    BINS = int(math.log(1e9) * _PER_LOG) + 2

    def __init__(self) -> None:
        self.bins = array("Q", [0]) * self.BINS
        self.count = 0
        self.sum_s = 0.0
        self.max_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one time. Below the floor it goes to the lowest bin, above 1000 s to the highest."""
        self.count += 1
        self.sum_s += seconds
        self.max_s = max(self.max_s, seconds)
        position = 0 if seconds <= self.FLOOR_S else int(math.log(seconds * 1e6) * self._PER_LOG) + 1
        self.bins[position if position < self.BINS else self.BINS - 1] += 1

    def extend(self, values: Iterable[float]) -> None:
        """Count many times."""
        for seconds in values:
            self.add(seconds)

    def merge(self, other: "LogHistogram") -> None:
        """Add another histogram's counts."""
        for position, count in enumerate(other.bins):
            if count:
                self.bins[position] += count
        self.count += other.count
        self.sum_s += other.sum_s
        self.max_s = max(self.max_s, other.max_s)

    def to_message(self) -> dict[str, Any]:
        """Return the histogram as JSON data, without its empty bins."""
        bins = [(position, count) for position, count in enumerate(self.bins) if count]
        return {"bins": bins, "count": self.count, "sum_s": self.sum_s, "max_s": self.max_s}

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> "LogHistogram":
        """Read a histogram back from `to_message`."""
        histogram = cls()
        for position, count in message["bins"]:
            histogram.bins[position] = count
        histogram.count, histogram.sum_s, histogram.max_s = (
            message["count"],
            message["sum_s"],
            message["max_s"],
        )
        return histogram

    def count_above(self, seconds: float) -> int:
        """Return how many counts are above a time, to a bin's width."""
        position = 0 if seconds <= self.FLOOR_S else int(math.log(seconds * 1e6) * self._PER_LOG) + 1
        return sum(self.bins[position + 1 :]) if seconds < self.max_s else 0

    def quantile(self, share: float) -> float | None:
        """Return the time below which `share` of the counts lie (nearest rank), or None when empty."""
        return self.at_rank(max(1, math.ceil(share * self.count))) if self.count else None

    def at_rank(self, rank: int) -> float:
        """Return the time of the rank-th smallest count (from 1)."""
        if rank >= self.count:
            return self.max_s
        seen = 0
        for position, count in enumerate(self.bins):
            seen += count
            if seen >= rank:
                if position == 0:
                    return 0.0
                return min(self.max_s, self.FLOOR_S * math.exp((position - 0.5) / self._PER_LOG))
        return self.max_s
