"""The step `tier.sleep`: put a tier that has generated to sleep, so that it is a standby, and measure what it costs.

A sleep is proved by the engine's own word where it gives one, and by the GPU memory that its processes no longer hold.
"""

import time
from collections.abc import Collection

import psutil

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.host import Tier
from gpu_actions.serving.interfaces import EngineError, UnitState
from gpu_actions.system.clock import Moment
from gpu_actions.system.proc import resident_gib
from gpu_actions.tier.gpu_memory import read_gpus
from gpu_actions.tier.plan_steps import SLEEP_TIMEOUT_S
from gpu_actions.tier.standby import (
    SleepNote,
    StandbyCost,
    asleep_for,
    forget_note,
    is_asleep,
    keep_note,
    read_note,
)

CONTEXT_GIB = 1.5
"""What a sleeping engine may keep in any case: its CUDA context and the handles of its libraries, 0.7 to 1.2 GiB on an H100."""
MOST_KEPT_SHARE = 0.5
"""An engine that keeps half of its memory does not sleep."""


@step("tier.sleep")
async def sleep(context: StepContext) -> StepResult:
    """Effect: the tier's weights are in host memory and its GPU memory is released. Verified by the engine and by NVML.

    A second execution finds it asleep. With `or_stop`, an engine that cannot sleep is stopped, which is a warning.
    """
    tier = context.host.tiers[context.args["tier"]]
    state = await tier.unit.state()
    if not state.active:
        raise StepFailed(
            f"{tier.name} does not run, so it cannot sleep", next_action="read the end of its log"
        )
    try:
        note = read_note(tier, state) if await is_asleep(tier, state) else None
        if note is None:
            note = await _fall_asleep(tier, state)
    except (EngineError, _StillHolds) as error:
        if not context.args["or_stop"]:
            raise StepFailed(
                f"{tier.name} cannot sleep: {error}", next_action="see docs/standby.md"
            ) from error
        forget_note(tier)
        await tier.unit.stop()
        return StepResult(
            summary=f"{tier.name} cannot sleep ({error}), so it is stopped: the next fallback starts cold",
            data={"asleep": False},
            warning=True,
        )
    return StepResult(
        summary=f"{tier.name}: asleep after {note.sleep_s:.1f} s; {asleep_for(note).partition(', ')[2] or 'cost not known'}",
        data={
            "asleep": True,
            **note.model_dump(mode="json", exclude={"slept"}),
            "card": {"Standby": f"asleep, {note.text or 'its cost is not known'}"},
        },
    )


class _StillHolds(Exception):
    """Raised if an engine says that it sleeps but keeps its GPU memory."""


async def _fall_asleep(tier: Tier, state: UnitState) -> SleepNote:
    before_gib = await held_gib(tier, state.pids)
    began = time.monotonic()
    await tier.engine.sleep(timeout_s=SLEEP_TIMEOUT_S)
    seconds = time.monotonic() - began
    if await tier.engine.is_asleep() is False:
        raise EngineError(f"{tier.engine.url} accepted the sleep but reports that it is awake")
    after_gib = await held_gib(tier, state.pids)
    if keeps_too_much(before_gib, after_gib):
        raise _StillHolds(f"it keeps {after_gib:.1f} of {before_gib:.1f} GiB on its GPU")
    note = SleepNote(
        pid=state.main_pid or 0,
        slept=Moment.now(),
        sleep_s=round(seconds, 3),
        **(await cost_of(tier, state)).model_dump(),
    )
    keep_note(tier, note)
    return note


def keeps_too_much(before_gib: float | None, after_gib: float | None) -> bool:
    """Return whether an engine that says that it sleeps still holds its GPU memory. What is not known convicts nobody."""
    if before_gib is None or after_gib is None:
        return False
    return after_gib > max(CONTEXT_GIB, MOST_KEPT_SHARE * before_gib)


async def cost_of(tier: Tier, state: UnitState) -> StandbyCost:
    """Measure what a standby costs now."""
    host = {
        "host_gib": round(resident_gib(state.pids), 2),
        "host_free_gib": round(psutil.virtual_memory().available / 1024**3, 1),
    }
    if tier.config.gpus == 0:
        return StandbyCost(**host)
    gpus = [gpu for gpu in (await read_gpus()).gpus if set(gpu.held_mib) & set(state.pids)]
    if not gpus:
        return StandbyCost(**host)
    first = gpus[0]
    kept_mib = sum(mib for gpu in gpus for pid, mib in gpu.held_mib.items() if pid in state.pids)
    return StandbyCost(
        **host,
        gpu_gib=round(kept_mib / 1024, 2),
        gpu_index=first.index,
        gpu_free_gib=round(first.free_mib / 1024, 1),
    )


@step("standby.cost")
async def cost(context: StepContext) -> StepResult:
    """Measure what a resident standby costs. Effect: none."""
    tier = context.host.fallback
    found = await cost_of(tier, await tier.unit.state())
    return StepResult(
        summary=f"it costs {found.text}", data={**found.model_dump(), "card": {"Standby": found.text}}
    )


async def held_gib(tier: Tier, pids: Collection[int]) -> float | None:
    """Return the GPU memory that these processes hold, or None if it is not known or the tier runs on the CPU."""
    if tier.config.gpus == 0:
        return None
    gpus = (await read_gpus()).gpus
    rows = [mib for gpu in gpus for pid, mib in gpu.held_mib.items() if pid in pids]
    return sum(rows) / 1024 if rows else None
