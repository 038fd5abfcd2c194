"""The compensation of a fallback: probe what is really there, leave exactly one defined state, and say which.

`decide` is pure: it maps what was found to one of three states. Each state defines the weights, the freezes, and which unit
runs, so no mixed state is left. The table is in docs/fallback.md.
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
from gpu_actions.tier.condition import Condition, generates, read_condition
from gpu_actions.tier.preflight import OWN_PREFIX
from gpu_actions.tier.traffic import prove_route, ready_router, route_to

SECOND_CHANCE_S = 8.0
"""A silent tier that is not known to hang gets this long once more: the clean-up may run in a moment of high load."""


class ServingState(StrEnum):
    """What serves on a host. There is no fourth state."""

    TP = "tp_serving"
    FALLBACK = "fallback_serving"
    NOTHING = "nothing_serving"


class Found(Frozen):
    """Results of probing both tiers."""

    tp_active: bool
    tp_generates: bool
    fallback_active: bool
    fallback_generates: bool
    tp_served_before: bool = Field(description="it generated when the plan was made")


class Decision(Frozen):
    """The state to leave. `start_tp`: this run stopped tp although it served, so it is started again."""

    state: ServingState
    start_tp: bool = False


def decide(found: Found) -> Decision:
    """Choose the full tier if it generates, else the fallback, else the full tier again if it served when the run began."""
    if found.tp_active and found.tp_generates:
        return Decision(state=ServingState.TP)
    if found.fallback_active and found.fallback_generates:
        return Decision(state=ServingState.FALLBACK)
    if found.tp_served_before and not found.tp_active:
        return Decision(state=ServingState.TP, start_tp=True)
    return Decision(state=ServingState.NOTHING)


async def probe_tiers(host: Host, *, tp_served_before: bool) -> Found:
    """Probe both tiers concurrently. A hung tier takes some seconds."""

    async def probe(tier: Tier) -> tuple[bool, bool]:
        state = await tier.unit.state()
        condition = (await read_condition(tier, state, stall_s=host.config.fallback.drain_stall_s)).condition
        if condition is Condition.SILENT and await generates(tier, timeout_s=SECOND_CHANCE_S):
            condition = Condition.SERVING
        return condition is not Condition.STOPPED, condition is Condition.SERVING

    tp, fallback = await asyncio.gather(probe(host.tp), probe(host.fallback))
    return Found(
        tp_active=tp[0],
        tp_generates=tp[1],
        fallback_active=fallback[0],
        fallback_generates=fallback[1],
        tp_served_before=tp_served_before,
    )


class Troubles:
    """Collects what a clean-up could not do, so that one failure never hides the others."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def attempt(self, what: str, work: Awaitable[object]) -> bool:
        """Do one thing. Return False if it failed, and keep the reason."""
        try:
            await work
        except (UnitError, RouterError, EngineError, OSError) as error:
            self.lines.append(f"{what}: {error}")
            return False
        return True


async def unfreeze_own(tier: Tier) -> None:
    """Lift our own freeze of a tier; another operator's stays."""
    state = await tier.unit.state()
    if state.frozen and state.frozen_reason.startswith(OWN_PREFIX):
        await tier.unit.unfreeze()


async def start_again(tier: Tier, troubles: Troubles, *, ready_timeout_s: float) -> bool:
    """Start a tier and wait for its first token. Return True if it generates."""
    if not await troubles.attempt(f"start {tier.name}", tier.unit.start()):
        return False

    async def still_starting() -> bool:
        return (await tier.unit.state()).active

    ready = tier.engine.wait_ready(timeout_s=ready_timeout_s, still_starting=still_starting)
    return await troubles.attempt(f"wait for {tier.name}", ready)


async def settle_on_tp(host: Host, troubles: Troubles) -> None:
    """Move all traffic to the full tier, then stop the fallback and remove its limits and its scope."""
    await troubles.attempt("unfreeze tp", unfreeze_own(host.tp))
    await troubles.attempt("route to tp", route_to(host, host.tp, host.fallback))
    await troubles.attempt("lift the limits", host.router.clear_back_pressure(host.fallback.config.server))
    if (await host.fallback.unit.state()).active:
        await troubles.attempt("let the fallback finish", _drain_briefly(host, host.fallback))
    await troubles.attempt("stop the fallback", host.fallback.unit.stop())
    await troubles.attempt("clear the fallback's scope", host.fallback.unit.set_scope({}))
    # Ready with weight 0 is the fallback's normal state on a healthy host.
    await troubles.attempt(
        "make the fallback's server ready", host.router.undrain(host.fallback.config.server)
    )


async def save_evidence_first(context: StepContext, troubles: Troubles) -> None:
    """Save the evidence of a running tp, if this run ended before it did so, because it is stopped next."""
    if (await context.host.tp.unit.state()).active:
        budget_s = float(context.args["capture_budget_s"])
        await troubles.attempt("save the evidence", save_evidence(context, budget_s=budget_s))


