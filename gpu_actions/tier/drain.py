"""The steps `fallback.hold` and `tier.drain`: take new requests away from a tier and let its running ones finish.

A tier is drained when the router has no session and no queue for it and the engine has nothing running or waiting, three
times in a row. A tier whose token counter does not move is not waited for: its requests are aborted at once, and counted.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.host import Tier
from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import RouterError
from gpu_actions.system.clock import boot_clock_s
from gpu_actions.tier import run_notes
from gpu_actions.tier.condition import Progress, TokenSample, judge_progress, sample
from gpu_actions.tier.traffic import ready_router

POLL_S = 0.25
QUIET_SCRAPES = 3
SETTLE_AFTER_ABORT_S = 2.0
SILENT_STALLS = 3
"""An engine whose counters cannot be read for this many times the stall limit counts as hung: a busy engine still answers a
scrape, a frozen one never does."""


class DrainEnd(Frozen):
    """How a drain ended. `aborted` = requests that were ended at the router, `held` = requests still in the engine."""

    aborted: int
    held: int | None
    reason: str
    stalled: bool = False
    seconds: float


@step("fallback.hold")
async def hold(context: StepContext) -> StepResult:
    """Effect: the router sends the tier nothing new and leaves its open requests alone. Verified by the router's state.

    If no other tier takes requests, clients get 503 with Retry-After at once instead of hanging.
    """
    tier = context.host.tiers[context.args["tier"]]
    router = context.host.router
    run_notes.began_at_s(context.workdir)
    await ready_router(router)
    await router.drain(tier.config.server, allow_zero_total=True)
    state = await router.server(tier.config.server)
    return StepResult(
        summary=f"{tier.name} gets no new requests; {state.sessions} are still open on it",
        data={"tier": tier.name, "sessions": state.sessions},
    )


@step("tier.drain")
async def drain(context: StepContext) -> StepResult:
    """Effect: the router sends the tier nothing new, and sessions that do not finish are ended. Verified by the router's
    count of sessions. A second execution finds the tier drained and remembers what the first one aborted."""
    tier = context.host.tiers[context.args["tier"]]
    router = context.host.router
    await ready_router(router)
    run_notes.began_at_s(context.workdir)
    try:
        await router.drain(tier.config.server, allow_zero_total=bool(context.args["allow_zero_total"]))
    except RouterError as error:
        raise StepFailed(
            f"the router does not drain {tier.name}: {error}",
            next_action="run /triage to see which tier can take the requests",
        ) from error
    ended = await _until_drained(context, tier)
    note = run_notes.recall(context.workdir, f"cut_{tier.name}") or {}
    # Sessions that a killed execution was about to end are gone by now.
    aborted = int(note.get("cut", 0)) + int(note.get("pending", 0))
    held = f", the engine held {ended.held}" if ended.held else ""
    summary = f"{tier.name} drained in {ended.seconds:.1f} s, no request was aborted"
    if aborted:
        summary = f"{aborted} request{'' if aborted == 1 else 's'} aborted: {ended.reason}{held}"
    return StepResult(
        summary=summary,
        data={
            "tier": tier.name,
            "cut": aborted,
            "engine_held": ended.held,
            "reason": ended.reason,
            "stalled": ended.stalled,
            "seconds": round(ended.seconds, 3),
        },
        warning=aborted > 0,
    )


async def _until_drained(context: StepContext, tier: Tier) -> DrainEnd:
    """Wait until the running requests finish. Abort the rest at the deadline or when nothing moves."""
    timeout_s, stall_s = float(context.args["timeout_s"]), float(context.args["stall_s"])
    started = time.monotonic()
    flat_since = context.args.get("flat_since")
    samples = [] if flat_since is None else [TokenSample.model_validate(flat_since)]
    quiet = 0
    active = (await tier.unit.state()).active
    while True:
        state = await context.host.router.server(tier.config.server)
        samples.append(
            await sample(tier) if active else TokenSample(at_s=boot_clock_s(), tokens=None, held=0)
        )
        at_router = state.sessions + state.queued
        held = samples[-1].held
        elapsed = time.monotonic() - started
        quiet = quiet + 1 if at_router == 0 and not held else 0
        if quiet >= QUIET_SCRAPES:
            return DrainEnd(aborted=0, held=0, reason="everything finished", seconds=elapsed)
        hangs = await _why_hung(tier, samples, stall_s=stall_s)
        if hangs or elapsed >= timeout_s:
            await _abort(context, tier, expected=state.sessions)
            return DrainEnd(
                aborted=state.sessions,
                held=None if held is None else int(held),
                reason=hangs or f"not finished within {timeout_s:g} s",
                stalled=bool(hangs),
                seconds=time.monotonic() - started,
            )
        context.report(
            f"{at_router} at the router, {'?' if held is None else int(held)} in the engine",
            elapsed / timeout_s,
        )
        await asyncio.sleep(POLL_S)


async def _why_hung(tier: Tier, samples: Sequence[TokenSample], *, stall_s: float) -> str:
    """Return why the tier's requests will never finish, or an empty string."""
    if judge_progress(samples, stall_s=stall_s) is Progress.FLAT:
        return f"its token counter did not move for {stall_s:g} s"
    silent_s = silence_s(samples)
    if silent_s >= SILENT_STALLS * stall_s and not await tier.engine.is_live(timeout_s=1):
        return f"its engine answered nothing for {silent_s:.0f} s"
    return ""


def silence_s(samples: Sequence[TokenSample]) -> float:
    """Return for how many seconds the newest samples in a row could not be read; 0 if the newest one could."""
    silent = list(itertools.takewhile(lambda one: one.tokens is None and one.held is None, reversed(samples)))
    return silent[0].at_s - silent[-1].at_s if silent else 0.0


async def _abort(context: StepContext, tier: Tier, *, expected: int) -> None:
    """End the sessions, and record how many before and after, so that a kill in between neither loses nor doubles any.

    A drained tier gets no new sessions: of those that an earlier execution was about to end, the ones still open were not.
    """
    name = f"cut_{tier.name}"
    note = run_notes.recall(context.workdir, name) or {}
    done = int(note.get("cut", 0)) + max(0, int(note.get("pending", 0)) - expected)
    run_notes.keep(context.workdir, name, {"cut": done, "pending": expected})
    ended = await context.host.router.cut_sessions(tier.config.server)
    run_notes.keep(context.workdir, name, {"cut": done + ended, "pending": 0})
    deadline = time.monotonic() + SETTLE_AFTER_ABORT_S
    while (await context.host.router.server(tier.config.server)).sessions:
        if time.monotonic() >= deadline:
            raise StepFailed(
                f"the router still counts sessions on {tier.name} after ending them",
                next_action="check `show sess` on the router's admin socket; the tier is drained but not stopped",
            )
        await asyncio.sleep(0.02)
