"""Walk a plan: a pure decision of what comes next, and a small walker for a shell without Slack and a database.

`next_move` replays the outcomes so far and returns the next step or the end. The bot's durable engine and `walk` below both
ask it, so a plan means the same in both.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gpu_actions.action import Signal, StepContext, StepFailed, StepResult, no_signals, step_function
from gpu_actions.models import Artifact, Finding, Frozen, JsonObject, Verdict
from gpu_actions.plan import Plan, Step
from gpu_actions.serving.interfaces import EngineError, RouterError, UnitError

if TYPE_CHECKING:
    from gpu_actions.host import Host

logger = logging.getLogger(__name__)

EndStatus = Literal["succeeded", "failed", "cancelled"]

# -- what comes next (pure) ------------------------------------------------------------------------------------------


class Outcome(Frozen):
    """How one attempt of one step ended. `cancelled` means that a person stopped the run during the step."""

    step_id: str
    attempt: int = Field(default=1, ge=1)
    status: Literal["done", "warning", "failed", "cancelled"]
    summary: str = ""
    next_action: str = ""
    data: JsonObject = Field(default_factory=dict)


class RunStep(Frozen):
    """Run this step now. The attempt's alternative is already merged into `step.args`; attempts count from 1."""

    step: Step
    attempt: int
    compensating: bool = False


class Ended(Frozen):
    """The run has ended. `warnings` names the steps that a person should check, compensation included."""

    status: EndStatus
    failed_step: str | None = None
    warnings: tuple[str, ...] = ()


Move = RunStep | Ended


def with_alternative(plan: Plan, step: Step, attempt: int) -> Step:
    """Return the step with its group's n-th alternative merged over its arguments."""
    alternatives = plan.alternatives.get(step.group or "", ())
    if not alternatives:
        return step
    return step.model_copy(update={"args": {**step.args, **alternatives[attempt - 1]}})


def next_move(plan: Plan, outcomes: Sequence[Outcome], *, cancelled: bool = False) -> Move:
    """Return what comes after these outcomes, which are in the order in which they happened.

    A failed step with `on_failure="continue"` counts as a warning. Any other failure starts its group again with the next
    alternative. With none left, the whole compensation is walked, whatever its own steps return, and the run is `failed`.
    `cancelled` (or a cancelled outcome) also leads to the compensation, unless every step is done already or the
    compensation of a failure has begun. Raises ValueError for outcomes that this plan cannot have had.
    """
    place = 0  # index in plan.steps; len(plan.steps) = all done
    attempt = 1
    ending: Ended | None = None  # set once the main steps are over without success
    cleaned = 0  # compensation steps done
    warnings: list[str] = []
    compensation = {step.id for step in plan.compensation}
    for outcome in outcomes:
        if ending is None and outcome.step_id in compensation:
            # The stop came between two steps, so no step has a cancelled outcome.
            ending = Ended(status="cancelled")
        if ending is not None:
            _check_belongs(plan.compensation, cleaned, 1, outcome)
            cleaned += 1
            if outcome.status != "done":
                warnings.append(outcome.step_id)
            continue
        _check_belongs(plan.steps, place, attempt, outcome)
        step = plan.steps[place]
        if outcome.status == "cancelled":
            ending = Ended(status="cancelled")
        elif outcome.status == "failed" and step.on_failure == "stop":
            if attempt < len(plan.alternatives.get(step.group or "", ())):
                place, attempt = _first_of_group(plan, step), attempt + 1
            else:
                ending = Ended(status="failed", failed_step=step.id)
        else:
            if outcome.status != "done":
                warnings.append(step.id)
            place += 1
            if place < len(plan.steps) and plan.steps[place].group != step.group:
                attempt = 1
    if ending is None and place == len(plan.steps):
        return Ended(status="succeeded", warnings=tuple(warnings))
    if ending is None and cancelled:
        ending = Ended(status="cancelled")
    if ending is None:
        return RunStep(step=with_alternative(plan, plan.steps[place], attempt), attempt=attempt)
    if cleaned < len(plan.compensation):
        return RunStep(step=plan.compensation[cleaned], attempt=1, compensating=True)
    return ending.model_copy(update={"warnings": tuple(warnings)})


def _first_of_group(plan: Plan, step: Step) -> int:
    return next(index for index, other in enumerate(plan.steps) if other.group == step.group)


def _check_belongs(steps: Sequence[Step], place: int, attempt: int, outcome: Outcome) -> None:
    expected = (steps[place].id, attempt) if place < len(steps) else None
    if expected != (outcome.step_id, outcome.attempt):
        wanted = f"{expected[0]!r} attempt {expected[1]}" if expected else "the end"
        raise ValueError(
            f"the outcome {outcome.step_id!r} attempt {outcome.attempt} does not belong to this plan, which expected "
            f"{wanted}: the run was recorded with another plan"
        )


def outputs_of(outcomes: Sequence[Outcome]) -> dict[str, JsonObject]:
    """Return the data of finished steps by step id, from the latest attempt of each."""
    return {outcome.step_id: outcome.data for outcome in outcomes if outcome.status in ("done", "warning")}


