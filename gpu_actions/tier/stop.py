"""The step `tier.stop`: freeze a tier so that nothing starts it again, stop all of it, and verify that its GPU memory is free.

An exit code proves nothing here. Success means that no process is left and none holds GPU memory.
"""

import asyncio
import time
from collections.abc import Iterable

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.host import Tier
from gpu_actions.tier import run_notes
from gpu_actions.tier.client_account import with_clients
from gpu_actions.tier.gpu_memory import GpuMemories, read_gpus
from gpu_actions.tier.preflight import OWN_PREFIX

RELEASE_TIMEOUT_S = 20.0
"""The driver frees the memory of a killed process within a second or two; a stuck process keeps it for good."""


async def unfreeze_own(tier: Tier) -> None:
    """Lift our own freeze of a tier; another operator's stays."""
    state = await tier.unit.state()
    if state.frozen and state.frozen_reason.startswith(OWN_PREFIX):
        await tier.unit.unfreeze()


def holders(memories: GpuMemories, pids: Iterable[int]) -> dict[str, list[int]]:
    """Return which of these processes still hold memory, by the UUID of the GPU."""
    wanted = set(pids)
    held = {gpu.uuid: sorted(wanted & set(gpu.pids or ())) for gpu in memories.gpus}
    return {uuid: found for uuid, found in held.items() if found}


@step("tier.stop")
async def stop(context: StepContext) -> StepResult:
    """Effect: the tier is frozen (where the plan says so) and its processes are ended. Verified: none is left, and none holds
    GPU memory. A second execution finds nothing to end."""
    tier = context.host.tiers[context.args["tier"]]
    reason = context.args["freeze_reason"]
    if reason:
        await tier.unit.freeze(f"{reason} {context.run_id}")
    grace_s = float(context.args["grace_s"])
    if any(outputs.get("stalled") for outputs in context.outputs.values()):
        grace_s = min(grace_s, float(context.args["hung_grace_s"]))
    # Read before the stop: afterwards nothing says which processes were the tier's.
    note = f"stopped_{tier.name}"
    before = set((run_notes.recall(context.workdir, note) or {"pids": []})["pids"])
    before |= set((await tier.unit.state()).pids)
    run_notes.keep(context.workdir, note, {"pids": sorted(before)})
    context.report(f"ending {len(before)} processes, {grace_s:g} s grace", None)
    report = await tier.unit.stop(grace_s=grace_s)
    state = await tier.unit.state()
    if state.active or state.pids:
        raise StepFailed(
            f"{tier.name} still runs after its stop: processes {list(state.pids)}",
            next_action="check them with ps: state D means stuck in the driver, which only a reboot ends",
        )
    if reason and not state.frozen:
        raise StepFailed(
            f"{tier.name} is stopped but not frozen: something could start it again",
            next_action="check its unit's configuration for a freeze command",
        )
    before |= set(report.pids)
    memory, is_released = await _memory_released(context, tier, before)
    how = "killed" if report.killed else "ended"
    parts = [
        f"{tier.name}: {len(before)} processes {how} in {report.seconds:.1f} s"
        if before
        else f"{tier.name} was not running"
    ]
    parts += ["frozen"] if reason else []
    result = StepResult(
        summary="; ".join([*parts, memory]),
        data={
            "tier": tier.name,
            "pids": sorted(before),
            "killed": report.killed,
            "frozen": state.frozen,
            "memory": memory,
            "seconds": round(report.seconds, 3),
        },
        warning=not is_released,
    )
    return await with_clients(context, result) if context.args.get("with_clients") else result


async def _memory_released(context: StepContext, tier: Tier, pids: set[int]) -> tuple[str, bool]:
    """Wait until none of the processes holds GPU memory. Return what was seen, and True if all of it is released."""
    if tier.config.gpus == 0:
        return "GPU memory: does not apply, this tier runs on the CPU", True
    started = time.monotonic()
    while True:
        memories = await read_gpus()
        if not memories.gpus:
            return f"GPU memory not checked: {memories.error or 'no GPU found'}", False
        unread = [gpu.uuid for gpu in memories.gpus if gpu.pids is None]
        held = holders(memories, pids)
        if not held and unread:
            return (
                f"GPU memory not checked on {', '.join(unread)}: the driver does not list its processes",
                False,
            )
        if not held:
            return "GPU memory released", True
        if time.monotonic() - started >= RELEASE_TIMEOUT_S:
            named = "; ".join(f"{uuid}: {found}" for uuid, found in held.items())
            return (
                f"GPU memory is STILL held after {RELEASE_TIMEOUT_S:g} s ({named}); that GPU needs a reset",
                False,
            )
        context.report("waiting for the GPU memory to be released", None)
        await asyncio.sleep(0.5)
