"""What a tier is doing, read now: its counters, a probe that bypasses the router, and its processors.

This only reads; `serving.condition` judges.
"""

import asyncio
from collections.abc import Collection

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.host import Tier
from gpu_actions.models import Frozen
from gpu_actions.serving.condition import (
    Activity,
    Condition,
    Judged,
    Observation,
    Probe,
    TokenSample,
    judge_condition,
    probe_of_status,
    sample_of,
)
from gpu_actions.serving.engines.base import RefusedError
from gpu_actions.serving.http import HttpFailure
from gpu_actions.serving.interfaces import EngineError, UnitState
from gpu_actions.snapshot.activity import cpu_activity, gpu_activity
from gpu_actions.snapshot.collector import CollectorFailed, CollectorSkipped
from gpu_actions.snapshot.collectors.nvml import collect_nvml
from gpu_actions.system.clock import boot_clock_s, process_age_s
from gpu_actions.system.proc import TICKS_PER_S, read_process
from gpu_actions.tier.standby import is_asleep

PROBE_PROMPT = "gpu-oncall asks: are you there?"
PROBE_TOKENS = 2
SAMPLE_EVERY_S = 0.25
CONFIRM_S = 0.15
"""A busy tier generates many tokens in this time. A tier that a verdict calls hung and that generates none is still hung."""
CONFIRM_TIMEOUT_S = 0.5
RESTART_MARGIN_S = 1.0
"""A verdict is about the running process if that process was at least this old when triage began."""
ACTIVITY_S = 0.5
"""Seconds over which processors are observed."""
ACTIVITY_DEADLINE_S = 4.0
"""For NVML's two readings, which take 0.5 s for 8 GPUs; a driver that takes longer says nothing."""
LEAST_CPU_S = 0.5
"""A process that used less in its life is no rank: a rank has at least imported its libraries."""


async def sample(tier: Tier, *, timeout_s: float = 1.0) -> TokenSample:
    """Read a tier's counters. An engine that does not answer yields a sample in which nothing is known."""
    try:
        return sample_of(await tier.engine.metrics(timeout_s=timeout_s))
    except EngineError:
        return TokenSample(at_s=boot_clock_s(), tokens=None, held=None)


async def generates(tier: Tier, *, timeout_s: float, tokens: int = PROBE_TOKENS) -> bool:
    """Return True if the tier's own engine generates tokens now."""
    return await probe(tier, timeout_s=timeout_s, tokens=tokens) is Probe.ANSWERED


async def probe(tier: Tier, *, timeout_s: float, tokens: int = PROBE_TOKENS) -> Probe:
    """Ask the tier's own engine for tokens."""
    try:
        answer = await tier.engine.complete(PROBE_PROMPT, max_tokens=tokens, timeout_s=timeout_s)
    except EngineError as error:
        return probe_of_error(error)
    return Probe.ANSWERED if answer.completion_tokens > 0 else Probe.FAILED


def probe_of_error(error: EngineError) -> Probe:
    """Return what the error of a completion says about its engine."""
    if isinstance(error, RefusedError):
        return probe_of_status(error.status, str(error))
    reason = error.__cause__.reason if isinstance(error.__cause__, HttpFailure) else ""
    return {"timeout": Probe.UNANSWERED, "refused": Probe.REFUSED}.get(reason, Probe.FAILED)


class TierReading(Frozen):
    """A tier's condition. `flat_since` is the sample of a hung tier since which its counter has not moved."""

    condition: Condition
    why: str = ""
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
    process still has the counter that triage saw, or if the counter does not move in a short check, or does not answer.
    """
    if not state.active:
        return TierReading(condition=Condition.STOPPED)
    if await is_asleep(tier, state):
        return TierReading(condition=Condition.ASLEEP, why="its weights are in host memory")
    if known is not None and (since := await _still_hangs(tier, state, known)):
        return TierReading(condition=Condition.HUNG, why="it hangs since triage", flat_since=since)
    samples: list[TokenSample] = []

    async def watch() -> None:
        while True:
            samples.append(await sample(tier))
            await asyncio.sleep(SAMPLE_EVERY_S)

    watching = asyncio.create_task(watch())
    try:
        outcome = await probe(tier, timeout_s=stall_s + 2 * SAMPLE_EVERY_S)
    finally:
        watching.cancel()
    seen = Observation(samples=tuple(samples), probe=outcome)
    judged = await judge_with_activity(tier, state, seen, stall_s=stall_s * 0.8)
    held = [one for one in samples if one.held]
    flat_since = held[0] if held and judged.condition is Condition.HUNG else None
    return TierReading(condition=judged.condition, why=judged.why, flat_since=flat_since)


async def judge_with_activity(tier: Tier, state: UnitState, seen: Observation, *, stall_s: float) -> Judged:
    """Judge an observation; before it is called a hang, check whether the tier's processors work."""
    judged = judge_condition(seen, stall_s=stall_s)
    if judged.condition is not Condition.HUNG or seen.activity is not Activity.UNKNOWN:
        return judged
    activity = await read_activity(tier, state.pids)
    return judge_condition(seen.model_copy(update={"activity": activity}), stall_s=stall_s)


async def read_activity(tier: Tier, pids: Collection[int]) -> Activity:
    """Observe for half a second what the processors of a tier do. Unknown if its processes or the driver say nothing."""
    limits = TriageThresholds()
    if tier.config.gpus == 0:
        return cpu_activity(await _cpu_shares(pids), limits)
    try:
        async with asyncio.timeout(ACTIVITY_DEADLINE_S):
            nvml = await collect_nvml(expect_gpus=None, window_s=ACTIVITY_S, stall_s=limits.nvml_stall_s)
    except (TimeoutError, CollectorFailed, CollectorSkipped):
        return Activity.UNKNOWN
    return gpu_activity(nvml.gpus, pids, limits)


async def _cpu_shares(pids: Collection[int]) -> list[float | None]:
    """Return the share of a core that each rank used in half a second; None for one that ended."""
    rows = [row for pid in pids if (row := read_process(pid)) is not None]
    ranks = [row for row in rows if row.cpu_ticks >= LEAST_CPU_S * TICKS_PER_S]
    await asyncio.sleep(ACTIVITY_S)
    shares: list[float | None] = []
    for row in ranks:
        again = read_process(row.pid)
        if again is None or again.started != row.started:
            shares.append(None)
        else:
            shares.append((again.cpu_ticks - row.cpu_ticks) / TICKS_PER_S / ACTIVITY_S)
    return shares


async def _still_hangs(tier: Tier, state: UnitState, known: KnownHang) -> TokenSample | None:
    """Return the sample since which a known hang lasts, or None if this short check does not confirm it."""
    before = await sample(tier, timeout_s=CONFIRM_TIMEOUT_S)
    if before.held and before.tokens and before.tokens == known.tokens and _is_older(state, known.age_s):
        return before
    await asyncio.sleep(CONFIRM_S)
    now = await sample(tier, timeout_s=CONFIRM_TIMEOUT_S)
    flat = before.held and now.held and before.tokens is not None and before.tokens == now.tokens
    mute = before.is_unread and now.is_unread and _is_older(state, known.age_s)
    return before if flat or mute else None


def _is_older(state: UnitState, age_s: float) -> bool:
    """Return True if the unit's main process is older than `age_s`, so it was not started again since."""
    process_s = None if state.main_pid is None else process_age_s(state.main_pid)
    return process_s is not None and process_s > age_s + RESTART_MARGIN_S
