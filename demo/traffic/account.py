"""What the clients saw: for each request when it was due, its first byte, its tokens and its end.

Nothing here is read from a router or an engine, so it can be compared with what they report.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from demo.traffic.schedule import Request

NOTED_SILENCE_S = 0.1
KEPT_SILENCES = 10_000


class Ending(StrEnum):
    """How a request ended for its client."""

    FINISHED = "finished"
    REFUSED = "refused"
    """429 or 503."""
    FAILED = "failed"
    """Any other status than 200."""
    ERROR_EVENT = "error event"
    """A 200 whose stream holds an error, a finish reason that is not one, or an answer without tokens."""
    ABORTED = "aborted"
    """The connection ended within the answer."""
    STALLED = "stalled"
    """The answer began, and the client gave up waiting for its end."""
    NEVER_ANSWERED = "never answered"
    """Not one byte: the connection ended, or the client gave up."""
    HUNG_UP = "hung up"
    """The client left on purpose."""
    UNFINISHED = "unfinished"
    """The traffic was stopped while the request was open."""


LOST = frozenset({Ending.FAILED, Ending.ERROR_EVENT, Ending.ABORTED, Ending.STALLED, Ending.NEVER_ANSWERED})
"""The client asked once, was not refused, and did not get its answer."""


@dataclass(slots=True)
class Answer:
    """One request as its client saw it. Times are monotonic seconds. Of several attempts the last one counts."""

    request: Request
    due_at: float
    sent_at: float = 0.0
    first_byte_at: float | None = None
    last_token_at: float | None = None
    ended_at: float | None = None
    tokens: int = 0
    status: int | None = None
    served_by: str = ""
    """The engine's `system_fingerprint`, where it sends one, or its own name of the model, if that is not the one asked for."""
    retry_after_s: float | None = None
    refusals: int = 0
    ending: Ending | None = None
    detail: str = ""

    @property
    def wait_s(self) -> float | None:
        """Return the seconds from the last attempt to the first byte of its answer."""
        return None if self.first_byte_at is None else self.first_byte_at - self.sent_at

    def __str__(self) -> str:
        ended = "open" if self.ended_at is None else f"after {self.ended_at - self.sent_at:.2f} s"
        return f"#{self.request.number} {self.ending or 'open'} {ended}, {self.tokens} tokens {self.served_by} {self.detail}"


class Account:
    """All answers, or the newest `kept`. Totals count all of them."""

    def __init__(self, *, kept: int | None = None) -> None:
        self.answers: deque[Answer] = deque(maxlen=kept)
        self.totals: Counter[Ending] = Counter()
        self.sent = 0
        self.last_token_at: float | None = None
        self.stopped_at: float | None = None
        """When the clients stopped asking. The last answers still come afterwards."""
        self._silences: deque[tuple[float, float]] = deque(maxlen=KEPT_SILENCES)

    def opened(self, answer: Answer) -> None:
        self.sent += 1
        self.answers.append(answer)
        if self.last_token_at is None:
            self.last_token_at = answer.due_at  # the first wait begins with the first request

    def token(self, answer: Answer, count: int = 1) -> None:
        now = time.monotonic()
        answer.tokens += count
        answer.last_token_at = now
        if self.last_token_at is not None and now - self.last_token_at > NOTED_SILENCE_S:
            self._silences.append((self.last_token_at, now))
        self.last_token_at = now

    def closed(self, answer: Answer, ending: Ending, detail: str = "") -> None:
        answer.ended_at = time.monotonic()
        answer.ending, answer.detail = ending, detail
        self.totals[ending] += 1

    @property
    def open(self) -> int:
        return self.sent - self.totals.total()

    @property
    def lost(self) -> list[Answer]:
        """Return the requests whose answer was lost."""
        return self.where(lambda answer: answer.ending in LOST)

    @property
    def refused(self) -> list[Answer]:
        return self.where(lambda answer: answer.ending is Ending.REFUSED)

    def where(self, chosen: Callable[[Answer], bool]) -> list[Answer]:
        return [answer for answer in self.answers if chosen(answer)]

    def sent_between(self, start: float, end: float) -> list[Answer]:
        """Return the requests that were first sent in an interval of monotonic time."""
        return self.where(lambda answer: start <= answer.sent_at < end)

    def silence_s(self) -> float:
        """Return for how long no client has got a token up to now."""
        return 0.0 if self.last_token_at is None else time.monotonic() - self.last_token_at

    def longest_silence_s(self, start: float = 0.0, end: float | None = None) -> float:
        """Return the longest time in which no client got a token, within an interval of monotonic time.

        It ends at the latest when the clients stopped asking: of the few answers that are left then, those that are not
        streamed show no token before they are complete.
        """
        now = end if end is not None else self.stopped_at or time.monotonic()
        silences = [*self._silences]
        if self.last_token_at is not None:
            silences.append((self.last_token_at, now))
        return max((min(until, now) - max(since, start) for since, until in silences), default=0.0)

    def lateness_s(self) -> float:
        """Return the worst delay of a first attempt against its schedule: above some 0.1 s the client was the bottleneck."""
        return max(
            (answer.sent_at - answer.due_at for answer in self.answers if not answer.refusals), default=0.0
        )

    def describe(self) -> str:
        """Return the totals in one line."""
        ended = ", ".join(f"{self.totals[ending]} {ending}" for ending in Ending if self.totals[ending])
        return f"{self.sent} sent: {ended or 'none ended'}, {self.open} open"
