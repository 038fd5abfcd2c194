"""The traffic of a host's last minutes as a load: its arrival rate, and the lengths of its prompts and answers.

The rate comes from the router's record of requests, the lengths from the engine's histograms; prompts are never read. A
histogram counts since the engine started, so `remember_lengths` keeps a reading every minute, and the difference of two
readings is the last minutes.
"""

import math
import time
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from gpu_actions.config.host import TierName
from gpu_actions.config.policies import LoadPolicy
from gpu_actions.host import Host
from gpu_actions.models import Frozen
from gpu_actions.serving.engines.metrics import histogram_percentile, lengths_delta
from gpu_actions.serving.interfaces import (
    EngineError,
    EngineMetrics,
    Histogram,
    RequestsUnknown,
    RouterError,
    TokenHistogram,
)
from gpu_actions.serving.registry import ENGINES
from gpu_actions.system.files import write_atomically

WINDOW_S = 600.0
SHORTEST_WINDOW_S = 60.0
READ_EVERY_S = 60.0
KEPT_S = 2 * WINDOW_S
LEAST_REQUESTS = 30
"""Fewer requests say too little about lengths and rate."""
STEPS = 10
"""Lengths of a load: the middle of each tenth of the requests."""
SLOW_FACTOR = 3.0
"""The limit of E2E per token, as a multiple of what the engine itself needed on average over the window for the shortest
answers: they have the most time per token, because the first token takes longest."""
TIMEOUT_S = 600.0
OTHERS_SHARE = 0.2
READINGS_NAME = "recent_lengths.json"


class RecentUnknown(Exception):
    """Raised if the recent traffic is not known, or too little to be one. The message says why."""


class LengthReading(Frozen):
    """The engine's histograms of lengths at one moment (Unix seconds)."""

    at_s: float
    tier: TierName
    prompts: TokenHistogram | None
    answers: TokenHistogram | None
    requests: float | None
    prompt_tokens: float | None = None
    answer_tokens: float | None = None
    e2e_s: float | None = None
    ttft_s: float | None = None

    @classmethod
    def of(cls, metrics: EngineMetrics, tier: TierName) -> "LengthReading":
        return cls(
            at_s=time.time(),
            tier=tier,
            prompts=metrics.prompt_lengths,
            answers=metrics.answer_lengths,
            requests=metrics.requests_finished,
            prompt_tokens=metrics.prompt_tokens,
            answer_tokens=metrics.generation_tokens,
            e2e_s=None if metrics.e2e is None else metrics.e2e.total_s,
            ttft_s=None if metrics.ttft is None else metrics.ttft.total_s,
        )


class LengthReadings(Frozen):
    """The readings of the last minutes, oldest first."""

    readings: tuple[LengthReading, ...] = ()


class _Lengths(NamedTuple):
    """The lengths of a window's prompts or answers. If they are not exact, only their mean is known."""

    lengths: tuple[int, ...]
    tokens: float
    requests: float
    are_exact: bool


class RecentTraffic(Frozen):
    """The traffic of clients from `since_s` to `until_s`. `notes` say what about it is not exact."""

    since_s: float
    until_s: float
    requests: int
    requests_per_s: float
    prompt_lengths: tuple[int, ...]
    answer_lengths: tuple[int, ...]
    e2e_per_token_ms: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return (
            f"traffic of the last {self.until_s - self.since_s:.0f} s: {self.requests_per_s:.3g} requests/s, "
            f"prompts of {_middle(self.prompt_lengths)} tokens (95 %: {self.prompt_lengths[-1]}), "
            f"answers of {_middle(self.answer_lengths)} (95 %: {self.answer_lengths[-1]})"
        )

    def load(self, base: LoadPolicy, **shape: float) -> LoadPolicy:
        """Return this traffic as a load. Duration and limits come from `base`; the limit per token is scaled to the engine
        unless it is set. `shape` is a rate or a duration of its own."""
        scaled = None if self.e2e_per_token_ms is None else round(SLOW_FACTOR * self.e2e_per_token_ms, 1)
        return LoadPolicy.model_validate(
            {
                **base.model_dump(),
                "target_qps": float(f"{self.requests_per_s:.3g}"),
                "prompt_lengths": self.prompt_lengths,
                "answer_lengths": self.answer_lengths,
                "slo_e2e_per_token_ms": base.slo_e2e_per_token_ms or scaled,
                "timeout_s": max(base.timeout_s, TIMEOUT_S),
                **shape,
            }
        )


