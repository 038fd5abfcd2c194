"""The compensation of a restore: return all traffic to the fallback if it serves, and leave exactly one defined state.

`decide_back` is pure. A tier whose return failed is frozen and stopped again, after its evidence is saved.
"""

from gpu_actions.action import StepContext, StepResult, step
from gpu_actions.fallback.settle import (
    Found,
    ServingState,
    Troubles,
    probe_tiers,
    result_of,
    save_evidence_first,
    settle_on_fallback,
    settle_on_nothing,
    settle_on_tp,
    start_again,
)
from gpu_actions.models import Frozen
from gpu_actions.tier.preflight import OWN_PREFIX
from gpu_actions.tier.traffic import ready_router

RESTORE_FREEZE = f"{OWN_PREFIX}restore"


class Back(Frozen):
    """The state to leave. `start_fallback`: nothing generates, so the fallback is started once more."""

    state: ServingState
    start_fallback: bool = False


def decide_back(found: Found, *, stages_passed: bool) -> Back:
    """Choose the fallback if it generates, unless every stage had passed; else the tier; else try the fallback again."""
    tp = found.tp_active and found.tp_generates
    fallback = found.fallback_active and found.fallback_generates
    if tp and (stages_passed or not fallback):
        return Back(state=ServingState.TP)
    return Back(state=ServingState.FALLBACK, start_fallback=not fallback)


@step("restore.stepback")
async def stepback(context: StepContext) -> StepResult:
    """Effect: exactly one of the three states. Verified by a token through the router. Never raises for a sick part."""
    host, troubles = context.host, Troubles()
    await troubles.attempt("router", ready_router(host.router))
    context.report("probing both tiers", None)
    passed = str(context.args["last_stage"]) in context.outputs
    back = decide_back(await probe_tiers(host, tp_served_before=False), stages_passed=passed)
    state = back.state
    if back.start_fallback and not await _start_fallback(context, troubles):
        state = ServingState.NOTHING
    if state is ServingState.TP:
        await settle_on_tp(host, troubles)
    elif state is ServingState.FALLBACK:
        await save_evidence_first(context, troubles)
        await settle_on_fallback(host, troubles, freeze_reason=f"{RESTORE_FREEZE} {context.run_id}")
        await troubles.attempt("clear tp's scope", host.tp.unit.set_scope({}))
    else:
        await settle_on_nothing(host, troubles)
    return await result_of(host, state, troubles)


async def _start_fallback(context: StepContext, troubles: Troubles) -> bool:
    """Start the fallback once more with the scope that it still has. The tier is stopped first: it may hold the same GPU."""
    host = context.host
    context.report("nothing serves: starting the fallback again", None)
    await save_evidence_first(context, troubles)
    await troubles.attempt("freeze tp", host.tp.unit.freeze(f"{RESTORE_FREEZE} {context.run_id}"))
    await troubles.attempt("stop tp", host.tp.unit.stop(grace_s=2))
    await troubles.attempt("stop the rest of the fallback", host.fallback.unit.stop(grace_s=2))
    return await start_again(host.fallback, troubles, ready_timeout_s=float(context.args["ready_timeout_s"]))
