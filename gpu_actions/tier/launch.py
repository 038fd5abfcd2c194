"""The step `tier.start`: start a tier's unit, beside whatever runs already, and check that its process stays alive.

It does not wait for tokens. The warm step does, so that evidence can be saved while an engine loads its weights.
"""

import asyncio
import re
import time
from contextlib import suppress

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.host import Tier
from gpu_actions.serving.engine_log import read_engine_log
from gpu_actions.serving.interfaces import EngineError, Unit, UnitError, UnitState
from gpu_actions.system.clock import Moment
from gpu_actions.system.listening import listener_of
from gpu_actions.system.proc import read_environment
from gpu_actions.system.redact import redacted_head
from gpu_actions.system.urls import port_of
from gpu_actions.tier import run_notes
from gpu_actions.tier.condition import generates
from gpu_actions.tier.standby import forget_note, is_asleep

ALIVE_FOR_S = 0.3
"""A wrong path or a missing library ends a program within its first moments. The warm step notices later deaths."""

KEEP_PROBE_S = 5.0
LOG_BYTES = 16_384
MARK_BYTES = 1024
OUT_OF_MEMORY = re.compile(r"out ?of ?memory", re.IGNORECASE)
AN_ERROR = re.compile(r"\b\w*(Error|Exception)\b|\berror:|\bfatal\b|No such file|Permission denied")
"""What a line says that explains an end. Several lines may match; see `explaining_line`."""


async def explain_end(unit: Unit) -> str:
    """Return what the end of a unit's log says about why its program ended."""
    return explaining_line((await read_engine_log(unit, LOG_BYTES))[0])


def explaining_line(log: str) -> str:
    """Return the line of a log that explains why its program ended, at most 300 characters.

    An engine that runs out of memory says so and then reports more errors that follow from it, so that line comes first, then
    the last line that names an error, then the last line.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for pattern in (OUT_OF_MEMORY, AN_ERROR):
        if explaining := [line for line in lines if pattern.search(line)]:
            return redacted_head(explaining[-1], 300)
    return redacted_head(lines[-1], 300) if lines else "its log is empty"


def environment_of(pid: int) -> dict[str, str] | None:
    """Return the environment that a process was started with, or None where it may not be read."""
    try:
        return read_environment(pid)
    except OSError:
        return None


def woken_note(tier: Tier) -> str:
    """Return the name of the run's note of the moment at which a standby was told to wake."""
    return f"woken_{tier.name}"


def log_note(tier: Tier) -> str:
    """Return the name of the run's note of how a tier's log ended before its start."""
    return f"log_before_{tier.name}"


async def _end_of_log(tier: Tier) -> str:
    with suppress(UnitError, OSError):
        return (await tier.unit.log_tail(MARK_BYTES))[-MARK_BYTES // 2 :]
    return ""


@step("tier.start")
async def launch(context: StepContext) -> StepResult:
    """Effect: the tier's process runs. Verified: it is alive, with this run's scope. A process that this run started already,
    or one that generates and was started with the same scope, is kept. With `wake` a standby is woken instead; if it does not
    wake, the step fails, and the next attempt starts a fresh process."""
    tier = context.host.tiers[context.args["tier"]]
    run_notes.began_at_s(context.workdir)
    state = await tier.unit.state()
    note = f"started_{tier.name}_{context.args.get('attempt', 1)}"
    if context.args.get("wake"):
        return _result(context, tier, state, await _wake(context, tier, state))
    if state.active:
        kept = await _why_kept(context, tier, state, note)
        if kept:
            return _result(context, tier, state, kept)
        context.report("ending an earlier process of this tier", None)
    # Also when it is not active: a supervisor that waits to restart a dead process would count this start as a restart.
    _, log_end = await asyncio.gather(tier.unit.stop(), _end_of_log(tier))
    if (owner := listener_of(port_of(tier.engine.url))) is not None:
        raise StepFailed(
            f"port {port_of(tier.engine.url)} of the {tier.name} tier is taken by {owner}",
            next_action=f"end it, or set another port for the {tier.name} tier in the settings",
        )
    # Written before the start: a run that is interrupted right after it must recognize the process as its own.
    run_notes.keep(context.workdir, note, Moment.now().model_dump())
    run_notes.keep(context.workdir, log_note(tier), {"end": log_end})
    try:
        await tier.unit.start()
    except UnitError as error:
        raise StepFailed(
            f"{tier.label} did not start: {error}",
            next_action="check its log, and its command in /fallback plan",
        ) from error
    first = await tier.unit.state()
    await asyncio.sleep(ALIVE_FOR_S)
    state = await tier.unit.state()
    if not state.active or state.restarts != first.restarts:
        raise StepFailed(
            f"{tier.label} ended right after its start: {await explain_end(tier.unit)}",
            next_action="read the end of its log in the bundle",
        )
    return _result(context, tier, state, "started")


async def _wake(context: StepContext, tier: Tier, state: UnitState) -> str:
    """Wake the standby. Return how; raises StepFailed if its process is gone, has another scope, or does not wake in time."""
    if not state.active:
        raise StepFailed(f"the standby of {tier.name} is gone: {await explain_end(tier.unit)}")
    scope = await tier.unit.scope()
    environment = None if state.main_pid is None else environment_of(state.main_pid)
    if environment is not None and not scope.items() <= environment.items():
        raise StepFailed(f"the standby of {tier.name} was started with another scope than {scope}")
    note = woken_note(tier)
    if not await is_asleep(tier, state) and run_notes.recall(context.workdir, note) is not None:
        return "woken by this run already"
    run_notes.keep(context.workdir, note, Moment.now().model_dump())
    began = time.monotonic()
    try:
        await tier.engine.wake(timeout_s=float(context.args["wake_timeout_s"]))
    except EngineError as error:
        await asyncio.sleep(ALIVE_FOR_S)  # a process that dies of it is reported as gone a moment later
        now = await tier.unit.state()
        lives = now.active and now.main_pid == state.main_pid
        ended = "" if lives else f"; its log: {await explain_end(tier.unit)}"
        raise StepFailed(
            f"the standby of {tier.name} did not wake: {error}{ended}", next_action="read the end of its log"
        ) from error
    forget_note(tier)
    return f"standby woken in {time.monotonic() - began:.2f} s"


async def _why_kept(context: StepContext, tier: Tier, state: UnitState, note: str) -> str:
    """Return why the running process may stay, or an empty string."""
    started = run_notes.recall(context.workdir, note)
    if (
        started is not None
        and state.main_pid
        and Moment.model_validate(started).precedes_process(state.main_pid)
    ):
        return "already started by this run"
    if context.args.get("attempt", 1) > 1 or await is_asleep(tier, state):
        return ""
    environment = None if state.main_pid is None else environment_of(state.main_pid)
    scope = await tier.unit.scope()
    has_scope = environment is not None and scope.items() <= environment.items()
    if has_scope and await generates(tier, timeout_s=KEEP_PROBE_S):
        return "was running already, with the right scope, and generates"
    return ""


def _result(context: StepContext, tier: Tier, state: UnitState, how: str) -> StepResult:
    return StepResult(
        summary=f"{tier.label}: {how}, process {state.main_pid}",
        data={
            "tier": tier.name,
            "main_pid": state.main_pid,
            "started_at_s": state.started_at_s,
            "restarts": state.restarts,
            "began_at_s": run_notes.began_at_s(context.workdir),
        },
    )
