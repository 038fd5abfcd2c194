"""Derive the facts of an incident's report from its record: runs, decisions, the audit trail. Pure."""

import datetime
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import Field

from bot.incidents.outage import Outage, card_lines, outage_of
from bot.incidents.report.deviations import Deviation, deviations
from bot.store.records import (
    ArtifactRecord,
    IncidentRecord,
    IncidentStatus,
    RunRecord,
    RunStatus,
    StepRecord,
    StepStatus,
    TimelineEntry,
)
from gpu_actions.models import Frozen, Severity, Verdict, VerdictKind
from gpu_actions.serving.request_account import RequestAccount

QUIET_KINDS = frozenset(
    {"step.done", "artifact.stored", "incident.join", "run.running", "run.queued", "run.planned"}
)
"""Entries that say nothing new beside the tables of runs and artifacts."""
SERVES_TP = "tp_serving"
DRILL = "drill"
"""The cause of an incident that a drill plays."""
SERVES_FALLBACK = "fallback_serving"
FIRST_ANSWER = "first_token_through_router_s"
GOLDEN, COMPARE, BUNDLE = "golden", "compare", "evidence bundle"


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


def facts_of(
    incident: IncidentRecord,
    runs: Sequence[RunRecord],
    entries: Sequence[TimelineEntry],
    *,
    now: float,
    earlier: Sequence[RunRecord] = (),
) -> IncidentFacts:
    """Return the report's facts. `runs` and `entries` are those of the incident, in any order; `earlier` runs newest first."""
    ordered = tuple(sorted(runs, key=lambda run: run.created_at))
    clients = tuple(_clients(ordered))
    diagnoses = tuple(
        Diagnosis(run_id=run.id, at=step.ended_at or run.created_at, verdict=step.verdict, action=run.action)
        for run, step in _steps(ordered)
        if step.verdict is not None
    )
    found = deviations(ordered, diagnoses=[(one.at, one.verdict) for one in diagnoses], earlier=earlier)
    impact = _impact(incident, ordered, clients, now)
    return IncidentFacts(
        incident=incident,
        made_at=now,
        is_drill=incident.cause == DRILL,
        severity=_last(entries, "incident.severity", "severity"),
        roles={
            role: name for role in ("lead", "scribe") if (name := _last(entries, f"incident.{role}", "name"))
        },
        summary=tuple(_summary(incident, ordered, diagnoses, impact)),
        impact=impact,
        clients=clients,
        diagnoses=diagnoses,
        load_tests=tuple(_texts(ordered, "verdict")),
        traces=tuple(_texts(ordered, "summary")),
        runs=ordered,
        timeline=tuple(sorted(_lines(entries, diagnoses, ordered), key=lambda line: line.at)),
        deviations=found,
        follow_ups=tuple(_follow_ups(incident, ordered, diagnoses, found)),
        artifacts=tuple(record for run in ordered for record in run.artifacts),
    )


def _steps(runs: Iterable[RunRecord]) -> Iterable[tuple[RunRecord, StepRecord]]:
    return ((run, step) for run in runs for step in run.steps)


def _last(entries: Iterable[TimelineEntry], kind: str, field: str) -> str:
    found = [str(entry.data.get(field, "")) for entry in entries if entry.kind == kind]
    return found[-1] if found else ""


def _lines(
    entries: Iterable[TimelineEntry], diagnoses: Iterable[Diagnosis], runs: Sequence[RunRecord]
) -> Iterable[Line]:
    for entry in entries:
        if entry.kind not in QUIET_KINDS:
            text = f"opened the incident: {entry.text}" if entry.kind == "incident.open" else entry.text
            yield Line(at=entry.at, who=entry.actor, run_id=entry.run_id or "", text=text)
    for one in diagnoses:
        word = one.verdict.verdict.value.replace("_", " ")
        cause = "" if one.verdict.cause == "none" else f"{one.verdict.cause}: "
        text = f"verdict: {word}: {cause}{one.verdict.summary}"
        yield Line(at=one.at, who="bot", run_id=one.run_id, text=text)
    for run, step in _steps(runs):
        if step.ended_at is not None and FIRST_ANSWER in step.data:
            yield Line(at=step.ended_at, who="bot", run_id=run.id, text=f"{step.title}: it serves")
    for test in _texts(runs, "verdict"):
        yield Line(at=test.at, who="bot", run_id=test.run_id, text=f"{test.title}: {test.verdict}")


def _clients(runs: Iterable[RunRecord]) -> Iterable[Clients]:
    """Yield the last account of each run: it covers the run from its begin."""
    for run in runs:
        kept = [step.data["clients"] for step in run.steps if isinstance(step.data.get("clients"), dict)]
        if kept and kept[-1].get("account"):
            yield Clients(
                run_id=run.id,
                action=run.action,
                account=RequestAccount.model_validate(kept[-1]["account"], extra="ignore"),
                served_per_s=kept[-1].get("served_per_s"),
            )


