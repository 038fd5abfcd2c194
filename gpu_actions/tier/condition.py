"""What a tier is really doing, judged by its own answers: it generates, it only holds requests, or it is gone.

A hung collective still answers its health page, so `judge_progress` (pure) reads samples of the token counter instead.
"""

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise

from gpu_actions.host import Tier
from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import EngineError, EngineMetrics, UnitState
from gpu_actions.system.clock import boot_clock_s, process_age_s

PROBE_PROMPT = "gpu-oncall asks: are you there?"
PROBE_TOKENS = 2
SAMPLE_EVERY_S = 0.25
CONFIRM_S = 0.15
"""A busy tier generates many tokens in this time. A tier that a verdict calls hung and that generates none is still hung."""
RESTART_MARGIN_S = 1.0
"""A verdict is about the running process if that process was at least this old when triage began."""


class Condition(StrEnum):
    """`serving`: it generated tokens just now. `hung`: it holds requests and its token counter does not move. `silent`:
    it runs and does not generate, for an unknown reason. `stopped`: its unit is not active."""

    SERVING = "serving"
    HUNG = "hung"
    SILENT = "silent"
    STOPPED = "stopped"


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


def sample_of(metrics: EngineMetrics) -> TokenSample:
    """Return the part of the engine's counters that shows progress."""
    held = None if metrics.running is None else metrics.running + (metrics.waiting or 0)
    return TokenSample(at_s=metrics.taken_at_s, tokens=metrics.progress, held=held)


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
    window = [sample for sample in known if sample.at_s >= newest.at_s - stall_s]
    earlier = [sample for sample in known if sample.at_s <= newest.at_s - stall_s]
    if earlier:
        window = [earlier[-1], *window]
    if any(later.tokens != first.tokens for first, later in pairwise(window)):
        return Progress.MOVING
    if newest.at_s - window[0].at_s < stall_s or any(not sample.held for sample in window):
        return Progress.UNKNOWN
    return Progress.FLAT


async def sample(tier: Tier, *, timeout_s: float = 1.0) -> TokenSample:
    """Read a tier's counters. An engine that does not answer yields a sample in which nothing is known."""
    try:
        return sample_of(await tier.engine.metrics(timeout_s=timeout_s))
    except EngineError:
        return TokenSample(at_s=boot_clock_s(), tokens=None, held=None)


async def generates(tier: Tier, *, timeout_s: float, tokens: int = PROBE_TOKENS) -> bool:
    """Return True if the tier's own engine generates tokens now."""
    try:
        answer = await tier.engine.complete(PROBE_PROMPT, max_tokens=tokens, timeout_s=timeout_s)
    except EngineError:
        return False
    return answer.completion_tokens > 0


class TierReading(Frozen):
    """A tier's condition. `flat_since` is the sample of a hung tier since which its counter has not moved."""

    condition: Condition
    flat_since: TokenSample | None = None


class KnownHang(Frozen):
    """A hang that triage found `age_s` seconds ago, with the token counter at `tokens`."""

    age_s: float
    tokens: float | None = None


async def read_condition(
    tier: Tier, state: UnitState, *, stall_s: float, known: KnownHang | None = None
) -> TierReading:
    """Find the condition of a tier whose unit is in `state`, within about `stall_s` seconds.

    Sends a real request and samples the token counter meanwhile. A known hang is confirmed without that wait, if the same
    process still has the counter that triage saw, or if the counter does not move in a short check.
    """
    if not state.active:
        return TierReading(condition=Condition.STOPPED)
    if known is not None:
        before = await sample(tier)
        if before.held and before.tokens and before.tokens == known.tokens and _is_older(state, known.age_s):
            return TierReading(condition=Condition.HUNG, flat_since=before)
        await asyncio.sleep(CONFIRM_S)
        now = await sample(tier)
        if before.held and now.held and before.tokens is not None and before.tokens == now.tokens:
            return TierReading(condition=Condition.HUNG, flat_since=before)
    samples: list[TokenSample] = []

    async def watch() -> None:
        while True:
            samples.append(await sample(tier))
            await asyncio.sleep(SAMPLE_EVERY_S)

    watching = asyncio.create_task(watch())
    try:
        if await generates(tier, timeout_s=stall_s + 2 * SAMPLE_EVERY_S):
            return TierReading(condition=Condition.SERVING)
    finally:
        watching.cancel()
    progress = judge_progress(samples, stall_s=stall_s * 0.8)
    if progress is Progress.FLAT:
        return TierReading(condition=Condition.HUNG, flat_since=next(s for s in samples if s.held))
    # A slow or saturated tier misses the deadline of the request and still generates.
    return TierReading(condition=Condition.SERVING if progress is Progress.MOVING else Condition.SILENT)


def _is_older(state: UnitState, age_s: float) -> bool:
    """Return True if the unit's main process is older than `age_s`, so it was not started again since."""
    process_s = None if state.main_pid is None else process_age_s(state.main_pid)
    return process_s is not None and process_s > age_s + RESTART_MARGIN_S
