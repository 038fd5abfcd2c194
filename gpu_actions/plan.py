"""A plan is an action's steps as data: shown before it runs, hashed for approval, walked by the run engine.

A step's `args` hold everything it will do, so that what was approved is what runs. The walker depends on this file only; it
finds a step's code by its `verb` in the registry of `gpu_actions.action`.
"""

import hashlib
import json
from typing import Literal

from pydantic import Field, model_validator

from gpu_actions.models import Frozen, JsonObject

PLAN_VERSION = 1


class Step(Frozen):
    """One step of a plan.

    `id` is unique in the plan, `verb` names the registered step function (`tier.drain`), `title` is the line that people
    see, `details` are the commands, files, environment and weights it will use. When a step with a `group` fails, its whole
    group is tried again with the next of the plan's `alternatives`.
    """

    id: str
    verb: str
    title: str
    args: JsonObject = Field(default_factory=dict)
    details: tuple[str, ...] = ()
    timeout_s: float = Field(default=600, gt=0)
    expected_s: float | None = None
    mutates: bool = Field(default=True, description="False for steps that only read; they need no host lock")
    on_failure: Literal["stop", "continue"] = "stop"
    group: str | None = None


class Gate(Frozen):
    """A wait for approvals before the first step. `approvers` names a role of the settings."""

    approvals: int = Field(ge=1)
    approvers: str
    expires_s: float = Field(gt=0)
    remind_before_s: float = Field(default=300, ge=0)
    reason: str


class Plan(Frozen):
    """What a run will do, in order.

    `compensation` is walked when the run was cancelled, or when a step failed and its group has no alternative left. Its steps
    probe the real state of the host and leave one defined state.
    """

    version: int = PLAN_VERSION
    action: str
    host: str
    title: str
    steps: tuple[Step, ...]
    gate: Gate | None = None
    alternatives: dict[str, tuple[JsonObject, ...]] = Field(
        default_factory=dict,
        description="per group: argument overrides for the first attempt, the second, ...",
    )
    compensation: tuple[Step, ...] = ()
    losses: str = Field(default="", description="what is lost by running it, in one line")
    warnings: tuple[str, ...] = ()
    options: JsonObject = Field(default_factory=dict, description="the arguments that made this plan")

    @model_validator(mode="after")
    def _ids_are_unique_and_groups_are_contiguous(self) -> "Plan":
        ids = [step.id for step in (*self.steps, *self.compensation)]
        repeated = {step_id for step_id in ids if ids.count(step_id) > 1}
        if repeated:
            raise ValueError(f"step ids must be unique in a plan, repeated: {sorted(repeated)}")
        seen: list[str | None] = []
        for step in self.steps:
            if not seen or seen[-1] != step.group:
                if step.group is not None and step.group in seen:
                    raise ValueError(f"the steps of group {step.group!r} must be adjacent")
                seen.append(step.group)
        unknown = set(self.alternatives) - {group for group in seen if group is not None}
        if unknown:
            raise ValueError(f"alternatives for groups that no step has: {sorted(unknown)}")
        return self

    @property
    def hash(self) -> str:
        """Return the first 12 hex digits of the sha256 of the canonical JSON. Approvals are bound to it."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def expected_s(self) -> float:
        """Return the seconds that the whole plan should take: the sum over the steps that state one."""
        return sum(step.expected_s or 0.0 for step in self.steps)
