"""The clean-up after a fallback or a restore: probe both tiers, establish one of three states, and report everything.

Each state defines the weights, the freezes, and which unit runs, so no mixed state is left. Every action is tried, whatever
fails before it. Requests that are being answered are given time to finish.
"""

import asyncio
import logging
from collections.abc import Awaitable
from enum import StrEnum

from pydantic import Field

from gpu_actions.action import StepContext, StepResult
from gpu_actions.forensics.step import save_evidence
from gpu_actions.host import Host, Tier
from gpu_actions.models import Frozen
from gpu_actions.serving.condition import Condition
from gpu_actions.serving.engines.base import RefusedError
from gpu_actions.serving.interfaces import EngineError, RouterError, UnitError, UnitState
from gpu_actions.tier.condition import generates, read_condition
from gpu_actions.tier.drain import drain_tier
from gpu_actions.tier.standby import forget_note, is_asleep
from gpu_actions.tier.stop import unfreeze_own
from gpu_actions.tier.traffic import SATURATED, lift_limits, prove_route, ready_router, route_to

logger = logging.getLogger(__name__)

SECOND_CHANCE_S = 8.0
"""A silent tier that is not known to hang gets this long once more: the clean-up may run in a moment of high load."""


class ServingState(StrEnum):
    """What serves on a host. There is no fourth state."""

    TP = "tp_serving"
    FALLBACK = "fallback_serving"
    NOTHING = "nothing_serving"


def serves_word(host: Host) -> str:
    """Return the state in which the tier `tp` serves. A rung that was stepped up to is the fallback."""
    return (ServingState.TP if host.whole is None else ServingState.FALLBACK).value


class Found(Frozen):
    """Results of probing both tiers."""

    tp_active: bool
    tp_generates: bool
    fallback_active: bool
    fallback_generates: bool
    tp_served_before: bool = Field(description="it generated when the plan was made")


def _described(state: UnitState | None) -> str:
    if state is None:
        return "is in an unknown state"
    return ("runs" if state.active else "is stopped") + (" and frozen" if state.frozen else "")


