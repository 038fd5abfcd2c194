"""Hold new requests first, plan afterwards: while a fallback from a tier that serves nothing is planned and started, new
requests wait at the router instead of joining those that hang.

The hold ends by itself (`router.hold.wait_s`), so a bot that is killed never leaves a service that is held. It is given back if
the plan is refused, denied or cancelled; the step `fallback.hold` continues it, and `fallback.backpressure` ends it once the
fallback has the traffic and its limits.
"""

import asyncio
import logging

from gpu_actions.action import StepContext, StepResult, step
from gpu_actions.host import Host, Tier
from gpu_actions.loadtest.knee_limits import fallback_limits
from gpu_actions.models import JsonObject
from gpu_actions.serving.interfaces import RouterError, UnitError
from gpu_actions.tier import run_notes
from gpu_actions.tier.condition import generates, sample
from gpu_actions.tier.traffic import ready_router
from gpu_actions.tier.warm import expected_startup_s

logger = logging.getLogger(__name__)

SUSPECT_S = 0.6
"""A tier that generates no token for this long is suspected: new requests wait while the plan finds out. If it does serve, they
have waited for some seconds and are given back."""


async def hold_first(host: Host, planned: asyncio.Event | None = None) -> bool:
    """Hold new requests if the full tier seems to serve nothing. Return True if they are held. Never raises: planning says
    what is wrong. If `planned` is set first, the plan knows better and its own step holds them, so this watch ends."""
    watching = asyncio.ensure_future(_looks_well(host))
    known = asyncio.ensure_future((planned or asyncio.Event()).wait())
    try:
        await asyncio.wait({watching, known}, return_when=asyncio.FIRST_COMPLETED)
        if not watching.done() or watching.result():
            return False
        return await host.router.hold(**hold_limits(host))
    except (RouterError, UnitError, OSError) as error:
        logger.warning("new requests are not held: %s", error)
        return False
    finally:
        known.cancel()
        watching.cancel()


async def _looks_well(host: Host) -> bool:
    """Return True if nothing is to be held: the fallback has the traffic, or the full tier seems to serve."""
    return await _fallback_has_traffic(host) or await seems_to_serve(host.tp)


async def give_back(host: Host) -> None:
    """Give held requests back to the tiers as they are. Never raises: the hold ends by itself."""
    try:
        await host.router.release()
    except (RouterError, OSError) as error:
        logger.warning("held requests are not given back before the hold ends by itself: %s", error)


async def seems_to_serve(tier: Tier) -> bool:
    """Return False if a tier does not run, or within `SUSPECT_S` answers no completion and its token counter does not move."""
    if not (await tier.unit.state()).active:
        return False
    probe = asyncio.create_task(generates(tier, timeout_s=SUSPECT_S, tokens=1))
    before = await sample(tier, timeout_s=SUSPECT_S)
    if await probe:
        return True
    after = await sample(tier, timeout_s=SUSPECT_S) if before.tokens is not None else before
    return before.tokens is not None and after.tokens is not None and after.tokens != before.tokens


async def _fallback_has_traffic(host: Host) -> bool:
    server = await host.router.server(host.fallback.config.server)
    return server.weight > 0 and server.admin_state == "ready"


def hold_limits(host: Host) -> JsonObject:
    """Return how long and how many requests may wait: as many as the fallback takes at once."""
    policy = host.config.router.hold
    return {"wait_s": policy.wait_s, "limit": policy.limit(fallback_limits(host).pressure)}


def held_until_serving(host: Host, *, woken: bool) -> bool:
    """Return False if the fallback is known to start, or to wake, too slowly for requests that wait: they are refused at once
    instead."""
    startup_s = expected_startup_s(host, "fallback", woken=woken)
    return startup_s is None or startup_s < host.config.router.hold.wait_s


@step("fallback.hold")
async def hold(context: StepContext) -> StepResult:
    """Effect: the tier gets nothing new and its open requests are left alone. Verified by the router's state.

    New requests wait for the fallback as long as the hold lasts. Without a hold, or after it, no tier takes requests, so
    clients get 503 with Retry-After at once instead of hanging.
    """
    tier, limits = context.host.tiers[context.args["tier"]], context.args.get("hold")
    router = context.host.router
    run_notes.began_at_s(context.workdir)
    await ready_router(router)
    held = False
    try:
        held = limits is not None and await router.hold(**limits)
        if not held:
            await router.release()
    except RouterError as error:
        logger.warning("new requests are not held: %s", error)
    await router.drain(tier.config.server, allow_zero_total=True)
    state = await router.server(tier.config.server)
    waits = f" and wait at most {limits['wait_s']:g} s for the fallback" if held and limits else ""
    return StepResult(
        summary=f"{tier.name} gets no new requests{'; they are held' + waits if held else ''}; "
        f"{state.sessions} are still open on it",
        data={"tier": tier.name, "sessions": state.sessions, "held": held},
    )
