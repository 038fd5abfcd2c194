"""The steps that move traffic: `fallback.route`, `fallback.backpressure`, and proof by a token through the router itself.

Traffic goes only to a tier that generated a token a moment ago, and the total usable weight never becomes 0 here.
"""

import asyncio
import logging
import time

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.host import Host, Tier
from gpu_actions.loadtest.knee_limits import fallback_limits
from gpu_actions.models import Frozen
from gpu_actions.serving.engines.base import RefusedError
from gpu_actions.serving.interfaces import EngineError, Router, RouterError
from gpu_actions.serving.registry import build_engine
from gpu_actions.system.clock import boot_clock_s
from gpu_actions.tier import run_notes
from gpu_actions.tier.client_account import keep_serves_again, with_clients
from gpu_actions.tier.condition import generates

logger = logging.getLogger(__name__)

PROOF_PROMPT = "gpu-oncall proves the route"
PROOF_TOKENS = 2
DIRECT_PROBE_S = 10.0
SATURATED = (429, 503)
PROOF_TRIES_S = 5.0
PROOF_AGAIN_S = 0.2
"""A saturated router refuses some requests and serves others, so a refused proof is tried again for some seconds."""
RECORD_DELAY_S = 0.3
"""A line of the router's record is written within 0.1 s after the end of its request."""
SECOND_TRY_AFTER_S = 0.5
"""A supervisor restarts a killed HAProxy after 0.25 s; a start in that very moment may collide with it."""


async def ready_router(router: Router) -> None:
    """Check that the router runs, and start a managed one that does not. Raises RouterError if it fails twice."""
    try:
        await router.ensure_running()
    except RouterError:
        await asyncio.sleep(SECOND_TRY_AFTER_S)
        await router.ensure_running()


async def lift_limits(host: Host) -> None:
    """Lift the fallback's limits, because `tp` serves. A rung that was stepped up to is a fallback too and gets its own."""
    await host.router.clear_back_pressure(host.fallback.config.server)
    if host.whole is not None:
        limits = fallback_limits(host.whole.on_rung(host.tp.key))
        await host.router.apply_back_pressure(host.tp.config.server, dict(limits.given))


class RouteProof(Frozen):
    """A completion through the router that the named tier served. `tokens` is 0 for a client's: its content is not read."""

    tier: str
    tokens: int
    ttft_ms: float
    first_token_ago_s: float
    tier_requests: int


async def prove_route(host: Host, tier: Tier) -> RouteProof:
    """Generate through the router and check that this tier served it. Raises EngineError or RouterError.

    The router names the server that answered. One that does not proves it by its counters, if only this tier's have counted.
    Behind a full queue our own request may not be answered in time; then a client's answer from this tier since is the proof.
    """
    began_s = time.time()
    try:
        return await _prove_by_own_request(host, tier)
    except EngineError:
        proof = await _proof_by_clients(host, tier, since_s=began_s)
        if proof is None:
            raise
        return proof


async def _proof_by_clients(host: Host, tier: Tier, *, since_s: float) -> RouteProof | None:
    """Return the proof that a client got an answer in full from this tier through the router since then."""
    await asyncio.sleep(RECORD_DELAY_S)
    try:
        answers = await host.router.answers(since_s, time.time())
    except RouterError:
        return None
    mine = [one for one in answers if one.server == tier.config.server and not one.fault]
    if not mine:
        return None
    first = min(mine, key=lambda one: one.ended_s)
    return RouteProof(
        tier=tier.name,
        tokens=0,
        ttft_ms=1000 * first.first_byte_s,
        first_token_ago_s=max(0.0, time.time() - first.ended_s),
        tier_requests=len(mine),
    )


async def _prove_by_own_request(host: Host, tier: Tier) -> RouteProof:
    through = build_engine(tier.config.engine.model_copy(update={"url": host.router.url}))
    give_up_s = boot_clock_s() + PROOF_TRIES_S
    while True:
        before = await _requests_total(host)
        asked_s = boot_clock_s()
        try:
            answer = await through.complete(
                PROOF_PROMPT, max_tokens=PROOF_TOKENS, timeout_s=tier.config.engine.request_timeout_s
            )
        except RefusedError as error:
            if error.status not in SATURATED or boot_clock_s() >= give_up_s:
                raise
            await asyncio.sleep(PROOF_AGAIN_S)
            continue
        after = await _requests_total(host)
        counted = {name for name in after if after[name] > before[name]}
        served = answer.server == tier.config.server if answer.server else counted == {tier.config.server}
        if served:
            return RouteProof(
                tier=tier.name,
                tokens=answer.completion_tokens,
                ttft_ms=answer.ttft_ms,
                first_token_ago_s=max(0.0, boot_clock_s() - asked_s - answer.ttft_ms / 1000),
                tier_requests=max(1, after[tier.config.server] - before[tier.config.server]),
            )
        if answer.server or tier.config.server not in counted or boot_clock_s() >= give_up_s:
            who = answer.server or " and ".join(sorted(counted)) or "no server that is known"
            raise RouterError(
                f"a completion through {host.router.url} was answered, but it is not proved that {tier.name} did it: "
                f"server {tier.config.server!r} is asked for, and {who} answered"
            )
        await asyncio.sleep(PROOF_AGAIN_S)  # both tiers counted requests: whose it was is not known