class Cleanup:
    """Tries every action of a clean-up, whatever fails, and collects what a person must know about it."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.notes: list[str] = []

    async def attempt(self, what: str, work: Awaitable[object]) -> bool:
        """Try one action. If it fails, keep the reason and return False."""
        try:
            await work
        except Exception as error:
            if not isinstance(error, UnitError | RouterError | EngineError | OSError):
                logger.exception("clean-up: %s failed unexpectedly", what)
            self.failures.append(f"{what}: {error or type(error).__name__}")
            return False
        return True

    async def state_of(self, tier: Tier) -> UnitState | None:
        """Return the state of a tier's unit, or None if it cannot be read."""
        try:
            return await tier.unit.state()
        except (UnitError, OSError) as error:
            self.failures.append(f"read the state of {tier.name}: {error}")
            return None

    async def probe_tiers(self, host: Host, *, tp_served_before: bool) -> Found:
        """Probe both tiers concurrently. A hung tier takes some seconds.

        A tier whose unit cannot be read counts as active, and its tokens say whether it serves.
        """

        async def probe(tier: Tier) -> tuple[bool, bool]:
            state = await self.state_of(tier)
            if state is None:
                return True, await generates(tier, timeout_s=SECOND_CHANCE_S)
            stall_s = host.config.fallback.drain_stall_s
            condition = (await read_condition(tier, state, stall_s=stall_s)).condition
            if (
                not condition.serves
                and condition not in (Condition.STOPPED, Condition.ASLEEP)
                and await generates(tier, timeout_s=SECOND_CHANCE_S)
            ):
                condition = Condition.SERVING
            return condition is not Condition.STOPPED, condition.serves

        tp, fallback = await asyncio.gather(probe(host.tp), probe(host.fallback))
        return Found(
            tp_active=tp[0],
            tp_generates=tp[1],
            fallback_active=fallback[0],
            fallback_generates=fallback[1],
            tp_served_before=tp_served_before,
        )

    async def start_again(self, tier: Tier, *, ready_timeout_s: float) -> bool:
        """Start a tier and wait for its first token. Return True if it generates."""
        if not await self.attempt(f"start {tier.name}", tier.unit.start()):
            return False

        async def still_starting() -> bool:
            return (await tier.unit.state()).active

        ready = tier.engine.wait_ready(timeout_s=ready_timeout_s, still_starting=still_starting)
        return await self.attempt(f"wait for {tier.name}", ready)

    async def wake(self, tier: Tier, *, timeout_s: float) -> bool:
        """Wake a tier that sleeps. Return True if it generates then; False also if it does not sleep."""
        state = await self.state_of(tier)
        if state is None or not await is_asleep(tier, state):
            return False
        if not await self.attempt(f"wake {tier.name}", tier.engine.wake(timeout_s=timeout_s)):
            return False
        forget_note(tier)
        return await generates(tier, timeout_s=SECOND_CHANCE_S)

    async def settle_on_tp(self, context: StepContext) -> None:
        """Move all traffic to the full tier, then drain and stop the fallback and remove its limits and its scope.

        If the traffic cannot be moved, the fallback keeps running: its streams may flow.
        """
        host, fallback = context.host, context.host.fallback
        await self.attempt("unfreeze tp", unfreeze_own(host.tp))
        if not await self._route(host, host.tp, fallback):
            return
        await self.attempt("lift the limits", lift_limits(host))
        state = await self.state_of(fallback)
        if state is not None and await is_asleep(fallback, state):
            self.notes.append("The standby of the fallback still sleeps")
            host.settle_rung()
            return
        if state is None or state.active:
            await self.attempt("drain the fallback", self._drain(context, fallback))
        await self.attempt("stop the fallback", fallback.unit.stop())
        await self.attempt("clear the fallback's scope", fallback.unit.set_scope({}))
        # Ready with weight 0 is the fallback's normal state on a healthy host.
        await self.attempt("make the fallback's server ready", host.router.undrain(fallback.config.server))
        host.settle_rung()

    async def settle_on_fallback(self, context: StepContext, *, freeze_reason: str) -> None:
        """Move all traffic to the fallback under its limits, then drain, freeze and stop the full tier.

        If the traffic cannot be moved, the full tier keeps running: its streams may flow.
        """
        host, tp = context.host, context.host.tp
        if not await self._route(host, host.fallback, tp):
            return
        await self.attempt("apply the limits", host.router.apply_back_pressure(host.fallback.config.server))
        await self.save_evidence_first(context)
        await self.attempt("drain tp", self._drain(context, tp))
        if host.whole is None:  # a rung is not frozen: the next fallback may start it
            await self.attempt("freeze tp", tp.unit.freeze(freeze_reason))
        await self.attempt(f"stop {tp.label}", tp.unit.stop(grace_s=2))

    async def settle_on_nothing(self, context: StepContext) -> None:
        """No tier generates: stop the fallback and remove its scope. A tp that still runs gets its traffic back; a stopped
        one stays frozen and drained, so that clients get 503 with Retry-After at once instead of hanging."""
        host, router = context.host, context.host.router
        tp, fallback = host.tp.config, host.fallback.config
        await self.attempt("lift the limits", router.clear_back_pressure(fallback.server))
        await self.attempt("stop the fallback", host.fallback.unit.stop(grace_s=2))
        await self.attempt("clear the fallback's scope", host.fallback.unit.set_scope({}))
        host.forget_rung()
        state = await self.state_of(host.tp)
        if state is not None and state.active:
            await self.attempt("unfreeze tp", unfreeze_own(host.tp))
            await self._route(host, host.tp, host.fallback)
            return
        await self.attempt("drain tp", router.drain(tp.server, allow_zero_total=True))
        for server, weight in ((tp.server, tp.weight), (fallback.server, 0)):
            await self.attempt(
                f"weight of {server}", router.set_weight(server, weight, allow_zero_total=True)
            )

    async def save_evidence_first(self, context: StepContext) -> None:
        """Save the evidence of a running tp before it is stopped, unless this run has saved it already."""
        state = await self.state_of(context.host.tp)
        if state is None or state.active:
            budget_s = float(context.args["capture_budget_s"])
            await self.attempt("save the evidence", save_evidence(context, budget_s=budget_s))

    async def _route(self, host: Host, tier: Tier, other: Tier) -> bool:
        """Move all traffic to `tier`. A router that does not answer is started again first. Return True if it moved."""

        async def move() -> None:
            await ready_router(host.router)
            await route_to(host, tier, other)

        return await self.attempt(f"route to {tier.name}", move())

    async def _drain(self, context: StepContext, tier: Tier) -> None:
        """Let the tier's requests finish within the fallback's drain limits; a tier that hangs is not waited for."""
        policy = context.host.config.fallback
        ended = await drain_tier(
            context,
            tier,
            timeout_s=policy.drain_timeout_s,
            stall_s=policy.drain_stall_s,
            allow_zero_total=True,
        )
        if ended.aborted:
            self.notes.append(f"{tier.name}: {ended.describe(tier.name)}")

    async def result(self, host: Host, state: ServingState) -> StepResult:
        """Prove the state with a token through the router, and describe it with what a person must do. A hold ends first."""
        await self.attempt("release the held requests", host.router.release())
        if state is not ServingState.NOTHING:
            state = await self._proved(host, state)
        tp, fallback = await self.state_of(host.tp), await self.state_of(host.fallback)
        summary = {
            ServingState.TP: f"the {host.tp.label} tier serves ({serves_word(host)}); the fallback {_described(fallback)}",
            ServingState.FALLBACK: f"the {host.fallback.label} tier serves (fallback_serving); the {host.tp.label} tier "
            f"{_described(tp)}",
            ServingState.NOTHING: "NOTHING IS SERVING (nothing_serving)",
        }[state]
        if state is ServingState.NOTHING:
            effect = "but does not generate" if tp and tp.active else "and clients get 503 with Retry-After"
            summary += (
                f": the tp tier {_described(tp)}, {effect}. A human must act: read the bundle and the tiers' logs, "
                f"repair the host, then /fallback start {host.name} or /restore start {host.name}; "
                "or send the traffic to another host"
            )
        summary = ". ".join([summary, *self.notes])
        if self.failures:
            summary += f". These clean-up actions failed: {'; '.join(self.failures)}"
        return StepResult(
            summary=summary,
            data={
                "state": serves_word(host) if state is ServingState.TP else state.value,
                "tp": {"active": tp and tp.active, "frozen": tp and tp.frozen},
                "fallback": {"active": fallback and fallback.active, "frozen": fallback and fallback.frozen},
                "troubles": self.failures,
            },
            warning=state is ServingState.NOTHING or bool(self.failures or self.notes),
        )

    async def _proved(self, host: Host, state: ServingState) -> ServingState:
        """Return the state that a token proves: through the router, or else from the engines themselves."""
        tier, other = (host.tp, host.fallback) if state is ServingState.TP else (host.fallback, host.tp)
        try:
            await prove_route(host, tier)
            return state
        except (EngineError, RouterError) as error:
            refused = error
        # A full router refuses the proof while tokens flow, so the engines are asked directly.
        if await generates(tier, timeout_s=SECOND_CHANCE_S):
            saturated = isinstance(refused, RefusedError) and refused.status in SATURATED
            self.notes.append(
                f"The router is saturated and refused the proof ({refused}), but {tier.name} generates"
                if saturated
                else f"No token came through the router ({refused}), but {tier.name} generates: check the router"
            )
            return state
        self.failures.append(f"proof through the router: {refused}")
        if await generates(other, timeout_s=SECOND_CHANCE_S):
            await self._route(host, other, tier)
            return ServingState.TP if other is host.tp else ServingState.FALLBACK
        return ServingState.NOTHING
