"""The compensation of a fallback: look what is really there and leave exactly one defined state, then say which.

`decide` is pure: it maps what was found to one of three states. Each state fixes the weights, the freezes, and which unit
runs, so no half state is left. The table is in docs/fallback.md.
"""

import asyncio
from collections.abc import Awaitable
from enum import StrEnum

from pydantic import Field

from gpu_actions.action import StepContext, StepResult, step
from gpu_actions.forensics.step import save_evidence
from gpu_actions.host import Host, Tier
from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import EngineError, RouterError, UnitError
from gpu_actions.tier.condition import Condition, generates, look_at
from gpu_actions.tier.preflight import OWN_PREFIX
from gpu_actions.tier.router_ready import ready_router
from gpu_actions.tier.traffic import prove_route, route_to

SECOND_CHANCE_S = 8.0
"""A tier that is silent, though not known to hang, gets this long once more: a clean-up may come in a moment of load."""


class ServingState(StrEnum):
    """What serves on a host. There is no fourth."""

    TP = "tp_serving"
    FALLBACK = "fallback_serving"
    NOTHING = "nothing_serving"


class Found(Frozen):
    """What the probes of both tiers said."""

    tp_active: bool
    tp_generates: bool
    fallback_active: bool
    fallback_generates: bool
    tp_served_before: bool = Field(description="it generated when the plan was made")


class Decision(Frozen):
    """Where to go. `start_tp`: it was stopped by this run though it served, so it is started again."""

    state: ServingState
    start_tp: bool = False


def decide(found: Found) -> Decision:
    """The full tier where it generates; else the fallback; else the full tier again if it served when the run began."""
    if found.tp_active and found.tp_generates:
        return Decision(state=ServingState.TP)
    if found.fallback_active and found.fallback_generates:
        return Decision(state=ServingState.FALLBACK)
    if found.tp_served_before and not found.tp_active:
        return Decision(state=ServingState.TP, start_tp=True)
    return Decision(state=ServingState.NOTHING)


async def look(host: Host, *, tp_served_before: bool) -> Found:
    """Probe both tiers at once, in some seconds also where one hangs."""

    async def probe(tier: Tier) -> tuple[bool, bool]:
        state = await tier.unit.state()
        seen = (await look_at(tier, state, stall_s=host.config.fallback.drain_stall_s)).condition
        if seen is Condition.SILENT and await generates(tier, timeout_s=SECOND_CHANCE_S):
            seen = Condition.SERVING
        return seen is not Condition.STOPPED, seen is Condition.SERVING

    tp, fallback = await asyncio.gather(probe(host.tp), probe(host.fallback))
    return Found(
        tp_active=tp[0],
        tp_generates=tp[1],
        fallback_active=fallback[0],
        fallback_generates=fallback[1],
        tp_served_before=tp_served_before,
    )


class Troubles:
    """Collects what a clean-up could not do, so that one failure never hides the rest."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def attempt(self, what: str, work: Awaitable[object]) -> bool:
        """Do one thing; a driver's refusal becomes a line."""
        try:
            await work
        except (UnitError, RouterError, EngineError, OSError) as error:
            self.lines.append(f"{what}: {error}")
            return False
        return True


async def unfreeze_own(tier: Tier) -> None:
    """Lift a freeze of ours; somebody else's stays."""
    state = await tier.unit.state()
    if state.frozen and state.frozen_reason.startswith(OWN_PREFIX):
        await tier.unit.unfreeze()


async def settle_on_tp(host: Host, troubles: Troubles) -> None:
    """The full tier takes everything, the fallback is stopped, its limits and its scope are gone."""
    await troubles.attempt("unfreeze tp", unfreeze_own(host.tp))
    await troubles.attempt("route to tp", route_to(host, host.tp, host.fallback))
    await troubles.attempt("lift the limits", host.router.clear_back_pressure(host.fallback.config.server))
    if (await host.fallback.unit.state()).active:
        await troubles.attempt("let the fallback finish", _drain_briefly(host, host.fallback))
    await troubles.attempt("stop the fallback", host.fallback.unit.stop())
    await troubles.attempt("clear the fallback's scope", host.fallback.unit.set_scope({}))
    # Ready with weight 0: how a fallback stands when nothing is wrong.
    await troubles.attempt(
        "make the fallback's server ready", host.router.undrain(host.fallback.config.server)
    )


async def save_evidence_first(context: StepContext, troubles: Troubles) -> None:
    """Nothing is stopped before its evidence is saved, also here, where the run was cut before it came to that."""
    if (await context.host.tp.unit.state()).active:
        budget_s = float(context.args["capture_budget_s"])
        await troubles.attempt("save the evidence", save_evidence(context, budget_s=budget_s))


async def settle_on_fallback(host: Host, troubles: Troubles, *, freeze_reason: str) -> None:
    """The fallback takes everything under its limits; the full tier is frozen and stopped."""
    await troubles.attempt("route to the fallback", route_to(host, host.fallback, host.tp))
    await troubles.attempt("apply the limits", host.router.apply_back_pressure(host.fallback.config.server))
    await troubles.attempt("drain tp", host.router.drain(host.tp.config.server, allow_zero_total=True))
    await troubles.attempt("freeze tp", host.tp.unit.freeze(freeze_reason))
    await troubles.attempt("stop tp", host.tp.unit.stop(grace_s=2))