async def _requests_total(host: Host) -> dict[str, int]:
    """Return the requests that each tier's server has counted."""
    rows = await host.router.servers()
    servers = [tier.config.server for tier in host.every_tier]
    return {name: sum(row.requests_total for row in rows if row.server == name) for name in servers}


async def route_to(host: Host, tier: Tier, other: Tier) -> None:
    """Move all traffic to `tier`: ready, full weight, and weight 0 for the other and for other rungs. Safe to repeat."""
    others = {one.config.server: 0 for one in (other, *host.rungs.values())}
    await host.router.undrain(tier.config.server)
    await host.router.shift({**others, tier.config.server: tier.config.weight})


@step("fallback.route")
async def route(context: StepContext) -> StepResult:
    """Effect: all requests go to the fallback tier. Verified by a completion through the router that its server counted."""
    host, tier, other = context.host, context.host.fallback, context.host.tp
    generated, _ = await asyncio.gather(
        generates(tier, timeout_s=DIRECT_PROBE_S, tokens=1), ready_router(host.router)
    )
    if not generated:
        raise StepFailed(
            "the fallback tier does not generate, so it gets no traffic",
            next_action="check its log; the clean-up says what serves now",
        )
    try:
        await route_to(host, tier, other)
        proof = await prove_route(host, tier)
    except (EngineError, RouterError) as error:
        raise StepFailed(
            f"no token came through the router: {error}",
            next_action=f"check {host.config.router.show_servers}",
        ) from error
    elapsed_s = round(run_notes.began(context.workdir).seconds_ago() - proof.first_token_ago_s, 3)
    note = run_notes.recall(context.workdir, "first_token_through_router") or run_notes.keep(
        context.workdir, "first_token_through_router", {"after_s": elapsed_s}
    )
    elapsed_s = float(note["after_s"])
    keep_serves_again(context)
    return StepResult(
        summary=f"all requests go to {tier.label} (weight {tier.config.weight}, {other.name} 0); "
        f"first token through the router {elapsed_s:.1f} s after the start",
        data={
            "first_token_through_router_s": elapsed_s,
            "weights": {tier.config.server: tier.config.weight, other.config.server: 0},
            "proof": proof.model_dump(mode="json"),
        },
    )


UNITS = {"queue_timeout_s": " s", "long_window_s": " s", "retry_after_s": " s", "long_body_bytes": " bytes"}


@step("fallback.backpressure")
async def backpressure(context: StepContext) -> StepResult:
    """Effect: the configured limits are in force for the fallback tier. Verified by reading them back from the router."""
    host, router = context.host, context.host.router
    args = context.args.get("rungs", {}).get(host.rung, context.args)
    await ready_router(router)
    for rung in host.rungs.values() if host.has_ladder else ():
        if rung.key != host.rung:
            await router.clear_back_pressure(rung.config.server)
    in_force = await router.apply_back_pressure(host.fallback.config.server, args.get("given", {}))
    shown = ", ".join(
        f"{name.removesuffix('_s').removesuffix('_bytes').replace('_', ' ')} {value:g}{UNITS.get(name, '')}"
        for name, value in in_force.items()
    )
    wanted = {str(name): float(value) for name, value in args["wanted"].items()}
    missing = sorted(set(wanted) - set(in_force))
    wrong = {name: in_force[name] for name in wanted if name in in_force and in_force[name] != wanted[name]}
    if wrong:
        raise StepFailed(
            f"the router reports other limits than requested: {wrong} instead of {wanted}",
            next_action="check the router's configuration",
        )
    note = (
        f"; not in force here: {', '.join(missing)} (an existing router's own configuration)"
        if missing
        else ""
    )
    held = await _released(router)
    why = "".join(f"; {sentence}" for sentence in args.get("notes", ()))
    if held:
        why += f"; {held} held request{' goes' if held == 1 else 's go'} to the fallback"
    result = StepResult(
        summary=f"in force: {shown}{note}{why}",
        data={"in_force": in_force, "missing": missing, "held": held},
    )
    return await with_clients(context, result)


async def _released(router: Router) -> int:
    """End a hold, so that what waits goes to the fallback. Return how many requests waited."""
    try:
        return await router.release()
    except RouterError:
        logger.exception("held requests go on only when the hold ends by itself")
        return 0
