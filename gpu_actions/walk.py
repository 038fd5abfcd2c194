"""How a plan is walked: the pure decision what comes next, and a small walker for a shell without Slack and database.

`next_move` replays the outcomes so far and gives the next step or the end; the durable engine of the bot and `walk` below
both ask it, so a plan means the same in both.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gpu_actions.action import Signal, StepContext, StepFailed, StepResult, step_function
from gpu_actions.models import Artifact, Finding, Frozen, JsonObject, Verdict
from gpu_actions.plan import Plan, Step
from gpu_actions.serving.interfaces import EngineError, RouterError, UnitError

if TYPE_CHECKING:
    from gpu_actions.host import Host

logger = logging.getLogger(__name__)

EndStatus = Literal["succeeded", "failed", "cancelled"]

# -- the pure part -----------------------------------------------------------------------------------------------


class Outcome(Frozen):
    """How one attempt of one step ended. `cancelled` is a step that was cut by a person's stop."""

    step_id: str
    attempt: int = Field(default=1, ge=1)
    status: Literal["done", "warning", "failed", "cancelled"]
    summary: str = ""
    next_action: str = ""
    data: JsonObject = Field(default_factory=dict)


class RunStep(Frozen):
    """Run this step now. `step.args` has the attempt's alternative merged over; attempts count from 1."""

    step: Step
    attempt: int
    compensating: bool = False


class Ended(Frozen):
    """The run has ended. `warnings` names the steps that a person should look at, compensation included."""

    status: EndStatus
    failed_step: str | None = None
    warnings: tuple[str, ...] = ()


Move = RunStep | Ended


def with_alternative(plan: Plan, step: Step, attempt: int) -> Step:
    """The step as its n-th attempt runs it: the n-th alternative of its group merged over its arguments."""
    alternatives = plan.alternatives.get(step.group or "", ())
    if not alternatives:
        return step
    return step.model_copy(update={"args": {**step.args, **alternatives[attempt - 1]}})


def next_move(plan: Plan, outcomes: Sequence[Outcome], *, cancelled: bool = False) -> Move:
    """Say what comes after these outcomes (in the order they happened).

    A failed step with `on_failure="continue"` counts as a warning. Another failure starts its group again with the next
    alternative; with none left the compensation is walked to its end, whatever its own steps give, and the run is
    `failed`. `cancelled` (or a cancelled outcome) leads to the compensation too, unless every step is already done or
    the compensation of a failure is already under way. Raises ValueError for outcomes that this plan cannot have had.
    """
    place = 0  # index in plan.steps; len(plan.steps) = all done
    attempt = 1
    ending: Ended | None = None  # set once the main steps are over without success
    cleaned = 0  # compensation steps done
    warnings: list[str] = []
    compensation = {step.id for step in plan.compensation}
    for outcome in outcomes:
        if ending is None and outcome.step_id in compensation:
            ending = Ended(
                status="cancelled"
            )  # the stop came between two steps: it left no outcome of its own
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
            f"the outcome {outcome.step_id!r} attempt {outcome.attempt} does not belong to this plan: "
            f"{wanted} was to come; the run was recorded with another plan"
        )


def outputs_of(outcomes: Sequence[Outcome]) -> dict[str, JsonObject]:
    """The data of finished steps by step id, the latest attempt's; what later steps get as `outputs`."""
    return {outcome.step_id: outcome.data for outcome in outcomes if outcome.status in ("done", "warning")}


# -- carrying one step out ---------------------------------------------------------------------------------------


class StepEnd(Frozen):
    """An outcome with everything that people get to see of it."""

    outcome: Outcome
    findings: tuple[Finding, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    verdict: Verdict | None = None
    seconds: float = 0.0


async def run_step(move: RunStep, context: StepContext) -> StepEnd:
    """Run a step's function under its deadline and give how it ended; never raises but for cancellation."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(move.step.timeout_s):
            result = await step_function(move.step.verb)(context)
        return _end(move, started, result)
    except StepFailed as failure:
        return _failed(move, started, failure)
    except TimeoutError:
        return _failed(
            move,
            started,
            StepFailed(
                f"{move.step.title}: not finished within {move.step.timeout_s:g} s and was cut",
                next_action="see what it waited for in the host's logs; the next steps probe what is really there",
            ),
        )
    except (UnitError, RouterError, EngineError, OSError) as error:
        return _failed(move, started, StepFailed(f"{move.step.title}: {error}"))
    except Exception as error:
        logger.exception("step %s (%s) broke", move.step.id, move.step.verb)
        return _failed(
            move,
            started,
            StepFailed(
                f"{move.step.title}: broke with {type(error).__name__}: {error}",
                next_action="this is a defect of gpu-oncall: its log has the traceback",
            ),
        )


def _end(move: RunStep, started: float, result: StepResult) -> StepEnd:
    return StepEnd(
        outcome=Outcome(
            step_id=move.step.id,
            attempt=move.attempt,
            status="warning" if result.warning else "done",
            summary=result.summary,
            data=result.data,
        ),
        findings=result.findings,
        artifacts=result.artifacts,
        verdict=result.verdict,
        seconds=time.monotonic() - started,
    )


def _failed(move: RunStep, started: float, failure: StepFailed) -> StepEnd:
    return StepEnd(
        outcome=Outcome(
            step_id=move.step.id,
            attempt=move.attempt,
            status="failed",
            summary=failure.summary,
            next_action=failure.next_action,
            data=failure.data,
        ),
        findings=failure.findings,
        artifacts=failure.artifacts,
        seconds=time.monotonic() - started,
    )


# -- walking a whole plan without a database -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WalkReport:
    """Called as the walk goes on: a step began, says something, or ended. The defaults tell nobody."""

    began: Callable[[RunStep], None] = lambda move: None
    progress: Callable[[RunStep, str, float | None], None] = lambda move, text, fraction: None
    ended: Callable[[RunStep, StepEnd], None] = lambda move, end: None


class WalkEnd(Frozen):
    """How a walk ended, with every attempt's end in order."""

    ended: Ended
    steps: tuple[StepEnd, ...]

    @property
    def last(self) -> StepEnd | None:
        """The end of the last step that ran: after a failure the settling step's, which says what state is left."""
        return self.steps[-1] if self.steps else None


async def _no_signals() -> Sequence[Signal]:
    return ()


async def walk(
    plan: Plan,
    host: "Host",
    *,
    run_id: str,
    workdir: Path,
    report: WalkReport | None = None,
    stop: asyncio.Event | None = None,
    signals: Callable[[], Awaitable[Sequence[Signal]]] = _no_signals,
) -> WalkEnd:
    """Walk a plan on this host to its end. Setting `stop` cuts the running step and compensates.

    The plan's gate is not asked here: whoever calls has the right to run it (break-glass in a shell, or a test).
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
            report=_reporter(report, move),
            signals=signals,
        )
        report.began(move)
        end = await _run_until_stopped(move, context, stop)
        ends.append(end)
        report.ended(move, end)


def _reporter(report: WalkReport, move: RunStep) -> Callable[[str, float | None], None]:
    def tell(text: str, fraction: float | None = None) -> None:
        report.progress(move, text, fraction)

    return tell


async def _run_until_stopped(move: RunStep, context: StepContext, stop: asyncio.Event) -> StepEnd:
    """Run a step; a stop cuts it, unless it belongs to the compensation, which always goes to its end."""
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
