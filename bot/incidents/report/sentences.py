"""The sentences at the top of an incident's report. Pure."""

from collections.abc import Iterable, Sequence

from bot.incidents.outage import card_lines
from bot.incidents.report.model import DRILL, SERVES_FALLBACK, SERVES_TP, Diagnosis, Impact
from bot.store.records import IncidentRecord, RunRecord, RunStatus
from gpu_actions.models import VerdictKind
from gpu_actions.system.clock import utc_clock


def summary_of(
    incident: IncidentRecord,
    runs: Sequence[RunRecord],
    diagnoses: Sequence[Diagnosis],
    impact: Impact,
    last_state: str | None,
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
            f"; the fallback served from {utc_clock(since)} to {utc_clock(until)} UTC"
            if since and until
            else ""
        )
        yield f"The full tier did not serve for {impact.degraded_s / 60:.1f} minutes{served}."
        if impact.served_percent is not None:
            verb = "carried" if impact.served_percent >= 100 else "did not carry"
            rates = f"{impact.served_per_s:.3g} of {impact.usual_per_s:.3g} requests per second"
            yield f"The fallback {verb} the usual rate: {rates}."
    if last_state is None:
        yield "No run of this incident changed what serves."
    elif last_state == SERVES_TP:
        yield "The full tier serves again."
    elif last_state == SERVES_FALLBACK:
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


def _requests(number: int) -> str:
    return "1 request was" if number == 1 else f"{number} requests were"


def _sentence(text: str) -> str:
    text = text.strip() or "no outcome was recorded"
    return text if text.endswith((".", "!", "?")) else text + "."
