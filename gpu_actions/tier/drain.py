"""The step `tier.drain`: take a tier's new requests away, let its running ones finish, cut what never will.

Drained means: no session and no queue at the router, and nothing running or waiting in the engine, three times in a row
(serving.md). A tier whose token counter stands still is cut at once; the count of cut requests is part of the result.
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
from gpu_actions.tier.router_ready import ready_router

POLL_S = 0.25
QUIET_SCRAPES = 3
SETTLE_AFTER_CUT_S = 2.0
SILENT_STALLS = 3
"""An engine whose counters cannot be read at all for this many times the stall limit is taken for one that stands still: a
busy engine still answers a scrape, a frozen one never does."""


class DrainEnd(Frozen):
    """How a drain ended. `cut` = requests whose connection was ended at the router, `held` = what the engine still held."""

    cut: int
    held: int | None
    reason: str
    stalled: bool = False
    seconds: float


@step("fallback.hold")
async def hold(context: StepContext) -> StepResult:
    """Effect: the router gives the tier nothing new; its open requests are left alone. Verified by the router's word. Clients
    get 503 with Retry-After at once where no other tier takes requests, instead of hanging."""
    tier = context.host.tiers[context.args["tier"]]
    router = context.host.router
    run_notes.began_at_s(context.workdir)
    await ready_router(router)
    await router.drain(tier.config.server, allow_zero_total=True)
    state = await router.server(tier.config.server)
    return StepResult(
        summary=f"no new request goes to {tier.name}; {state.sessions} stay on it for now",
        data={"tier": tier.name, "sessions": state.sessions},
    )


@step("tier.drain")
async def drain(context: StepContext) -> StepResult:
    """Effect: the router gives the tier nothing new; sessions that do not finish are ended. Verified by the router's own
    count of sessions. A second execution finds it drained and remembers what the first one cut."""
    tier = context.host.tiers[context.args["tier"]]
    router = context.host.router
    await ready_router(router)
    run_notes.began_at_s(context.workdir)
    try:
        await router.drain(tier.config.server, allow_zero_total=bool(context.args["allow_zero_total"]))
    except RouterError as error:
        raise StepFailed(
            f"the router does not drain {tier.name}: {error}",
            next_action="see /triage: which tier can take the requests?",
        ) from error
    ended = await _until_drained(context, tier)
    note = run_notes.recall(context.workdir, f"cut_{tier.name}") or {}
    cut = int(note.get("cut", 0)) + int(note.get("pending", 0))  # what was under way at a kill is gone by now
    held = f", the engine held {ended.held}" if ended.held else ""
    summary = f"{tier.name} drained in {ended.seconds:.1f} s, no request was cut"
    if cut:
        summary = f"{cut} request{'' if cut == 1 else 's'} cut: {ended.reason}{held}"
    return StepResult(
        summary=summary,
        data={
            "tier": tier.name,
            "cut": cut,
            "engine_held": ended.held,
            "reason": ended.reason,
            "stalled": ended.stalled,
            "seconds": round(ended.seconds, 3),
        },
        warning=cut > 0,
    )


async def _until_drained(context: StepContext, tier: Tier) -> DrainEnd:
    """Wait for the end of what runs; at the deadline or a standstill cut the rest."""
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
        waiting_here = state.sessions + state.queued
        held = samples[-1].held
        elapsed = time.monotonic() - started
        quiet = quiet + 1 if waiting_here == 0 and not held else 0
        if quiet >= QUIET_SCRAPES:
            return DrainEnd(cut=0, held=0, reason="everything finished", seconds=elapsed)
        standstill = judge_progress(samples, stall_s=stall_s) is Progress.FLAT
        silent_s = silence_s(samples)
        silent = silent_s >= SILENT_STALLS * stall_s and not await tier.engine.is_live(timeout_s=1)
        if standstill or silent or elapsed >= timeout_s:
            reason = f"not finished within {timeout_s:g} s"
            if standstill:
                reason = f"its token counter stood still for {stall_s:g} s"
            elif silent:
                reason = f"its engine answered nothing for {silent_s:.0f} s"
            await _cut(context, tier, expected=state.sessions)
            return DrainEnd(
                cut=state.sessions,
                held=None if held is None else int(held),
                reason=reason,
                stalled=standstill or silent,
                seconds=time.monotonic() - started,
            )
        context.report(
            f"{waiting_here} at the router, {'?' if held is None else int(held)} in the engine",
            elapsed / timeout_s,
        )
        await asyncio.sleep(POLL_S)


def silence_s(samples: Sequence[TokenSample]) -> float:
    """Seconds for which the last samples in a row could not be read; 0 when the last one could."""
    silent = list(itertools.takewhile(lambda one: one.tokens is None and one.held is None, reversed(samples)))
    return silent[0].at_s - silent[-1].at_s if silent else 0.0


async def _cut(context: StepContext, tier: Tier, *, expected: int) -> None:
    """End the sessions and remember how many, before and after, so that a kill in between neither loses nor doubles any.

    A drained tier gets no new ones: of those that an earlier execution meant to end, the ones that are still there were not.
    """
    name = f"cut_{tier.name}"
    note = run_notes.recall(context.workdir, name) or {}
    done = int(note.get("cut", 0)) + max(0, int(note.get("pending", 0)) - expected)
    run_notes.keep(context.workdir, name, {"cut": done, "pending": expected})
    ended = await context.host.router.cut_sessions(tier.config.server)
    run_notes.keep(context.workdir, name, {"cut": done + ended, "pending": 0})
    deadline = time.monotonic() + SETTLE_AFTER_CUT_S
    while (await context.host.router.server(tier.config.server)).sessions:
        if time.monotonic() >= deadline:
            raise StepFailed(
                f"the router still counts sessions on {tier.name} after cutting them",
                next_action="look at `show sess` on the router's admin socket; the tier is drained but not stopped",
            )
        await asyncio.sleep(0.02)