async def settle_on_nothing(host: Host, troubles: Troubles) -> None:
    """No tier generates: the fallback is stopped and unscoped. A tier that still runs is put back as it was before;
    a stopped one stays frozen and drained, so that clients get 503 with Retry-After at once instead of hanging."""
    await troubles.attempt("lift the limits", host.router.clear_back_pressure(host.fallback.config.server))
    await troubles.attempt("stop the fallback", host.fallback.unit.stop(grace_s=2))
    await troubles.attempt("clear the fallback's scope", host.fallback.unit.set_scope({}))
    tp = host.tp.config
    if (await host.tp.unit.state()).active:
        await troubles.attempt("unfreeze tp", unfreeze_own(host.tp))
        await troubles.attempt("route to tp", route_to(host, host.tp, host.fallback))
    else:
        await troubles.attempt("drain tp", host.router.drain(tp.server, allow_zero_total=True))
        await troubles.attempt(
            "weight of tp", host.router.set_weight(tp.server, tp.weight, allow_zero_total=True)
        )
        await troubles.attempt(
            "weight of the fallback",
            host.router.set_weight(host.fallback.config.server, 0, allow_zero_total=True),
        )


async def _drain_briefly(host: Host, tier: Tier, *, timeout_s: float = 15.0) -> None:
    """Let the fallback's sessions end before it is stopped; the full tier already takes the new ones."""
    await host.router.drain(tier.config.server)
    async with asyncio.timeout(timeout_s):
        while (await host.router.server(tier.config.server)).sessions:  # noqa: ASYNC110  (a router is asked)
            await asyncio.sleep(0.1)


async def _start_tp_again(context: StepContext, troubles: Troubles) -> bool:
    """Start the full tier that this run stopped while it served; gives whether it generates again."""
    tp = context.host.tp
    context.report("nothing serves: starting the tp tier again", None)
    await troubles.attempt("unfreeze tp", unfreeze_own(tp))
    # Its GPUs may be the ones that a half-started fallback still holds.
    await troubles.attempt("stop the fallback", context.host.fallback.unit.stop(grace_s=2))
    if not await troubles.attempt("start tp", tp.unit.start()):
        return False

    async def still_starting() -> bool:
        return (await tp.unit.state()).active

    return await troubles.attempt(
        "wait for tp",
        tp.engine.wait_ready(timeout_s=float(context.args["ready_timeout_s"]), still_starting=still_starting),
    )


@step("fallback.settle")
async def settle(context: StepContext) -> StepResult:
    """Effect: exactly one of the three states. Verified: what serves is proved by a token through the router. Never raises
    for a sick part: what could not be done is said."""
    host, args, troubles = context.host, context.args, Troubles()
    freeze_reason = f"{args['own_freeze']} {context.run_id}"
    await troubles.attempt("router", ready_router(host.router))
    context.report("looking at what is there", None)
    decision = decide(await look(host, tp_served_before=bool(args["tp_served_before"])))
    state = decision.state
    if decision.start_tp and not await _start_tp_again(context, troubles):
        state = ServingState.NOTHING
        await troubles.attempt("freeze tp", host.tp.unit.freeze(freeze_reason))
        await troubles.attempt("stop tp", host.tp.unit.stop(grace_s=2))
    if state is ServingState.TP:
        await settle_on_tp(host, troubles)
    elif state is ServingState.FALLBACK:
        await save_evidence_first(context, troubles)
        await settle_on_fallback(host, troubles, freeze_reason=freeze_reason)
    else:
        await settle_on_nothing(host, troubles)
    return await result_of(host, state, troubles)


async def result_of(host: Host, state: ServingState, troubles: Troubles) -> StepResult:
    """Prove the state with a token through the router, and say it in words that a person can act on."""
    if state is not ServingState.NOTHING:
        tier = host.tp if state is ServingState.TP else host.fallback
        if not await troubles.attempt("proof through the router", prove_route(host, tier)):
            state = ServingState.NOTHING
    tp_state, fallback_state = await asyncio.gather(host.tp.unit.state(), host.fallback.unit.state())
    words = {
        ServingState.TP: "the tp tier serves (tp_serving); the fallback is stopped",
        ServingState.FALLBACK: "the fallback tier serves (fallback_serving); the tp tier is stopped and frozen",
        ServingState.NOTHING: "NOTHING IS SERVING (nothing_serving)",
    }
    summary = words[state]
    if state is ServingState.NOTHING:
        tp = (
            "the tp tier runs but does not generate"
            if tp_state.active
            else f"the tp tier is stopped{' and frozen' if tp_state.frozen else ''}, clients get 503 with Retry-After"
        )
        summary += (
            f": {tp}. A human must act: read the bundle and the tiers' logs, repair the host, "
            f"then /fallback start {host.name} or /restore start {host.name}; or send the traffic to another host"
        )
    if troubles.lines:
        summary += f". Not everything went well: {'; '.join(troubles.lines)}"
    return StepResult(
        summary=summary,
        data={
            "state": state.value,
            "tp": {"active": tp_state.active, "frozen": tp_state.frozen},
            "fallback": {"active": fallback_state.active, "frozen": fallback_state.frozen},
            "troubles": troubles.lines,
        },
        warning=state is ServingState.NOTHING or bool(troubles.lines),
    )