async def settle_on_fallback(host: Host, troubles: Troubles, *, freeze_reason: str) -> None:
    """Move all traffic to the fallback under its limits, then freeze and stop the full tier."""
    await troubles.attempt("route to the fallback", route_to(host, host.fallback, host.tp))
    await troubles.attempt("apply the limits", host.router.apply_back_pressure(host.fallback.config.server))
    await troubles.attempt("drain tp", host.router.drain(host.tp.config.server, allow_zero_total=True))
    await troubles.attempt("freeze tp", host.tp.unit.freeze(freeze_reason))
    await troubles.attempt("stop tp", host.tp.unit.stop(grace_s=2))


async def settle_on_nothing(host: Host, troubles: Troubles) -> None:
    """No tier generates: stop the fallback and remove its scope. A tp that still runs gets its traffic back; a stopped one
    stays frozen and drained, so that clients get 503 with Retry-After at once instead of hanging."""
    router, tp, fallback = host.router, host.tp.config, host.fallback.config
    await troubles.attempt("lift the limits", router.clear_back_pressure(fallback.server))
    await troubles.attempt("stop the fallback", host.fallback.unit.stop(grace_s=2))
    await troubles.attempt("clear the fallback's scope", host.fallback.unit.set_scope({}))
    if (await host.tp.unit.state()).active:
        await troubles.attempt("unfreeze tp", unfreeze_own(host.tp))
        await troubles.attempt("route to tp", route_to(host, host.tp, host.fallback))
        return
    await troubles.attempt("drain tp", router.drain(tp.server, allow_zero_total=True))
    for server, weight in ((tp.server, tp.weight), (fallback.server, 0)):
        await troubles.attempt(
            f"weight of {server}", router.set_weight(server, weight, allow_zero_total=True)
        )


async def _drain_briefly(host: Host, tier: Tier, *, timeout_s: float = 15.0) -> None:
    """Let a tier's sessions end before it is stopped. The other tier takes the new ones already."""
    await host.router.drain(tier.config.server)
    async with asyncio.timeout(timeout_s):
        while (await host.router.server(tier.config.server)).sessions:  # noqa: ASYNC110  (a router is polled)
            await asyncio.sleep(0.1)


@step("fallback.settle")
async def settle(context: StepContext) -> StepResult:
    """Effect: exactly one of the three states. Verified by a token through the router. Never raises for a sick part: the
    result says what could not be done."""
    host, args, troubles = context.host, context.args, Troubles()
    freeze_reason = f"{args['own_freeze']} {context.run_id}"
    await troubles.attempt("router", ready_router(host.router))
    context.report("probing both tiers", None)
    decision = decide(await probe_tiers(host, tp_served_before=bool(args["tp_served_before"])))
    state = decision.state
    if decision.start_tp and not await _start_tp(context, troubles):
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


async def _start_tp(context: StepContext, troubles: Troubles) -> bool:
    """Start the full tier, which this run stopped while it served. Return True if it generates again."""
    host = context.host
    context.report("nothing serves: starting the tp tier again", None)
    await troubles.attempt("unfreeze tp", unfreeze_own(host.tp))
    # A half-started fallback may hold one of its GPUs.
    await troubles.attempt("stop the fallback", host.fallback.unit.stop(grace_s=2))
    return await start_again(host.tp, troubles, ready_timeout_s=float(context.args["ready_timeout_s"]))


async def result_of(host: Host, state: ServingState, troubles: Troubles) -> StepResult:
    """Prove the state with a token through the router, and describe it with what a person must do."""
    if state is not ServingState.NOTHING:
        tier = host.tp if state is ServingState.TP else host.fallback
        if not await troubles.attempt("proof through the router", prove_route(host, tier)):
            state = ServingState.NOTHING
    tp, fallback = await asyncio.gather(host.tp.unit.state(), host.fallback.unit.state())
    summary = {
        ServingState.TP: "the tp tier serves (tp_serving); the fallback is stopped",
        ServingState.FALLBACK: "the fallback tier serves (fallback_serving); the tp tier is stopped and frozen",
        ServingState.NOTHING: "NOTHING IS SERVING (nothing_serving)",
    }[state]
    if state is ServingState.NOTHING:
        found = (
            "the tp tier runs but does not generate"
            if tp.active
            else f"the tp tier is stopped{' and frozen' if tp.frozen else ''}, clients get 503 with Retry-After"
        )
        summary += (
            f": {found}. A human must act: read the bundle and the tiers' logs, repair the host, "
            f"then /fallback start {host.name} or /restore start {host.name}; or send the traffic to another host"
        )
    if troubles.lines:
        summary += f". These clean-up actions failed: {'; '.join(troubles.lines)}"
    return StepResult(
        summary=summary,
        data={
            "state": state.value,
            "tp": {"active": tp.active, "frozen": tp.frozen},
            "fallback": {"active": fallback.active, "frozen": fallback.frozen},
            "troubles": troubles.lines,
        },
        warning=state is ServingState.NOTHING or bool(troubles.lines),
    )
