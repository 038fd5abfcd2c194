"""The step `tier.start`: start a tier's unit, beside whatever runs already, and see that its process lives.

It does not wait for tokens: that is the warm step's, so that evidence can be saved while an engine loads its weights.
"""

import asyncio
from pathlib import Path

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.host import Tier
from gpu_actions.serving.interfaces import UnitError, UnitState
from gpu_actions.system.clock import Moment
from gpu_actions.system.listening import listener_of
from gpu_actions.system.urls import port_of
from gpu_actions.tier import run_notes
from gpu_actions.tier.condition import generates

ALIVE_FOR_S = 0.3
"""A wrong path or a missing library ends a program within its first moments; later deaths are seen by the warm step."""

KEEP_PROBE_S = 5.0


def environment_of(pid: int) -> dict[str, str] | None:
    """The environment that a process was started with; None where it may not be read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    pairs = (part.partition(b"=") for part in raw.split(b"\0") if part)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}


def has_scope(state: UnitState, variables: dict[str, str]) -> bool:
    """Say whether the running process was started with these variables; False when it cannot be told."""
    environment = None if state.main_pid is None else environment_of(state.main_pid)
    return environment is not None and all(environment.get(n) == v for n, v in variables.items())


@step("tier.start")
async def launch(context: StepContext) -> StepResult:
    """Effect: the tier's process runs. Verified: it lives, with the scope of this run. A process that this run started
    already, or a warm one with the same scope that generates, is kept."""
    tier = context.host.tiers[context.args["tier"]]
    run_notes.began_at_s(context.workdir)
    state = await tier.unit.state()
    note = f"started_{tier.name}_{context.args.get('attempt', 1)}"
    if state.active:
        kept = await _why_kept(context, tier, state, note)
        if kept:
            return _result(context, tier, state, kept)
        context.report("ending an earlier process of this tier", None)
    # Also when it is not active: a supervisor that waits to restart a dead process would count ours as a restart.
    await tier.unit.stop()
    if (owner := listener_of(port_of(tier.engine.url))) is not None:
        raise StepFailed(
            f"port {port_of(tier.engine.url)} of the {tier.name} tier is taken by {owner}",
            next_action=f"end it, or give the {tier.name} tier another port in the settings",
        )
    # Written before the start: a run cut right after it must know the process as its own.
    run_notes.keep(context.workdir, note, Moment.now().model_dump())
    try:
        await tier.unit.start()
    except UnitError as error:
        raise StepFailed(
            f"{tier.name} did not start: {error}", next_action="see its log and its command in /fallback plan"
        ) from error
    first = await tier.unit.state()
    await asyncio.sleep(ALIVE_FOR_S)
    state = await tier.unit.state()
    if not state.active or state.restarts != first.restarts:
        tail = (await tier.unit.log_tail(2000)).strip().splitlines()
        raise StepFailed(
            f"{tier.name} ended right after its start: {tail[-1][:300] if tail else 'its log is empty'}",
            next_action="see the tail of its log in the bundle",
        )
    return _result(context, tier, state, "started")


async def _why_kept(context: StepContext, tier: Tier, state: UnitState, note: str) -> str:
    """Why the running process may stay, or nothing: it is this run's own, or warm and scoped as wanted."""
    mine = run_notes.recall(context.workdir, note)
    if mine is not None and state.main_pid and Moment.model_validate(mine).precedes_process(state.main_pid):
        return "already started by this run"
    if context.args.get("attempt", 1) > 1:
        return ""
    variables = {str(name): str(value) for name, value in (await tier.unit.scope()).items()}
    if has_scope(state, variables) and await generates(tier, timeout_s=KEEP_PROBE_S):
        return "was running already, with the right scope, and generates"
    return ""


def _result(context: StepContext, tier: Tier, state: UnitState, how: str) -> StepResult:
    return StepResult(
        summary=f"{tier.name}: {how}, process {state.main_pid}",
        data={
            "tier": tier.name,
            "main_pid": state.main_pid,
            "started_at_s": state.started_at_s,
            "restarts": state.restarts,
            "began_at_s": run_notes.began_at_s(context.workdir),
        },
    )
