"""The interface of all actions: an action makes a plan, and registered step functions carry it out on the host.

A step function probes (is it done already?), acts and verifies, because a step that was interrupted runs again. It knows
nothing of Slack or the run engine: it receives a `StepContext` and returns a `StepResult` or raises `StepFailed`.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gpu_actions.models import Artifact, Finding, Frozen, JsonObject, Verdict
from gpu_actions.plan import Plan, Step

if TYPE_CHECKING:
    from gpu_actions.host import Host

Signal = Literal["hold", "next", "abort", "stop"]
"""Signals that a person can send to a running step: pause the traffic shift (`hold`), continue now, move the traffic back, or
end early and keep the results so far."""


class StepResult(Frozen):
    """The result of a finished step: a line for people, data for later steps, findings and files."""

    summary: str
    data: JsonObject = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    verdict: Verdict | None = None
    warning: bool = Field(default=False, description="finished, but a person should read the summary")


class StepFailed(Exception):
    """Raised when a step could not reach its verified end.

    `summary` says what happened and what it means, `next_action` what to do next. Results gathered so far are attached.
    """

    def __init__(
        self,
        summary: str,
        *,
        next_action: str = "",
        data: JsonObject | None = None,
        artifacts: Sequence[Artifact] = (),
        findings: Sequence[Finding] = (),
    ) -> None:
        super().__init__(summary)
        self.summary = summary
        self.next_action = next_action
        self.data = data or {}
        self.artifacts = tuple(artifacts)
        self.findings = tuple(findings)


class PlanRefused(Exception):
    """Raised when the plan cannot work. Each problem is a full sentence that names the cause and the fix."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


async def no_signals() -> Sequence[Signal]:
    """Return no signals, for runs that nobody can signal."""
    return ()


def _no_report(text: str, fraction: float | None = None) -> None:
    """Discard a progress report."""


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Everything that a step function receives.

    `outputs` is the data of the finished steps by step id. `workdir` is the run's own folder on the host and exists.
    `report(text, fraction)` shows progress. `signals()` returns all signals that people sent to this run, oldest first.
    """

    run_id: str
    host: "Host"
    step: Step
    outputs: Mapping[str, JsonObject]
    workdir: Path
    report: Callable[[str, float | None], None] = field(default=_no_report)
    signals: Callable[[], Awaitable[Sequence[Signal]]] = field(default=no_signals)

    @property
    def args(self) -> JsonObject:
        """Return the step's arguments, with its alternative merged in."""
        return self.step.args


StepFunction = Callable[[StepContext], Awaitable[StepResult]]

_STEPS: dict[str, StepFunction] = {}


def step(verb: str) -> Callable[[StepFunction], StepFunction]:
    """Register a step function under its verb. Raises ValueError when another function has that verb."""

    def register(function: StepFunction) -> StepFunction:
        known = _STEPS.get(verb)
        if known is not None and known.__qualname__ != function.__qualname__:
            raise ValueError(
                f"step verb {verb!r} is already taken by {known.__module__}.{known.__qualname__}"
            )
        _STEPS[verb] = function
        return function

    return register


def step_function(verb: str) -> StepFunction:
    """Return the function of a verb. Raises StepFailed for an unknown verb (the plan of an older or newer version)."""
    try:
        return _STEPS[verb]
    except KeyError:
        raise StepFailed(
            f"this version does not know the step {verb!r}",
            next_action="another version of gpu-oncall made the plan: make a new plan and start it",
        ) from None


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Input of an action's `plan`. `verdict` is that of the last triage; `verdict_age_s` counts from its start."""

    host: "Host"
    arguments: Any
    requester: str = ""
    verdict: Verdict | None = None
    verdict_age_s: float = math.inf
    baselines_dir: Path | None = None
    now_iso: str = ""


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """Everything that the rest of the program knows about one action.

    `arguments` is a frozen pydantic model: its field names are the `key=value` options of the Slack command and its
    descriptions are the help. `plan` may probe the host, and raises PlanRefused when the plan cannot work.
    """

    name: str
    prefix: str
    """Prefix of its run ids (`fb-7k2m`)."""
    summary: str
    """One line for help and for Slack's list of commands."""
    arguments: type[Frozen]
    plan: Callable[[PlanRequest], Awaitable[Plan]]
    changes_host: bool
    plan_start: Callable[[PlanRequest], Awaitable[Plan]] | None = None
    """Plans a run that will start, where that differs from a plan that is only shown: it may prepare the host first."""
    give_back: "Callable[[Host], Awaitable[None]] | None" = None
    """Undoes what `plan_start` did, if the run ends before its first step. Never raises."""
    disturbs_service: bool = False
    """It loads or pauses the service without changing the host; starting it needs the same role as a change."""
    title: str = ""
    """Its name in a sentence (`Load test`); empty: the name, capitalized."""
    usages: tuple[tuple[str, str], ...] = ()
    """Help of its slash command: what to type behind its name, and what that does."""
    usage_hint: str = "plan|start|status|stop [host]"
    """Hint that Slack shows while a user types its slash command."""
    subcommands: tuple[str, ...] = ("plan", "start", "status", "stop")
    flags: tuple[str, ...] = ()
    """Arguments of type bool that may be given as a bare word (`deep`)."""
    shell_verbs: tuple[str, ...] = ()
    """Words of `gpu-oncall NAME WORD` beside plan and start; each is a module of the action's folder with `main(argv)`."""
    needs_calm: bool = False
    """Refused while an incident of the host is open or another run loads or changes it, and stopped when one begins."""
    starts_by_name: bool = False
    """The bare command starts it (`/triage HOST`); the others need the word `start`."""
    diagnoses: bool = False
    """It ends with a verdict on the host, which is shown as a card and may open an incident."""
    keeps_partial_results: bool = False
    """A stop ends it early and keeps what it measured; without this, a stop cancels it and cleans up."""
    needs_approval: bool = False
    """Approvals are required unless the settings say otherwise."""
    overrides: frozenset[str] = frozenset()
    """Arguments that overrule a check; giving one needs the role `override`."""
    pauses_monitors: frozenset[str] = frozenset()
    """Monitors whose readings it would spoil; they pause while it runs."""

    @property
    def label(self) -> str:
        """Return its name as the start of a sentence."""
        return self.title or self.name.replace("_", " ").capitalize()

    def start_words(self, host: str) -> str:
        """Return what to type behind its command to start it on a host."""
        return host if self.starts_by_name else f"start {host}"
