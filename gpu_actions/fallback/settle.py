"""The compensation of a fallback: probe what is really there, leave exactly one defined state, and say which.

`decide` is pure: it maps what was found to one of three states. The table is in docs/fallback.md.
"""

from gpu_actions.action import StepContext, StepResult, step
from gpu_actions.fallback.cleanup import Cleanup, Found, ServingState
from gpu_actions.models import Frozen
from gpu_actions.tier.client_account import with_clients
from gpu_actions.tier.scope import stop_other_rungs
from gpu_actions.tier.stop import unfreeze_own
from gpu_actions.tier.traffic import ready_router


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


@step("fallback.settle")
async def settle(context: StepContext) -> StepResult:
    """Effect: exactly one of the three states. Verified by a token. Never raises for a broken part: the result says what
    could not be done."""
    host, args, cleanup = context.host, context.args, Cleanup()
    freeze_reason = f"{args['own_freeze']} {context.run_id}"
    await cleanup.attempt("router", ready_router(host.router))
    await cleanup.attempt("stop other rungs", stop_other_rungs(host))
    context.report("probing both tiers", None)
    found = await cleanup.probe_tiers(host, tp_served_before=bool(args["tp_served_before"]))
    decision = decide(found)
    state = decision.state
    if decision.start_tp and not await _start_tp(context, cleanup):
        state = ServingState.NOTHING
        await cleanup.attempt("freeze tp", host.tp.unit.freeze(freeze_reason))
        await cleanup.attempt("stop tp", host.tp.unit.stop(grace_s=2))
    if state is ServingState.TP:
        await cleanup.settle_on_tp(context)
    elif state is ServingState.FALLBACK:
        await cleanup.settle_on_fallback(context, freeze_reason=freeze_reason)
    else:
        await cleanup.settle_on_nothing(context)
    return await with_clients(context, await cleanup.result(host, state))


async def _start_tp(context: StepContext, cleanup: Cleanup) -> bool:
    """Start the full tier, which this run stopped while it served. Return True if it generates again."""
    host = context.host
    context.report("nothing serves: starting the tp tier again", None)
    await cleanup.attempt("unfreeze tp", unfreeze_own(host.tp))
    # A half-started fallback may hold one of its GPUs.
    await cleanup.attempt("stop the fallback", host.fallback.unit.stop(grace_s=2))
    return await cleanup.start_again(host.tp, ready_timeout_s=float(context.args["ready_timeout_s"]))
