"""The step `tier.drain`: take new requests away from a tier and let its running ones finish.

A tier is drained when the router has no session and no queue for it and the engine has nothing running or waiting, three
times in a row. A tier whose token counter does not move is not waited for: its requests are aborted at once, and counted.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.host import Tier
from gpu_actions.models import Frozen
from gpu_actions.serving.condition import Condition, Observation, Progress, TokenSample, judge_progress
from gpu_actions.serving.interfaces import RequestsUnknown, RouterError
from gpu_actions.system.clock import boot_clock_s
from gpu_actions.tier import run_notes
from gpu_actions.tier.client_account import with_clients
from gpu_actions.tier.condition import generates, judge_with_activity, sample
from gpu_actions.tier.traffic import ready_router

POLL_S = 0.25
QUIET_SCRAPES = 3
SETTLE_AFTER_ABORT_S = 2.0
SILENT_STALLS = 3
"""An engine whose counters cannot be read for this many times the stall limit counts as hung, unless a completion shows that it
generates: a starved event loop may answer no scrape while tokens flow."""

CONFIRM_SILENT_S = 1.0
"""An engine that planning found silent for the whole stall limit is only asked once more: it cannot progress."""


class DrainEnd(Frozen):
    """How a drain ended, in requests: `aborted` lost their answer at the router, `resent` had none yet and went to the other
    tier, `held` were still in the engine."""

    aborted: int
    resent: int = 0
    held: int | None
    reason: str
    stalled: bool = False
    seconds: float

    def describe(self, tier: str) -> str:
        """Return a line for people."""
        if not self.aborted and not self.resent:
            return f"{tier} drained in {self.seconds:.1f} s, no request was aborted"
        held = f", the engine held {self.held}" if self.held else ""
        resent = f", {self.resent} without an answer yet sent to the other tier" if self.resent else ""
        return (
            f"{self.aborted} request{'' if self.aborted == 1 else 's'} aborted{resent}: {self.reason}{held}"
        )


@step("tier.drain")
async def drain(context: StepContext) -> StepResult:
    """Effect: the router sends the tier nothing new, and sessions that do not finish are ended. Verified by the router's
    count of sessions. A second execution finds the tier drained and remembers what the first one aborted."""
    args = context.args
    tier = context.host.tiers[args["tier"]]
    await ready_router(context.host.router)
    run_notes.began_at_s(context.workdir)
    flat_since = args.get("flat_since")
    try:
        ended = await drain_tier(
            context,
            tier,
            timeout_s=float(args["timeout_s"]),
            stall_s=float(args["stall_s"]),
            allow_zero_total=bool(args["allow_zero_total"]),
            flat_since=None if flat_since is None else TokenSample.model_validate(flat_since),
            found_silent=bool(args.get("found_silent")),
        )
    except RouterError as error:
        raise StepFailed(
            f"the router does not drain {tier.name}: {error}",
            next_action="run /triage to see which tier can take the requests",
        ) from error
    result = StepResult(
        summary=ended.describe(tier.name),
        data={
            "tier": tier.name,
            "cut": ended.aborted,
            "resent": ended.resent,
            "engine_held": ended.held,
            "reason": ended.reason,
            "stalled": ended.stalled,
            "seconds": round(ended.seconds, 3),
        },
        warning=ended.aborted > 0,
    )
    # While nothing serves there is no time to read.
    return result if args["allow_zero_total"] else await with_clients(context, result)


async def drain_tier(
    context: StepContext,
    tier: Tier,
    *,
    timeout_s: float,
    stall_s: float,
    allow_zero_total: bool,
    flat_since: TokenSample | None = None,
    found_silent: bool = False,
) -> DrainEnd:
    """Send the tier nothing new and wait until its requests finish. At the deadline, or if it hangs, abort the rest.

    The count of aborted requests includes those of earlier executions in the same run. Raises RouterError.
    """
    await context.host.router.drain(tier.config.server, allow_zero_total=allow_zero_total)
    samples = [] if flat_since is None else [flat_since]
    silent_s = CONFIRM_SILENT_S if found_silent else SILENT_STALLS * stall_s
    ended = await _until_drained(
        context, tier, samples, timeout_s=timeout_s, stall_s=stall_s, silent_s=silent_s
    )
    aborted, resent = await _aborted_and_resent(context, tier)
    return ended.model_copy(update={"aborted": aborted, "resent": resent})


async def _until_drained(
    context: StepContext,
    tier: Tier,
    samples: list[TokenSample],
    *,
    timeout_s: float,
    stall_s: float,
    silent_s: float,
) -> DrainEnd:
    started = time.monotonic()
    quiet = 0
    unit = await tier.unit.state()
    active = unit.active
    probe: asyncio.Task[bool] | None = None
    try:
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
            unread = samples[-1].tokens is None and held is None
            if probe is not None and not unread:
                probe.cancel()
                probe = None
            elif probe is None and unread:
                probe = asyncio.create_task(generates(tier, timeout_s=silent_s))
            hangs = ""
            if judge_progress(samples, stall_s=stall_s) is Progress.FLAT:
                seen = Observation(samples=tuple(samples))
                judged = await judge_with_activity(tier, unit, seen, stall_s=stall_s)
                if judged.condition is Condition.HUNG:
                    hangs = f"its token counter did not move for {stall_s:g} s"
                else:  # a long prefill: it gets the same time once more
                    samples = samples[-1:]
            elif probe is not None and silence_s(samples) >= silent_s:
                if await probe or await tier.engine.is_live(timeout_s=1):
                    samples.clear()  # only its counters do not answer
                    probe = None
                else:
                    hangs = f"its engine answered nothing for {silence_s(samples):.0f} s"
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
    finally:
        if probe is not None:
            probe.cancel()


def silence_s(samples: Sequence[TokenSample]) -> float:
    """Return for how many seconds the newest samples in a row could not be read; 0 if the newest one could."""
    silent = list(itertools.takewhile(lambda one: one.tokens is None and one.held is None, reversed(samples)))
    return silent[0].at_s - silent[-1].at_s if silent else 0.0


async def _abort(context: StepContext, tier: Tier, *, expected: int) -> None:
    """End the sessions. Record their number before and after, so that a kill in between neither loses nor doubles any.

    A drained tier gets no new sessions, so sessions still open were not ended by an earlier execution.
    """
    name = f"cut_{tier.name}"
    note = run_notes.recall(context.workdir, name) or {}
    done = int(note.get("cut", 0)) + max(0, int(note.get("pending", 0)) - expected)
    resent_before = note.get("resent_before", (await context.host.router.server(tier.config.server)).resent)
    first_s = note.get("first_s", None if note else time.time())
    kept = {"resent_before": resent_before, "first_s": first_s}
    run_notes.keep(context.workdir, name, {"cut": done, "pending": expected, **kept})
    ended = await context.host.router.abort_sessions(tier.config.server)
    run_notes.keep(context.workdir, name, {"cut": done + ended, "pending": 0, **kept})
    deadline = time.monotonic() + SETTLE_AFTER_ABORT_S
    while (await context.host.router.server(tier.config.server)).sessions:
        if time.monotonic() >= deadline:
            raise StepFailed(
                f"the router still counts sessions on {tier.name} after ending them",
                next_action=f"check {context.host.config.router.show_sessions}; the tier is drained but not stopped",
            )
        await asyncio.sleep(0.02)


async def _aborted_and_resent(context: StepContext, tier: Tier) -> tuple[int, int]:
    """Return how many requests lost their answer and how many the router sent to another tier instead.

    The router counts those of which no byte was answered when their session was ended. Sessions that a killed execution was
    about to end are gone by now, so they count too. The first number comes from the router's record if that is
    complete, because some of these sessions finish, or their client leaves, at the very moment they are ended.
    """
    note = run_notes.recall(context.workdir, f"cut_{tier.name}") or {}
    ended = int(note.get("cut", 0)) + int(note.get("pending", 0))
    resent_now = (await context.host.router.server(tier.config.server)).resent
    resent = min(ended, max(0, resent_now - int(note.get("resent_before", resent_now))))
    if ended and note.get("first_s") is not None:
        with contextlib.suppress(RequestsUnknown):
            account = await context.host.router.requests(float(note["first_s"]), time.time())
            if not account.incomplete:
                refused = min(resent, account.resent_to_none)  # there was no other tier: 503 with Retry-After
                return account.ended_by_us.get(tier.config.server, 0), resent - refused
    return ended - resent, resent