def _texts(runs: Iterable[RunRecord], mark: str) -> Iterable[LoadTest]:
    """Yield the results that steps showed in the thread and that carry `mark` in their data."""
    for run, step in _steps(runs):
        if "thread_text" in step.data and mark in step.data:
            verdict = step.data[mark] if isinstance(step.data[mark], str) else ""
            yield LoadTest(
                run_id=run.id,
                action=run.action,
                at=step.ended_at or run.created_at,
                verdict=verdict,
                title=step.title,
                text=str(step.data["thread_text"]),
            )


def state_after(run: RunRecord) -> str:
    """Return the serving state that a run left (`tp_serving`, `fallback_serving`, ...), or an empty string.

    A clean-up says which it left. Without one, a fallback that succeeded serves on the fallback.
    """
    if run.action == "fallback" and run.status is RunStatus.SUCCEEDED:
        return SERVES_FALLBACK
    states = [str(step.data["state"]) for step in run.steps if step.data.get("state")]
    return states[-1] if states else ""


def _moves(runs: Sequence[RunRecord]) -> list[tuple[float, str]]:
    """Return `(when, state)` for each run that left a serving state."""
    return [(run.ended_at, state) for run in runs if run.ended_at is not None and (state := state_after(run))]


def _impact(
    incident: IncidentRecord, runs: Sequence[RunRecord], clients: Sequence[Clients], now: float
) -> Impact:
    degraded_from, degraded_to = None, None
    for run in runs:
        if state_after(run) == SERVES_FALLBACK and degraded_from is None:
            degraded_from = min(incident.opened_at, run.started_at or run.created_at)
    if degraded_from is not None:
        back = [at for at, state in _moves(runs) if state == SERVES_TP and at > degraded_from]
        degraded_to = back[-1] if back else (incident.closed_at or now)
    served_from = [step.ended_at for _, step in _steps(runs) if FIRST_ANSWER in step.data and step.ended_at]
    fallback_from = served_from[0] if served_from and degraded_from is not None else None
    if not clients:
        return Impact(degraded_from=degraded_from, degraded_to=degraded_to, fallback_from=fallback_from)
    accounts = [one.account for one in clients]
    gaps = [account.without_answer.seconds for account in accounts if account.without_answer is not None]
    before = [
        one.account.before_per_s
        for one in clients
        if one.action == "fallback" and one.account.before_per_s is not None
    ]  # before a restore, the rate is the fallback's
    served = [one.served_per_s for one in clients if one.served_per_s is not None]
    peaks = [account.refused_peak_percent for account in accounts if account.refused_peak_percent is not None]
    return Impact(
        refused=sum(account.refused for account in accounts),
        broke_off=sum(account.aborted for account in accounts),
        failed=sum(account.failed for account in accounts),
        resent=sum(account.resent for account in accounts),
        finished=sum(account.finished for account in accounts),
        client_left=sum(account.client_left for account in accounts),
        without_answer_s=max(gaps, default=0.0),
        outages={run.id: outage for run in runs if (outage := outage_of(run)) is not None},
        usual_per_s=before[0] if before else None,
        served_per_s=served[0] if served else None,
        refused_peak_percent=max(peaks, default=None),
        degraded_from=degraded_from,
        degraded_to=degraded_to,
        fallback_from=fallback_from,
        incomplete=tuple(dict.fromkeys(account.incomplete for account in accounts if account.incomplete)),
    )


