"""What an incident's report says, as data."""

from pydantic import Field

from bot.incidents.outage import Outage
from bot.incidents.report.deviations import Deviation
from bot.store.records import ArtifactRecord, IncidentRecord, RunRecord
from gpu_actions.models import Frozen, Verdict
from gpu_actions.serving.request_account import RequestAccount

SERVES_TP, SERVES_FALLBACK = "tp_serving", "fallback_serving"
DRILL = "drill"
"""The cause of an incident that a drill plays."""


class Clients(Frozen):
    """What clients saw during one run, from the router's record of requests."""

    run_id: str
    action: str
    account: RequestAccount
    served_per_s: float | None = None


class Diagnosis(Frozen):
    """A verdict of triage, with the run and the time of it."""

    run_id: str
    at: float
    verdict: Verdict
    action: str = ""


class LoadTest(Frozen):
    """A load test's result as it was shown in the thread."""

    run_id: str
    action: str
    at: float
    verdict: str
    title: str = Field(default="", description="of the step: what was loaded or traced")
    text: str


class Impact(Frozen):
    """Totals over the runs that changed the host; None where the record has no account of any of them."""

    refused: int | None = None
    broke_off: int | None = None
    failed: int | None = None
    resent: int | None = None
    finished: int | None = None
    client_left: int | None = None
    without_answer_s: float | None = None
    outages: dict[str, Outage] = Field(default_factory=dict, description="of each fallback, by run")
    usual_per_s: float | None = None
    served_per_s: float | None = None
    refused_peak_percent: float | None = Field(
        default=None, description="of the requests of the worst seconds"
    )
    degraded_from: float | None = Field(
        default=None, description="when the full tier stopped serving, as far as known"
    )
    degraded_to: float | None = None
    fallback_from: float | None = Field(default=None, description="its first token through the router")
    incomplete: tuple[str, ...] = Field(default=(), description="why a figure may be too low")

    @property
    def served_percent(self) -> float | None:
        """Return the share of the usual rate that was served."""
        return 100 * self.served_per_s / self.usual_per_s if self.served_per_s and self.usual_per_s else None

    @property
    def degraded_s(self) -> float | None:
        if self.degraded_from is None or self.degraded_to is None:
            return None
        return self.degraded_to - self.degraded_from


class Line(Frozen):
    """One line of the timeline."""

    at: float
    who: str
    run_id: str = ""
    text: str


class IncidentFacts(Frozen):
    """Everything that the report says."""

    incident: IncidentRecord
    made_at: float
    is_drill: bool = Field(default=False, description="played by a drill, on a tier of its own")
    severity: str = ""
    roles: dict[str, str] = Field(default_factory=dict, description="lead, scribe: who")
    summary: tuple[str, ...]
    impact: Impact
    clients: tuple[Clients, ...]
    diagnoses: tuple[Diagnosis, ...]
    load_tests: tuple[LoadTest, ...]
    traces: tuple[LoadTest, ...]
    runs: tuple[RunRecord, ...]
    timeline: tuple[Line, ...]
    deviations: tuple[Deviation, ...]
    follow_ups: tuple[str, ...]
    artifacts: tuple[ArtifactRecord, ...]
