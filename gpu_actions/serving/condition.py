"""What a tier is doing: serving, slow, saturated, hung or dead. One pure judgement for triage, fallback and restore.

Health pages do not tell these apart (a hung collective answers 200 for 300-600 s), so three other things do: the engine's
counters, a probe that bypasses the router, and the requests that the router holds open. A long prefill generates no token
for 20 s and more and is not a hang: meanwhile the KV cache fills chunk by chunk, and the processors work.
"""

import re
from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import EngineMetrics


class Condition(StrEnum):
    """The condition of a tier.

    `serving`: it generates tokens, or has no request. `slow`: it works, but a probe missed its deadline although nothing
    queues; or no token comes because a long prompt is read. `saturated`: it generates, and has more requests than it can
    take. `starting`: it loads. `hung`: it holds requests, nothing moves and nothing works. `silent`: it answers nothing,
    which does not tell a hang from a starved event loop. `dead`: it should run and nothing listens. `stopped`: its unit is
    not active. `asleep`: a standby whose weights are in host memory.
    """

    SERVING = "serving"
    SLOW = "slow"
    SATURATED = "saturated"
    STARTING = "starting"
    HUNG = "hung"
    SILENT = "silent"
    DEAD = "dead"
    STOPPED = "stopped"
    ASLEEP = "asleep"

    @property
    def serves(self) -> bool:
        """True if its requests get tokens, however slowly."""
        return self in (Condition.SERVING, Condition.SLOW, Condition.SATURATED)


class Probe(StrEnum):
    """How a probe of the engine ended. `overloaded`: refused with 429 or 503; `failed`: an error that says nothing of these."""

    NOT_SENT = "not_sent"
    ANSWERED = "answered"
    UNANSWERED = "unanswered"
    OVERLOADED = "overloaded"
    STARTING = "starting"
    REFUSED = "refused"
    FAILED = "failed"


class Activity(StrEnum):
    """What the processors of a tier do. `spinning`: fully used at the power of a wait loop, as a rank that waits in NCCL."""

    WORKING = "working"
    SPINNING = "spinning"
    IDLE = "idle"
    UNKNOWN = "unknown"


class Progress(StrEnum):
    """What samples of the token counter show."""

    MOVING = "moving"
    FLAT = "flat"
    IDLE = "idle"
    UNKNOWN = "unknown"


class TokenSample(Frozen):
    """The engine's counters at one moment: `tokens` generated so far, `held` = running + waiting requests. None = unknown."""

    at_s: float
    tokens: float | None
    held: float | None
    waiting: float | None = None
    kv_cache_usage: float | None = None

    @property
    def is_unread(self) -> bool:
        """True if no counter could be read."""
        return self.tokens is None and self.held is None


class Observation(Frozen):
    """What is known of a tier over some seconds.

    `sessions`: requests that the router held open on the tier all the time, None = unknown. `gone`: its process ended, or
    nothing listens. `mute`: it accepts connections and its pages answer nothing.
    """

    samples: tuple[TokenSample, ...] = ()
    probe: Probe = Probe.NOT_SENT
    sessions: int | None = None
    activity: Activity = Activity.UNKNOWN
    gone: bool = False
    mute: bool = False


class Judged(NamedTuple):
    """A condition and why, as words for people."""

    condition: Condition
    why: str
    is_prefill: bool = False


def sample_of(metrics: EngineMetrics) -> TokenSample:
    """Return the part of the engine's counters that shows progress."""
    return TokenSample(
        at_s=metrics.taken_at_s,
        tokens=metrics.progress,
        held=held_of(metrics.running, metrics.waiting),
        waiting=metrics.waiting,
        kv_cache_usage=metrics.kv_cache_usage,
    )


STARTING_TEXT = re.compile(
    r"\b(?:starting|loading|initiali[sz]ing|warming|not (?:yet )?ready)\b", re.IGNORECASE
)
"""What an engine says in a 503 while it loads."""


def probe_of_status(status: int, text: str) -> Probe:
    """Return what an error status says. 503 has two meanings: the engine still starts, or it refuses for load."""
    if status == 503 and STARTING_TEXT.search(text):
        return Probe.STARTING
    return Probe.OVERLOADED if status in (429, 503) else Probe.FAILED


def held_of(running: float | None, waiting: float | None) -> float | None:
    """Return how many requests an engine holds, or None if it does not say."""
    return None if running is None else running + (waiting or 0)


