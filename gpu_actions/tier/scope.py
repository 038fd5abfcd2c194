"""The step `fallback.scope`: an explicit environment for the single-GPU tier, without leftover NCCL variables.

The runbook's `unset` and `export` last as long as one shell. Here the variables are set for the unit's next start.
"""

import time
from collections.abc import Iterable

from gpu_actions.action import StepContext, StepFailed, StepResult, step

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

DEVICES = "CUDA_VISIBLE_DEVICES"


def scope_for(gpu_uuid: str | None) -> dict[str, str]:
    """Return the variables of a tier that may see one GPU only; empty for a tier on the CPU."""
    return {} if gpu_uuid is None else {DEVICES: gpu_uuid}


def leftovers_in(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the names that a single-GPU tier must not get."""
    return tuple(name for name in NCCL_LEFTOVERS if name in set(names))


@step("fallback.scope")
async def scope(context: StepContext) -> StepResult:
    """Effect: the environment of the tier's next start. Verified by reading it back. No running process changes."""
    tier = context.host.fallback
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
    found = [str(name) for name in context.args["leftovers"]]
    removed = f"removed leftovers: {', '.join(found)}" if found else "no NCCL leftovers found"
    return StepResult(
        summary=f"serves from {where}; {removed}",
        data={"variables": variables, "unset": unset, "leftovers": found, "set_at_s": time.time()},
    )