def _summary(
    incident: IncidentRecord, runs: Sequence[RunRecord], diagnoses: Sequence[Diagnosis], impact: Impact
) -> Iterable[str]:
    """Yield the sentences of the summary: what was wrong, what was done, how it stands."""
    if incident.cause == DRILL:
        for run in runs:
            yield f"The drill {run.id} {run.status.value}: {_sentence(run.outcome)}"
        yield "No client was concerned: the drill ran on a tier of its own."
        return
    bad = [one for one in diagnoses if one.verdict.verdict is VerdictKind.FALL_BACK]
    if bad:
        yield f"Triage found {bad[0].verdict.cause} on {incident.host}: {bad[0].verdict.summary}."
    else:
        yield f"{incident.title}; no triage of this incident said fall back."
    changes = [run for run in runs if run.action in ("fallback", "restore")]
    for run in changes:
        took = f" in {run.ended_at - run.started_at:.0f} s" if run.ended_at and run.started_at else ""
        word = {"succeeded": "succeeded", "failed": "failed", "cancelled": "was stopped"}.get(
            run.status, run.status
        )
        why = f": {_sentence(run.outcome)}" if run.status is not RunStatus.SUCCEEDED else "."
        yield f"The {run.action} {run.id} {word}{took}{why}"
        yield from _rungs(run)
        yield from (
            f"{label}: {_sentence(text)}" for label, text in card_lines(run).items() if label != "Outage"
        )
    if impact.refused is not None:
        yield _clients_sentence(impact)
    if impact.degraded_s is not None:
        since, until = impact.fallback_from, impact.degraded_to
        served = (
            f"; the fallback served from {_clock(since)} to {_clock(until)} UTC" if since and until else ""
        )
        yield f"The full tier did not serve for {impact.degraded_s / 60:.1f} minutes{served}."
        if impact.served_percent is not None:
            verb = "carried" if impact.served_percent >= 100 else "did not carry"
            rates = f"{impact.served_per_s:.3g} of {impact.usual_per_s:.3g} requests per second"
            yield f"The fallback {verb} the usual rate: {rates}."
    states = _moves(runs)
    if not states:
        yield "No run of this incident changed what serves."
    elif states[-1][1] == SERVES_TP:
        yield "The full tier serves again."
    elif states[-1][1] == SERVES_FALLBACK:
        yield "The service still runs on its fallback."
    else:
        yield "After the last run nothing served: check the host."


def _rungs(run: RunRecord) -> Iterable[str]:
    """Yield which rung of the ladder a fallback serves from, and why rungs were passed over."""
    scoped = [step for step in run.steps if step.data.get("rung")]
    if scoped:
        yield f"Its last attempt was rung {scoped[-1].data['rung']}."
        yield from (
            _sentence(f"{one[:1].upper()}{one[1:]}") for one in scoped[-1].data.get("passed_over", ())
        )


def _clients_sentence(impact: Impact) -> str:
    """Return what clients saw in one sentence."""
    lost = (impact.broke_off or 0) + (impact.failed or 0)
    parts = [f"{_requests(impact.refused or 0)} refused with Retry-After"] if impact.refused else []
    if lost:
        parts.append(f"{_requests(lost)} lost")
    else:
        parts.append("no request is known to be lost" if impact.incomplete else "no request was lost")
    if impact.without_answer_s:
        parts.append(f"the longest time without an answer was {impact.without_answer_s:.0f} s")
    return f"What clients saw: {', '.join(parts)}."


def _clock(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%H:%M:%S")


def _requests(number: int) -> str:
    return "1 request was" if number == 1 else f"{number} requests were"


def _sentence(text: str) -> str:
    text = text.strip() or "no outcome was recorded"
    return text if text.endswith((".", "!", "?")) else text + "."


def _follow_ups(
    incident: IncidentRecord,
    runs: Sequence[RunRecord],
    diagnoses: Sequence[Diagnosis],
    found: Sequence[Deviation],
) -> Iterable[str]:
    if incident.status is IncidentStatus.OPEN:
        yield f"Close the incident: {incident.id} is still open."
    states = _moves(runs)
    if states and states[-1][1] != SERVES_TP:
        yield f"Bring the full tier back: it does not serve on {incident.host}."
    for run in runs:
        if run.next_action and run.status in (RunStatus.FAILED, RunStatus.CANCELLED):
            yield f"After {run.id} ({run.action} {run.status}): {run.next_action}"
    if diagnoses:
        for finding in diagnoses[-1].verdict.findings:
            if finding.severity in (Severity.WATCH, Severity.CRITICAL, Severity.UNKNOWN) and finding.action:
                yield f"{finding.summary}: {finding.action}"
    bad = [one for one in diagnoses if one.verdict.verdict is VerdictKind.FALL_BACK]
    if bad and incident.cause != DRILL:
        bundles = [run.id for run in runs for one in run.artifacts if one.artifact.title == BUNDLE]
        first = (
            f"open the evidence bundle of {bundles[0]} first"
            if bundles
            else "the evidence is in the artifacts below"
        )
        yield f"Find the root cause of {bad[0].verdict.cause}, which is not known: {first}."
    for _, step in _steps(runs):
        if step.status is StepStatus.WARNING and step.step_id == GOLDEN:
            yield f"Golden prompts: {step.summary}"
        elif step.status is StepStatus.WARNING and step.step_id == COMPARE:
            yield f"Baseline: {step.summary}. To record one: /loadtest start {incident.host} baseline=NAME"
    if found:
        yield "Decide for each deviation whether the runbook or the practice must change."


def as_data(facts: IncidentFacts) -> dict[str, Any]:
    """Return the facts as JSON data, for machines."""
    return facts.model_dump(mode="json", exclude={"runs": {"__all__": {"plan"}}})
