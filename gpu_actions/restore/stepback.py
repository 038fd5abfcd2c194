"""The compensation of a restore: return all traffic to the fallback if it serves, and leave exactly one defined state.

`decide_back` is pure. A tier whose return failed is frozen and stopped again, after its evidence is saved.
"""

from gpu_actions.action import StepContext, StepResult, step
from gpu_actions.fallback.cleanup import Cleanup, Found, ServingState
from gpu_actions.models import Frozen
from gpu_actions.restore.golden import answered_wrongly
from gpu_actions.tier.client_account import with_clients
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
    """Effect: exactly one of the three states. Verified by a token. Never raises for a broken part."""
    host, cleanup = context.host, Cleanup()
    await cleanup.attempt("router", ready_router(host.router))
    context.report("probing both tiers", None)
    passed = str(context.args["last_stage"]) in context.outputs
    found = await cleanup.probe_tiers(host, tp_served_before=False)
    if answered_wrongly(context.workdir):
        found = found.model_copy(update={"tp_generates": False})
    back = decide_back(found, stages_passed=passed)
    state = back.state
    if back.start_fallback and not await _start_fallback(context, cleanup):
        state = ServingState.NOTHING
    if state is ServingState.TP:
        await cleanup.settle_on_tp(context)
    elif state is ServingState.FALLBACK:
        await cleanup.settle_on_fallback(context, freeze_reason=f"{RESTORE_FREEZE} {context.run_id}")
        await cleanup.attempt("clear tp's scope", host.tp.unit.set_scope({}))
    else:
        await cleanup.settle_on_nothing(context)
    return await with_clients(context, await cleanup.result(host, state))


async def _start_fallback(context: StepContext, cleanup: Cleanup) -> bool:
    """Start the fallback once more with the scope that it still has. The tier is stopped first: it may hold the same GPU.
    A fallback that this run has put to sleep is woken."""
    host = context.host
    context.report("nothing serves: starting the fallback again", None)
    await cleanup.save_evidence_first(context)
    await cleanup.attempt("freeze tp", host.tp.unit.freeze(f"{RESTORE_FREEZE} {context.run_id}"))
    await cleanup.attempt("stop tp", host.tp.unit.stop(grace_s=2))
    if await cleanup.wake(host.fallback, timeout_s=host.config.fallback.wake_timeout_s):
        return True
    await cleanup.attempt("stop the rest of the fallback", host.fallback.unit.stop(grace_s=2))
    return await cleanup.start_again(host.fallback, ready_timeout_s=float(context.args["ready_timeout_s"]))
