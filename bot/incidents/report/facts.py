"""Derive the facts of an incident's report from its record: runs, decisions, the audit trail. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any

from bot.incidents.outage import outage_of
from bot.incidents.report.deviations import Deviation, deviations
from bot.incidents.report.model import (
    DRILL,
    SERVES_FALLBACK,
    SERVES_TP,
    Clients,
    Diagnosis,
    Impact,
    IncidentFacts,
    Line,
    LoadTest,
)
from bot.incidents.report.sentences import summary_of
from bot.store.records import (
    IncidentRecord,
    IncidentStatus,
    RunRecord,
    RunStatus,
    StepRecord,
    StepStatus,
    TimelineEntry,
)
from gpu_actions.models import Severity, VerdictKind
from gpu_actions.serving.request_account import RequestAccount

QUIET_KINDS = frozenset(
    {"step.done", "artifact.stored", "incident.join", "run.running", "run.queued", "run.planned"}
)
"""Entries that say nothing new beside the tables of runs and artifacts."""
FIRST_ANSWER = "first_token_through_router_s"
GOLDEN, COMPARE, BUNDLE = "golden", "compare", "evidence bundle"


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
    moves = _moves(ordered)
    return IncidentFacts(
        incident=incident,
        made_at=now,
        is_drill=incident.cause == DRILL,
        severity=_last(entries, "incident.severity", "severity"),
        roles={
            role: name for role in ("lead", "scribe") if (name := _last(entries, f"incident.{role}", "name"))
        },
        summary=tuple(summary_of(incident, ordered, diagnoses, impact, moves[-1][1] if moves else None)),
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
    # Before a restore, the rate is the fallback's.
    of_fallbacks = [one.account for one in clients if one.action == "fallback"]
    before = [account.before_per_s for account in of_fallbacks if account.before_per_s is not None]
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
