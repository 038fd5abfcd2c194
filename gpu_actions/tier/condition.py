"""What a tier is really doing, from its own answers: does it generate, does it only hold requests, is it gone.

`judge_progress` is pure: it reads the token counter's samples, since a hung collective still answers its health page.
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
"""A busy tier generates many tokens in this time; one that a verdict calls hung and that generates none is hung still."""
RESTART_MARGIN_S = 1.0
"""A process that ran this long when triage began to look is the one that its verdict is about."""


class Condition(StrEnum):
    """`serving`: it generated tokens just now. `hung`: it holds requests and its token counter stands still. `silent`:
    it runs, does not generate, and the reason is not known. `stopped`: its unit is not active."""

    SERVING = "serving"
    HUNG = "hung"
    SILENT = "silent"
    STOPPED = "stopped"


class Progress(StrEnum):
    """What samples of the token counter say."""

    MOVING = "moving"
    FLAT = "flat"
    IDLE = "idle"
    UNKNOWN = "unknown"


class TokenSample(Frozen):
    """The counters at one moment: `tokens` generated so far, `held` = running + waiting requests. None = not known."""

    at_s: float
    tokens: float | None
    held: float | None


def sample_of(metrics: EngineMetrics) -> TokenSample:
    """Take what the progress test needs from the engine's counters."""
    held = None if metrics.running is None else metrics.running + (metrics.waiting or 0)
    return TokenSample(at_s=metrics.taken_at_s, tokens=metrics.progress, held=held)


def judge_progress(samples: Sequence[TokenSample], *, stall_s: float) -> Progress:
    """Judge the newest `stall_s` seconds: the counter rose, or stood still while requests were held all the time.

    Fewer seconds than that, or an engine without these counters, is `unknown`: never taken for a hang.
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
    """Read a tier's counters; an engine that does not answer gives a sample that knows nothing."""
    try:
        return sample_of(await tier.engine.metrics(timeout_s=timeout_s))
    except EngineError:
        return TokenSample(at_s=boot_clock_s(), tokens=None, held=None)


async def generates(tier: Tier, *, timeout_s: float, tokens: int = PROBE_TOKENS) -> bool:
    """Say whether the tier's own engine generates tokens now."""
    try:
        answer = await tier.engine.complete(PROBE_PROMPT, max_tokens=tokens, timeout_s=timeout_s)
    except EngineError:
        return False
    return answer.completion_tokens > 0


class Look(Frozen):
    """A tier's condition, and for a hung one the sample since which its counter stands still."""

    condition: Condition
    flat_since: TokenSample | None = None


class KnownHang(Frozen):
    """A verdict's word that a tier hangs; triage began to look `age_s` seconds ago and found the token counter at `tokens`."""

    age_s: float
    tokens: float | None = None


async def look_at(tier: Tier, state: UnitState, *, stall_s: float, known: KnownHang | None = None) -> Look:
    """Find the condition of a tier whose unit is in `state` within about `stall_s` seconds: a real request, beside it the
    token counter.

    A known hang is believed when the counter of the same process stands where it stood, else when it does not move in a
    short look.
    """
    if not state.active:
        return Look(condition=Condition.STOPPED)
    if known is not None:
        before = await sample(tier)
        if before.held and before.tokens and before.tokens == known.tokens and _is_older(state, known.age_s):
            return Look(condition=Condition.HUNG, flat_since=before)
        await asyncio.sleep(CONFIRM_S)
        now = await sample(tier)
        if before.held and now.held and before.tokens is not None and before.tokens == now.tokens:
            return Look(condition=Condition.HUNG, flat_since=before)
    samples: list[TokenSample] = []

    async def watch() -> None:
        while True:
            samples.append(await sample(tier))
            await asyncio.sleep(SAMPLE_EVERY_S)

    watching = asyncio.create_task(watch())
    try:
        if await generates(tier, timeout_s=stall_s + 2 * SAMPLE_EVERY_S):
            return Look(condition=Condition.SERVING)
    finally:
        watching.cancel()
    if judge_progress(samples, stall_s=stall_s * 0.8) is Progress.FLAT:
        return Look(condition=Condition.HUNG, flat_since=next(s for s in samples if s.held))
    return Look(condition=Condition.SILENT)


def _is_older(state: UnitState, age_s: float) -> bool:
    """Say whether the unit's main process ran well before a moment `age_s` seconds ago: it was not started again since."""
    process_s = None if state.main_pid is None else process_age_s(state.main_pid)
    return process_s is not None and process_s > age_s + RESTART_MARGIN_S