# -- running one step ------------------------------------------------------------------------------------------------


class StepEnd(Frozen):
    """An outcome with everything that is shown to people."""

    outcome: Outcome
    findings: tuple[Finding, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    verdict: Verdict | None = None
    seconds: float = 0.0


async def run_step(move: RunStep, context: StepContext) -> StepEnd:
    """Run a step's function under its deadline and return how it ended. Raises nothing but CancelledError."""
    started = time.monotonic()
    title, timeout_s = move.step.title, move.step.timeout_s
    result: StepResult | StepFailed
    try:
        context = _of_step_up(context)
        async with asyncio.timeout(timeout_s):
            result = await step_function(move.step.verb)(context)
    except StepFailed as failure:
        result = failure
    except TimeoutError:
        result = StepFailed(
            f"{title}: not finished within {timeout_s:g} s, so it was aborted",
            next_action="find what it waited for in the host's logs; the next steps probe the real state",
        )
    except (UnitError, RouterError, EngineError, OSError) as error:
        result = StepFailed(f"{title}: {error}")
    except Exception as error:
        logger.exception("step %s (%s) raised an unexpected exception", move.step.id, move.step.verb)
        result = StepFailed(
            f"{title}: failed with {type(error).__name__}: {error}",
            next_action="this is a defect of gpu-oncall: its log has the traceback",
        )
    return _step_end(move, result, time.monotonic() - started)


def _of_step_up(context: StepContext) -> StepContext:
    """Return the context with the host as a step up sees it, if the step belongs to one."""
    rungs = context.args.get("steps_up")
    if rungs is None:
        return context
    try:
        return replace(context, host=context.host.stepping_up(rungs["from"], rungs["to"]))
    except KeyError as rung:
        raise StepFailed(
            f"the ladder has no rung {rung} any more",
            next_action="the settings have changed since the plan: plan the step up again",
        ) from None


def _step_end(move: RunStep, result: StepResult | StepFailed, seconds: float) -> StepEnd:
    status: Literal["done", "warning", "failed"]
    if isinstance(result, StepFailed):
        status, next_action, verdict = "failed", result.next_action, None
    else:
        status, next_action, verdict = "warning" if result.warning else "done", "", result.verdict
    return StepEnd(
        outcome=Outcome(
            step_id=move.step.id,
            attempt=move.attempt,
            status=status,
            summary=result.summary,
            next_action=next_action,
            data=result.data,
        ),
        findings=result.findings,
        artifacts=result.artifacts,
        verdict=verdict,
        seconds=seconds,
    )


# -- walking a whole plan without a database -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WalkReport:
    """Callbacks for a step that began, reported progress, or ended. By default they do nothing."""

    began: Callable[[RunStep], None] = lambda move: None
    progress: Callable[[RunStep, str, float | None], None] = lambda move, text, fraction: None
    ended: Callable[[RunStep, StepEnd], None] = lambda move, end: None


class WalkEnd(Frozen):
    """How a walk ended, with every attempt's end in order."""

    ended: Ended
    steps: tuple[StepEnd, ...]

    @property
    def last(self) -> StepEnd | None:
        """Return the end of the last step. After a failure this is the clean-up, which says what state is left."""
        return self.steps[-1] if self.steps else None


async def walk(
    plan: Plan,
    host: "Host",
    *,
    run_id: str,
    workdir: Path,
    report: WalkReport | None = None,
    stop: asyncio.Event | None = None,
    signals: Callable[[], Awaitable[Sequence[Signal]]] = no_signals,
) -> WalkEnd:
    """Walk a plan on this host to its end. Setting `stop` cancels the running step and compensates.

    The plan's gate is not checked here: the caller has the right to run it (break-glass in a shell, or a test).
    """
    report = report or WalkReport()
    stop = stop or asyncio.Event()
    workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
    ends: list[StepEnd] = []
    while True:
        outcomes = [end.outcome for end in ends]
        move = next_move(plan, outcomes, cancelled=stop.is_set())
        if isinstance(move, Ended):
            return WalkEnd(ended=move, steps=tuple(ends))
        context = StepContext(
            run_id=run_id,
            host=host,
            step=move.step,
            outputs=outputs_of(outcomes),
            workdir=workdir,
            report=functools.partial(report.progress, move),
            signals=signals,
        )
        report.began(move)
        end = await _run_until_stopped(move, context, stop)
        ends.append(end)
        report.ended(move, end)


async def _run_until_stopped(move: RunStep, context: StepContext, stop: asyncio.Event) -> StepEnd:
    """Run a step until it ends or the run is stopped. A compensation step always runs to its end."""
    running = asyncio.create_task(run_step(move, context))
    if move.compensating:
        return await running
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            return await running  # it finished in the same moment
    finally:
        stopped.cancel()
        running.cancel()
    return StepEnd(
        outcome=Outcome(
            step_id=move.step.id, attempt=move.attempt, status="cancelled", summary="stopped by a person"
        )
    )
