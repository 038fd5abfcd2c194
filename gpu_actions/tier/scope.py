"""The step `fallback.scope`: an explicit environment for the fallback, without leftover NCCL variables.

The runbook's `unset` and `export` last as long as one shell. Here the variables are set for the unit's next start.
"""

import time
from collections.abc import Iterable

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.host import Host
from gpu_actions.tier.standby import DEVICES, is_asleep

NCCL_LEFTOVERS = (
    "NCCL_P2P_DISABLE",
    "NCCL_P2P_LEVEL",
    "NCCL_SHM_DISABLE",
    "NCCL_IB_DISABLE",
    "NCCL_NVLS_ENABLE",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "CUDA_LAUNCH_BLOCKING",
)
"""Variables that people set while they search for a fault. The first two are the runbook's; a forgotten NCCL_P2P_DISABLE=1
is itself a cause of a PCIe-only failover."""

FAILED_GRACE_S = 2.0
"""A rung that did not generate has no work worth saving."""


def scope_for(devices: str | None) -> dict[str, str]:
    """Return the variables of a tier that may see these GPUs only (UUIDs, with commas); empty for a tier on the CPU."""
    return {} if devices is None else {DEVICES: devices}


def leftovers_in(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the names that a fallback must not get."""
    return tuple(name for name in NCCL_LEFTOVERS if name in set(names))


async def stop_other_rungs(host: Host, *, keep_resident: bool = True) -> None:
    """Stop the rungs that are not the fallback now and remove their scope. A standby stays, asleep or resident."""
    for key, tier in host.rungs.items():
        if key == host.rung:
            continue
        state = await tier.unit.state()
        if await is_asleep(tier, state) or (keep_resident and tier.config.standby == "resident"):
            continue
        # Also when it is not active: its supervisor may wait to restart it.
        await tier.unit.stop(grace_s=FAILED_GRACE_S)
        if await tier.unit.scope():
            await tier.unit.set_scope({})


@step("fallback.scope")
async def scope(context: StepContext) -> StepResult:
    """Effect: the environment of the tier's next start. Verified by reading it back. No running process of it changes.

    With a ladder, the attempt's rung becomes the fallback, and what an earlier attempt left of another rung is stopped: it may
    hold the same GPUs.
    """
    host = context.host
    if (rung := context.args.get("rung")) is not None:
        if rung not in host.rungs:
            raise StepFailed(
                f"the ladder has no rung {rung!r} any more",
                next_action="the settings have changed since the plan: start the fallback again",
            )
        host.keep_rung(rung)
        await stop_other_rungs(host, keep_resident=context.args.get("attempt", 1) == 1)
    tier = host.fallback
    variables = {str(name): str(value) for name, value in context.args["variables"].items()}
    unset = [str(name) for name in context.args["unset"]]
    state = await tier.unit.state()
    if state.frozen:
        if not state.frozen_reason.startswith(str(context.args["own_freeze"])):
            raise StepFailed(
                f"the fallback tier is frozen by another operator: {state.frozen_reason}",
                next_action="ask them, unfreeze it, and start the fallback again",
            )
        await tier.unit.unfreeze()
    await tier.unit.set_scope(variables, unset=unset)
    in_force = await tier.unit.scope()
    if any(in_force.get(name) != value for name, value in variables.items()):
        raise StepFailed(
            f"the scope was set to {variables}, but the unit reports {in_force}",
            next_action="check in the unit's configuration whether its environment can be set",
        )
    where = variables.get(DEVICES) or "the CPU"
    where += f" as rung {host.rung}" if host.has_ladder else ""
    found = [str(name) for name in context.args["leftovers"]]
    removed = f"removed leftovers: {', '.join(found)}" if found else "no NCCL leftovers found"
    passed_over = [str(one) for one in context.args.get("passed_over", ())]
    return StepResult(
        summary="; ".join([f"serves from {where}", *passed_over, removed]),
        data={
            "variables": variables,
            "unset": unset,
            "leftovers": found,
            "set_at_s": time.time(),
            **({"rung": host.rung, "passed_over": passed_over} if host.has_ladder else {}),
        },
    )