def _middle(lengths: tuple[int, ...]) -> int:
    return lengths[len(lengths) // 2]


async def tier_in_service(host: Host) -> TierName | None:
    """Return the tier that the router sends requests to, the full one first, or None."""
    for name in ("tp", "fallback"):
        state = await host.router.server(host.tiers[name].config.server)
        if state.weight > 0 and state.admin_state == "ready" and state.operational.startswith("UP"):
            return name
    return None


async def remember_lengths(host: Host) -> None:
    """Keep a reading of the tier in service. A host that cannot be read is left out: its other monitors say so."""
    try:
        name = await tier_in_service(host)
        if name is None:
            return
        reading = LengthReading.of(await host.tiers[name].engine.metrics(), name)
    except (EngineError, RouterError):
        return
    kept = [one for one in _readings(host) if reading.at_s - KEPT_S <= one.at_s < reading.at_s]
    write_atomically(_file(host), LengthReadings(readings=(*kept, reading)).model_dump_json(), durable=False)


async def read_recent(host: Host, tier: TierName, *, window_s: float = WINDOW_S) -> RecentTraffic:
    """Return the traffic of the last minutes. Raises RecentUnknown."""
    try:
        now = LengthReading.of(await host.tiers[tier].engine.metrics(), tier)
    except EngineError as error:
        raise RecentUnknown(f"the engine's counters cannot be read: {error}") from error
    before = _reading_before(host, now, window_s)
    requests, since_s, notes = await _arrivals(host, now, before, window_s)
    if requests < LEAST_REQUESTS:
        raise RecentUnknown(
            f"only {requests} requests of clients in the last {now.at_s - since_s:.0f} s; it takes {LEAST_REQUESTS}"
        )
    prompts, answers = (_lengths(before, now, figure) for figure in ("prompt", "answer"))
    if prompts is None or answers is None:
        raise RecentUnknown(
            "the engine does not tell the lengths of prompts and answers, or finished no request"
        )
    if not (prompts.are_exact and answers.are_exact):
        flag = ENGINES[host.tiers[tier].config.engine.kind].lengths_flag
        how = f"; for their spread start the engine with {flag}" if flag else ""
        notes = (*notes, f"only the mean lengths are known{how}")
    others = 1 - requests / answers.requests
    if before is not None and others > OTHERS_SHARE:
        notes = (
            *notes,
            f"{others:.0%} of the lengths are those of requests past the router, or of gpu-oncall itself",
        )
    if before is None:
        notes = (*notes, "lengths are those since the engine started: no earlier reading is known")
    return RecentTraffic(
        since_s=since_s,
        until_s=now.at_s,
        requests=requests,
        requests_per_s=requests / (now.at_s - since_s),
        prompt_lengths=prompts.lengths,
        answer_lengths=answers.lengths,
        e2e_per_token_ms=_per_token_ms(before, now, answers),
        notes=notes,
    )


def lengths_of(histogram: TokenHistogram) -> tuple[int, ...]:
    """Return the length in the middle of each tenth of the requests, scaled so that their mean is the histogram's own.

    Within a bucket the lengths are taken as evenly spread, which the exact mean corrects.
    """
    buckets = Histogram(
        bounds_s=histogram.bounds_tokens, counts=histogram.counts, total_s=histogram.total_tokens
    )
    middles = [histogram_percentile(buckets, (step + 0.5) / STEPS) or 1.0 for step in range(STEPS)]
    mean = histogram.total_tokens / histogram.counts[-1]
    factor = mean * STEPS / math.fsum(middles)
    return tuple(max(1, round(middle * factor)) for middle in middles)


def _per_token_ms(before: LengthReading | None, now: LengthReading, answers: _Lengths) -> float | None:
    """Return the mean E2E per token of the shortest answers, or None if the engine does not tell."""
    if now.e2e_s is None or now.ttft_s is None:
        return None
    e2e_s, ttft_s = now.e2e_s, now.ttft_s
    if (
        before is not None
        and before.e2e_s is not None
        and before.ttft_s is not None
        and before.e2e_s <= e2e_s
    ):
        e2e_s, ttft_s = e2e_s - before.e2e_s, ttft_s - before.ttft_s
    further = max(1.0, answers.tokens - answers.requests)
    per_further_s = max(0.0, e2e_s - ttft_s) / further
    shortest = answers.lengths[0]
    return 1000 * (max(0.0, ttft_s) / answers.requests + (shortest - 1) * per_further_s) / shortest or None


def _lengths(before: LengthReading | None, now: LengthReading, what: str) -> _Lengths | None:
    """Return the lengths of prompts or answers between two readings: from the histogram, else the mean of the counters."""
    after: TokenHistogram | None = getattr(now, f"{what}s")
    earlier: TokenHistogram | None = None if before is None else getattr(before, f"{what}s")
    if after is not None:
        rise = lengths_delta(earlier, after) if earlier is not None else after
        if not rise.counts or rise.counts[-1] <= 0:
            return None
        return _Lengths(lengths_of(rise), rise.total_tokens, rise.counts[-1], are_exact=True)
    tokens, requests = (_counted(before, now, figure) for figure in (f"{what}_tokens", "requests"))
    if not tokens or not requests:
        return None
    return _Lengths((max(1, round(tokens / requests)),) * STEPS, tokens, requests, are_exact=False)


def _counted(before: LengthReading | None, now: LengthReading, figure: str) -> float | None:
    """Return the rise of a counter, all of it if the engine restarted in between."""
    after, earlier = getattr(now, figure), 0.0 if before is None else getattr(before, figure) or 0.0
    return None if after is None else float(after - earlier if after >= earlier else after)


async def _arrivals(
    host: Host, now: LengthReading, before: LengthReading | None, window_s: float
) -> tuple[int, float, tuple[str, ...]]:
    """Return the requests of clients, since when they were counted, and notes.

    The window is halved until the router's record covers it. A router without a record leaves the engine's own count.
    """
    try:
        while True:
            since_s = now.at_s - window_s
            account = await host.router.requests(since_s, now.at_s)
            if not account.incomplete or window_s / 2 < SHORTEST_WINDOW_S:
                break
            window_s /= 2
    except RequestsUnknown as error:
        if (
            before is None
            or before.requests is None
            or now.requests is None
            or now.requests < before.requests
        ):
            raise RecentUnknown(f"the arrival rate is not known: {error}") from error
        note = "requests were counted by the engine, those of gpu-oncall included"
        return round(now.requests - before.requests), before.at_s, (note,)
    except RouterError as error:
        raise RecentUnknown(f"the arrival rate is not known: {error}") from error
    if account.incomplete:
        raise RecentUnknown(f"the arrival rate is not known: {account.incomplete}")
    refused = account.refused
    requests = account.finished + refused + account.aborted + account.failed + account.client_left
    notes = (f"{refused} of the {requests} requests were refused, and some came again",) if refused else ()
    return requests, since_s, notes


def _file(host: Host) -> Path:
    return host.state_dir / READINGS_NAME


def _readings(host: Host) -> tuple[LengthReading, ...]:
    try:
        return LengthReadings.model_validate_json(_file(host).read_bytes()).readings
    except (OSError, ValidationError):
        return ()  # none yet, or those of another version


def _reading_before(host: Host, now: LengthReading, window_s: float) -> LengthReading | None:
    """Return the kept reading of this tier that is nearest to the beginning of the window, at least a minute old."""
    usable = [
        one for one in _readings(host) if one.tier == now.tier and now.at_s - one.at_s >= SHORTEST_WINDOW_S
    ]
    return min(usable, key=lambda one: abs(now.at_s - window_s - one.at_s), default=None)
