"""Rows of the bot as frozen models: runs, their steps, decisions, incidents and their timeline.

The store writes them, the presenter reads them; nobody else keeps state. Times are Unix seconds, UTC.
"""

from enum import StrEnum

from pydantic import Field

from gpu_actions.models import Artifact, Finding, Frozen, JsonObject, Verdict
from gpu_actions.plan import Plan


class RunStatus(StrEnum):
    """Where a run stands. The last six are final: exactly one of them ends a run."""

    PLANNING = "planning"
    WAITING = "waiting"  # for approvals
    QUEUED = "queued"  # approved or needing none; the host has not begun
    RUNNING = "running"
    SETTLING = "settling"  # compensation is running
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"  # preflight said no; nothing was touched
    DENIED = "denied"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        return self in FINAL


FINAL = frozenset(
    {
        RunStatus.SUCCEEDED,
        RunStatus.FAILED,
        RunStatus.CANCELLED,
        RunStatus.REFUSED,
        RunStatus.DENIED,
        RunStatus.EXPIRED,
    }
)


class StepStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class Person(Frozen):
    """A Slack user as the product names one; `name` is for shells and logs."""

    id: str
    name: str = ""


class Place(Frozen):
    """Where a run talks: a channel, and the thread in it (None: the run's own message starts one)."""

    channel: str
    thread_ts: str | None = None


class ArtifactRecord(Frozen):
    """A stored artifact: the file's facts and its link. `slack_file_id` once it was uploaded to the thread."""

    id: int
    run_id: str
    step_id: str
    artifact: Artifact
    url: str
    slack_file_id: str | None = None


class StepRecord(Frozen):
    """One attempt of one step, as it stands now. `compensating` marks the clean-up steps behind a failure."""

    step_id: str
    attempt: int = 1
    title: str
    status: StepStatus
    summary: str = ""
    next_action: str = ""
    progress: float | None = Field(default=None, ge=0, le=1)
    started_at: float | None = None
    ended_at: float | None = None
    executions: int = Field(
        default=0, description="times its function was entered; over 1 after a crash in the middle"
    )
    compensating: bool = False
    data: JsonObject = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    verdict: Verdict | None = None


class Decision(Frozen):
    """One person's word on a gate. `override` is the emergency role's, with its reason."""

    user: Person
    decision: str = Field(pattern="^(approve|deny|override)$")
    plan_hash: str
    reason: str = ""
    at: float


class RunRecord(Frozen):
    """One run with all that a message about it needs."""

    id: str
    action: str
    host: str
    status: RunStatus
    requester: Person
    place: Place
    options: JsonObject = Field(default_factory=dict)
    plan: Plan | None = None
    plan_hash: str = ""
    problems: tuple[str, ...] = Field(default=(), description="why preflight refused")
    message_ts: str | None = None
    incident_id: str | None = None
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    gate_expires_at: float | None = None
    outcome: str = Field(default="", description="the one line that says how it ended and what state it left")
    next_action: str = ""
    steps: tuple[StepRecord, ...] = ()
    decisions: tuple[Decision, ...] = ()
    artifacts: tuple[ArtifactRecord, ...] = ()
    version: int = Field(default=0, description="rises with every change; what the live message compares")

    @property
    def short_of_approvals(self) -> int:
        """How many approvals are still missing; 0 without a gate."""
        if self.plan is None or self.plan.gate is None:
            return 0
        given = {
            d.user.id for d in self.decisions if d.decision == "approve" and d.plan_hash == self.plan_hash
        }
        return max(0, self.plan.gate.approvals - len(given))


class IncidentStatus(StrEnum):
    OPEN = "open"
    CLOSED = "closed"


class IncidentRecord(Frozen):
    """An incident: a thread in a channel, opened by a person or a monitor."""

    id: str
    host: str
    title: str
    cause: str = ""
    status: IncidentStatus
    place: Place
    opened_by: Person
    opened_at: float
    closed_at: float | None = None


class TimelineEntry(Frozen):
    """One line of what happened. Appended, never edited."""

    at: float
    incident_id: str | None
    run_id: str | None
    host: str
    actor: str
    kind: str
    text: str
    data: JsonObject = Field(default_factory=dict)


class UserError(Exception):
    """Something a person asked for cannot be done. The message is one clear line: what, why, and the fix."""