def judge_progress(samples: Sequence[TokenSample], *, stall_s: float) -> Progress:
    """Judge the newest `stall_s` seconds: the counter moved, or it was flat while requests were held all the time.

    A shorter period, or an engine without these counters, is `unknown` and never taken for a hang.
    """
    known = [sample for sample in samples if sample.tokens is not None and sample.held is not None]
    if not known:
        return Progress.UNKNOWN
    newest = known[-1]
    if newest.held == 0:
        return Progress.IDLE
    window = _newest(known, stall_s)
    if any(later.tokens != first.tokens for first, later in pairwise(window)):
        return Progress.MOVING
    if newest.at_s - window[0].at_s < stall_s or any(not sample.held for sample in window):
        return Progress.UNKNOWN
    return Progress.FLAT


def _newest(samples: Sequence[TokenSample], span_s: float) -> list[TokenSample]:
    """Return the samples of the newest `span_s` seconds, and the last one before them."""
    begin_s = samples[-1].at_s - span_s
    earlier = [sample for sample in samples if sample.at_s <= begin_s]
    return [*earlier[-1:], *(sample for sample in samples if sample.at_s > begin_s)]


def is_filling(samples: Sequence[TokenSample], *, span_s: float) -> bool:
    """Return True if the KV cache grew within the newest `span_s` seconds: the engine reads a prompt chunk by chunk.

    vLLM and SGLang report its use at every step of their scheduler, also at steps that generate nothing.
    """
    known = [sample for sample in samples if sample.kv_cache_usage is not None and sample.held]
    if not known:
        return False
    window = _newest(known, span_s)
    return any((later.kv_cache_usage or 0) > (first.kv_cache_usage or 0) for first, later in pairwise(window))


def judge_condition(seen: Observation, *, stall_s: float) -> Judged:
    """Judge what is known of a tier. Counters count as flat only over `stall_s` seconds.

    The best evidence comes first: a token proves that it serves, whatever else is odd; a hang needs requests that wait,
    counters that do not move, and no sign of work.
    """
    progress = judge_progress(seen.samples, stall_s=stall_s)
    if seen.probe is Probe.ANSWERED:
        return _serving(seen)
    if seen.gone or seen.probe is Probe.REFUSED:
        return Judged(Condition.DEAD, "nothing listens, or its process is gone")
    if progress is Progress.MOVING:
        return _serving(seen)
    if seen.probe is Probe.STARTING:
        return Judged(Condition.STARTING, "it says that it is starting")
    waits = progress is Progress.FLAT or seen.probe is Probe.UNANSWERED or seen.mute
    if waits and is_filling(seen.samples, span_s=stall_s):
        return Judged(Condition.SLOW, "it reads a long prompt: its KV cache fills", is_prefill=True)
    if waits and seen.activity is Activity.WORKING:
        return Judged(Condition.SLOW, "it reads a long prompt: its processors work", is_prefill=True)
    if progress is Progress.FLAT:
        return Judged(Condition.HUNG, f"requests wait and no token came for {stall_s:.3g} s")
    if progress is Progress.IDLE and seen.probe is Probe.UNANSWERED:
        clients = f", and the router holds {seen.sessions} open" if seen.sessions else ""
        return Judged(Condition.HUNG, f"it reports no request and leaves a probe unanswered{clients}")
    if seen.probe is Probe.OVERLOADED and progress is not Progress.IDLE:
        return Judged(Condition.SATURATED, "it refuses requests for load")
    if seen.mute or seen.probe in (Probe.UNANSWERED, Probe.OVERLOADED, Probe.FAILED):
        return Judged(Condition.SILENT, "it generates nothing, for an unknown reason")
    if progress is Progress.IDLE:
        return Judged(Condition.SERVING, "it has no request")
    return Judged(Condition.SILENT, "its counters show nothing")


def _serving(seen: Observation) -> Judged:
    if seen.probe is Probe.OVERLOADED:
        return Judged(Condition.SATURATED, "it generates and refuses requests for load")
    if seen.probe is not Probe.UNANSWERED:
        return Judged(Condition.SERVING, "it generates tokens")
    queued = next((one.waiting for one in reversed(seen.samples) if one.waiting is not None), 0)
    if queued:
        return Judged(Condition.SATURATED, f"it generates, and {queued:g} requests wait in its queue")
    return Judged(Condition.SLOW, "it generates, but a probe missed its deadline")
