"""What clients saw between two moments, counted from a router's record of every request. Pure.

`RequestCounter` takes the requests in the order in which they ended and keeps nothing of them but counts, so an hour of a busy
service costs little memory.
"""

import math
from enum import StrEnum
from typing import NamedTuple

from pydantic import Field

from gpu_actions.models import Frozen

BEFORE_S = 300.0
"""The usual rate is measured over at most this long before the trouble began ..."""

BEFORE_MIN_S = 10.0
BEFORE_MIN_REQUESTS = 20
"""... and is unknown with less than this."""

PEAK_S = 5
PEAK_MIN_REQUESTS = 10
"""The peak of the refused share is that of the worst 5 s in which at least this many requests ended."""


class Ending(StrEnum):
    """How a request ended for its client."""

    FINISHED = "finished"
    """Answered in full; that includes a refusal of what the client itself did wrong (4xx)."""
    REFUSED = "refused"
    """429 or 503, with Retry-After."""
    ABORTED = "aborted"
    """The answer had begun and broke off."""
    FAILED = "failed"
    """Another error, or no answer at all."""
    CLIENT_LEFT = "client_left"


class RequestEnd(NamedTuple):
    """One request: when it arrived and ended (Unix seconds), and how.

    `first_byte_s` is None without an answer, `server` empty if none took it. `own` is a probe or a load test of gpu-oncall.
    `ended_by_us`: it lost its answer because its session was ended over the router's control.
    """

    arrived_s: float
    ended_s: float
    ending: Ending
    first_byte_s: float | None = None
    server: str = ""
    resent: bool = False
    own: bool = False
    ended_by_us: bool = False


class Gap(Frozen):
    """A time in which requests waited and no answer that finished was under way (Unix seconds)."""

    from_s: float
    to_s: float

    @property
    def seconds(self) -> float:
        return self.to_s - self.from_s


class RequestAccount(Frozen):
    """What clients saw from `since_s` to `until_s`: the requests that ended in it, by how they ended.

    `resent` were sent to another tier, and are also counted by how they ended there; `resent_to_none` found no other tier and
    were refused. Requests of gpu-oncall itself are counted in `own_finished` only. `incomplete` says why requests may be
    missing; empty if the record has all of them.
    """

    since_s: float
    until_s: float
    finished: int = 0
    refused: int = 0
    aborted: int = 0
    failed: int = 0
    client_left: int = 0
    resent: int = 0
    resent_to_none: int = 0
    own_finished: int = 0
    ended_by_us: dict[str, int] = Field(
        default_factory=dict,
        description="by server: lost their answer because we ended the session, own included",
    )
    open_now: int = Field(default=0, description="still being answered or waiting when the account was made")
    before_per_s: float | None = Field(
        default=None, description="finished requests/s before the trouble began"
    )
    refused_peak_percent: float | None = Field(default=None, description="in the worst seconds")
    without_answer: Gap | None = Field(default=None, description="the longest time without an answer")
    incomplete: str = ""

    @property
    def seconds(self) -> float:
        return self.until_s - self.since_s

    @property
    def lost(self) -> int:
        """Return the requests that had an answer coming and did not get all of it."""
        return self.aborted + self.failed

    @property
    def finished_per_s(self) -> float:
        """Return the finished requests/s, those of gpu-oncall included, because the tier did that work too."""
        return (self.finished + self.own_finished) / self.seconds if self.seconds > 0 else 0.0


