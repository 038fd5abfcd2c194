"""What the store holds, as frozen models: runs, their steps, decisions, artifacts, incidents and the timeline.

The store writes them and the presenter reads them; nothing else keeps state. Times are Unix seconds, UTC.
"""

import hashlib
from enum import StrEnum
from typing import Literal

from pydantic import Field

from gpu_actions.models import Artifact, Finding, Frozen, JsonObject, Verdict, VerdictKind
from gpu_actions.plan import Plan


class RunStatus(StrEnum):
    """The state of a run. The last six are final: each run ends in exactly one of them."""

    PLANNING = "planning"
    WAITING = "waiting"  # for approvals
    QUEUED = "queued"  # approved, or no approval needed; no step has started
    RUNNING = "running"
    SETTLING = "settling"  # compensation is running
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"  # by preflight; nothing was changed
    DENIED = "denied"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        return self in FINAL


FINAL = frozenset(RunStatus) - {
    RunStatus.PLANNING,
    RunStatus.WAITING,
    RunStatus.QUEUED,
    RunStatus.RUNNING,
    RunStatus.SETTLING,
}


class StepStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class Person(Frozen):
    """A Slack user. `name` is for shells and logs; messages mention the id."""

    id: str
    name: str = ""


class Place(Frozen):
    """Where a run posts: a channel, and a thread in it (None: the run's own message starts a thread)."""

    channel: str
    thread_ts: str | None = None


NOT_YET = Place(channel="")
"""The place of a run that began while Slack was away: it is shown nowhere until its place is known."""


class ArtifactRecord(Frozen):
    """A stored artifact with its link. `slack_file_id` is set once it is uploaded to the thread."""

    id: int
    run_id: str
    step_id: str
    artifact: Artifact
    url: str
    slack_file_id: str | None = None


class StepRecord(Frozen):
    """The current state of one attempt of one step. `compensating` marks the cleanup after a failure or a stop."""

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
        default=0, description="how often its function was called; above 1 after a crash during the step"
    )
    compensating: bool = False
    data: JsonObject = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    verdict: Verdict | None = None


class Decision(Frozen):
    """One person's decision on a waiting run. `override` is reserved for the emergency role and needs a reason."""

    user: Person
    decision: str = Field(pattern="^(approve|deny|override)$")
    plan_hash: str
    reason: str = ""
    at: float


class RunRecord(Frozen):
    """One run with everything that a message about it shows."""

    id: str
    action: str
    host: str
    status: RunStatus
    requester: Person
    place: Place
    options: JsonObject = Field(default_factory=dict)
    plan: Plan | None = None
    plan_hash: str = ""
    problems: tuple[str, ...] = Field(default=(), description="why preflight refused the plan")
    message_ts: str | None = None
    incident_id: str | None = None
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    gate_expires_at: float | None = None
    outcome: str = Field(default="", description="one line: how the run ended and what state it left behind")
    next_action: str = ""
    steps: tuple[StepRecord, ...] = ()
    decisions: tuple[Decision, ...] = ()
    artifacts: tuple[ArtifactRecord, ...] = ()
    version: int = Field(default=0, description="rises with every change; the live message compares it")
    unreadable: tuple[str, ...] = Field(
        default=(), description="parts of another version that this one cannot read"
    )

    @property
    def short_of_approvals(self) -> int:
        """The number of approvals still missing; 0 if none is required."""
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
    """An incident: a thread in a channel, opened by a person or by a monitor."""

    id: str
    host: str
    title: str
    cause: str = ""
    status: IncidentStatus
    place: Place
    opened_by: Person
    opened_at: float
    closed_at: float | None = None


class Alert(Frozen):
    """One thing that a monitor or Alertmanager reports. `key` names its burst; `at_s` tells repeats of a cause apart."""

    host: str
    cause: str
    title: str
    source: str
    reason: str
    verdict: VerdictKind
    key: str
    at_s: float = Field(description="when it was seen, by the store's clock")
    window_s: float | None = Field(
        default=None, description="seconds that triage must read to see the same; None: as the settings say"
    )

    fingerprint: str = Field(
        default="", description="Alertmanager's name of it; alerts with one are grouped by cause"
    )
    resolved: bool = False

    @property
    def id(self) -> str:
        """A hash of 32 characters: a repeat of the same alert starts nothing new."""
        later = {
            name for name in ("fingerprint", "resolved") if not getattr(self, name)
        }  # rows from before them keep their id
        return hashlib.sha256(self.model_dump_json(exclude=later).encode()).hexdigest()[:32]


class MonitorNotice(Frozen):
    """What a monitor says of a host that is no alert: a fault is gone, or the host cannot be read, or can be again."""

    notice: Literal["clear", "ease", "blind", "sighted"]
    host: str
    source: str
    cause: str = ""
    reason: str = ""
    at_s: float

    @property
    def key(self) -> str:
        return f"{self.notice}:{self.source}:{self.at_s}"[:300]


class TimelineEntry(Frozen):
    """One line of what happened. Entries are appended, never edited."""

    at: float
    incident_id: str | None = None
    run_id: str | None = None
    host: str
    actor: str
    kind: str = Field(description="`run.start`, `decision.approve`, `step.done`, ...")
    text: str
    data: JsonObject = Field(default_factory=dict)


class UserError(Exception):
    """A request cannot be carried out. The message is one line for the person: what, why, and the fix."""
