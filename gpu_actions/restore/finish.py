"""The last step of a restore: remove the fallback's limits and scope, and prove that tp serves."""

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.fallback.cleanup import serves_word
from gpu_actions.serving.interfaces import EngineError, RouterError
from gpu_actions.tier.client_account import with_clients
from gpu_actions.tier.standby import is_asleep
from gpu_actions.tier.traffic import lift_limits, prove_route, ready_router


@step("restore.finish")
async def finish(context: StepContext) -> StepResult:
    """Effect: the host is as before the incident. Verified: tp answers through the router, and the fallback is stopped
    or a standby."""
    host = context.host
    tp, fallback = host.tp, host.fallback
    await ready_router(host.router)
    server = await host.router.server(tp.config.server)
    if server.admin_state != "ready" or server.weight == 0:
        raise StepFailed(
            f"{tp.label} does not have the traffic (weight {server.weight}, {server.admin_state})",
            next_action=f"an operator changed the router meanwhile: check its weights, then /triage {host.name}",
        )
    await lift_limits(host)
    await fallback.unit.set_scope({})
    await host.router.set_weight(fallback.config.server, 0)
    await host.router.undrain(fallback.config.server)
    try:
        proof = await prove_route(host, tp)
    except (EngineError, RouterError) as error:
        raise StepFailed(
            f"no token came through the router from tp: {error}", next_action=f"/triage {host.name}"
        ) from error
    states = {name: await tier.unit.state() for name, tier in host.tiers.items()}
    asleep = await is_asleep(fallback, states["fallback"])
    may_run = asleep or (fallback.config.standby == "resident" and states["fallback"].active)
    if (states["fallback"].active and not may_run) or states["tp"].frozen:
        left = "the fallback still runs" if states["fallback"].active and not may_run else "tp is frozen"
        raise StepFailed(f"tp serves, but {left}", next_action="check the unit's log")
    host.settle_rung()
    rests = "asleep" if asleep else "resident" if may_run else "stopped"
    result = StepResult(
        summary=f"the {tp.label} tier serves ({serves_word(host)}): weight {tp.config.weight}, "
        f"a token through the router in {proof.ttft_ms:.0f} ms; the fallback is {rests}, its limits are lifted",
        data={"state": serves_word(host), "proof": proof.model_dump(mode="json")},
    )
    return await with_clients(context, result)