class Spans:
    """The union of time spans, which are added in the order of their ends."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    def add(self, from_s: float, to_s: float) -> None:
        while self.spans and self.spans[-1][1] >= from_s:
            earlier = self.spans.pop()
            from_s, to_s = min(from_s, earlier[0]), max(to_s, earlier[1])
        self.spans.append((from_s, to_s))


class RequestCounter:
    """Counts requests into an account. Requests that ended before `since_s` yield the usual rate."""

    def __init__(self, since_s: float, until_s: float) -> None:
        self.since_s = math.floor(since_s * 1000) / 1000  # the record has milliseconds
        self.until_s = until_s
        self.from_s: float | None = None
        self._counts = dict.fromkeys(Ending, 0)
        self._resent = self._resent_to_none = self._own_finished = 0
        self._ended_by_us: dict[str, int] = {}
        self._ended: dict[int, int] = {}
        self._finished: dict[int, int] = {}
        self._refused: dict[int, int] = {}
        self._answering, self._present = Spans(), Spans()

    def add(self, request: RequestEnd) -> None:
        """Count one request. Requests must be added in the order in which they ended."""
        if request.ended_s > self.until_s:
            return
        if self.from_s is None:
            self.from_s = request.ended_s
        finished = request.ending is Ending.FINISHED
        if finished:
            self._answering.add(request.first_byte_s or request.arrived_s, request.ended_s)
        inside = request.ended_s >= self.since_s
        if inside and request.ended_by_us:
            self._ended_by_us[request.server] = self._ended_by_us.get(request.server, 0) + 1
        if request.own:
            self._own_finished += finished and inside
            return
        if request.ending is not Ending.CLIENT_LEFT:
            self._present.add(request.arrived_s, request.ended_s)
        second = int(request.ended_s)
        if finished:
            self._finished[second] = self._finished.get(second, 0) + 1
        if inside:
            self._counts[request.ending] += 1
            self._resent += request.resent and bool(request.server)
            self._resent_to_none += request.resent and not request.server
            self._ended[second] = self._ended.get(second, 0) + 1
            if request.ending is Ending.REFUSED:
                self._refused[second] = self._refused.get(second, 0) + 1

    def account(self, *, open_now: int = 0, incomplete: str = "") -> RequestAccount:
        """Return the account of everything added so far."""
        gap = self._longest_gap()
        return RequestAccount(
            since_s=self.since_s,
            until_s=self.until_s,
            **{ending.value: count for ending, count in self._counts.items()},
            resent=self._resent,
            resent_to_none=self._resent_to_none,
            own_finished=self._own_finished,
            ended_by_us=self._ended_by_us,
            open_now=open_now,
            before_per_s=self._before(min(self.since_s, gap.from_s if gap else self.since_s)),
            refused_peak_percent=self._refused_peak(),
            without_answer=gap,
            incomplete=incomplete,
        )

    def _before(self, trouble_s: float) -> float | None:
        """Return the usual rate, over whole seconds before the trouble."""
        if self.from_s is None:
            return None
        begin, end = max(int(self.from_s) + 1, int(trouble_s - BEFORE_S)), int(trouble_s)
        finished = sum(count for second, count in self._finished.items() if begin <= second < end)
        if end - begin < BEFORE_MIN_S or finished < BEFORE_MIN_REQUESTS:
            return None
        return finished / (end - begin)

    def _refused_peak(self) -> float | None:
        shares = []
        for begin in self._refused:
            window = range(begin, begin + PEAK_S)
            ended = sum(self._ended.get(second, 0) for second in window)
            if ended >= PEAK_MIN_REQUESTS:
                shares.append(100 * sum(self._refused.get(second, 0) for second in window) / ended)
        return max(shares, default=None)

    def _longest_gap(self) -> Gap | None:
        """Return the longest gap that reaches into the window: requests waited, and no answer that finished was under way."""
        edges = [(self.from_s or self.since_s, self.from_s or self.since_s), *self._answering.spans]
        holes = [
            (end, begin)
            for (_, end), (begin, _) in zip(edges, [*edges[1:], (self.until_s, self.until_s)], strict=True)
        ]
        longest: Gap | None = None
        for hole_from, hole_to in holes:
            if hole_to <= max(hole_from, self.since_s):
                continue
            present = [
                (max(begin, hole_from), min(end, hole_to))
                for begin, end in self._present.spans
                if begin < hole_to and end > hole_from
            ]
            if not present:
                continue
            gap = Gap(from_s=present[0][0], to_s=present[-1][1])
            if gap.to_s > self.since_s and (longest is None or gap.seconds > longest.seconds):
                longest = gap
        return longest
