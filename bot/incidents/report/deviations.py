"""Where an incident left the runbook: steps that failed, were retried or slow, overridden decisions, the order. Pure."""

from collections.abc import Iterable, Sequence

from bot.store.records import RunRecord, RunStatus, StepStatus
from gpu_actions.models import Frozen, Verdict, VerdictKind

SLOW_FACTOR = 2.0
SLOW_MIN_S = 10.0
"""A step is called slow if it took twice its expected time, and at least this much longer."""
SLOWER_FACTOR = 1.5
"""Against the last run of the same action on this host."""
FRESH_TRIAGE_S = 3600.0


class Deviation(Frozen):
    """One departure from the runbook: which run and step, and what was different."""

    run_id: str
    step_id: str = ""
    kind: str
    text: str


def deviations(
    runs: Sequence[RunRecord],
    *,
    diagnoses: Sequence[tuple[float, Verdict]],
    earlier: Sequence[RunRecord] = (),
) -> tuple[Deviation, ...]:
    """Return the deviations of an incident's runs, oldest first. `diagnoses` has `(when, verdict)` of its triages.

    `earlier` are runs of the same host before the incident, newest first: what "last time" means.
    """
    return tuple(
        one
        for run in runs
        for one in (
            *_of_run(run),
            *_of_steps(run),
            *_not_run(run),
            *_than_last_time(run, earlier),
            *_of_drill(run),
            *_of_order(run, runs, diagnoses),
        )
    )


def _of_run(run: RunRecord) -> Iterable[Deviation]:
    endings = {
        RunStatus.REFUSED: "was refused by its checks",
        RunStatus.DENIED: "was denied",
        RunStatus.EXPIRED: "expired without a decision",
        RunStatus.CANCELLED: "was stopped",
        RunStatus.FAILED: "failed",
    }
    if run.status in endings:
        why = "; ".join(run.problems) or run.outcome
        yield Deviation(
            run_id=run.id, kind=run.status.value, text=f"{run.action} {endings[run.status]}: {why}".strip()
        )
    for decision in run.decisions:
        if decision.decision == "override":
            who = decision.user.name or decision.user.id
            yield Deviation(
                run_id=run.id,
                kind="override",
                text=f"{who} overrode the approval: {decision.reason or 'no reason given'}",
            )
    for name, value in run.options.items():
        if name.startswith(("override", "accept", "skip")) and value not in (None, False, "", "no", [], ()):
            yield Deviation(run_id=run.id, kind="override", text=f"{run.action} ran with {name}={value}")


def _of_steps(run: RunRecord) -> Iterable[Deviation]:
    expected = {step.id: step.expected_s for step in (run.plan.steps if run.plan else ())}
    for step in run.steps:
        if step.compensating:
            continue
        if step.status is StepStatus.FAILED:
            yield Deviation(
                run_id=run.id, step_id=step.step_id, kind="failed", text=f"{step.title}: {step.summary}"
            )
        elif step.status is StepStatus.SKIPPED:
            yield Deviation(
                run_id=run.id, step_id=step.step_id, kind="skipped", text=f"{step.title}: {step.summary}"
            )
        elif step.status is StepStatus.WARNING:
            yield Deviation(
                run_id=run.id, step_id=step.step_id, kind="warning", text=f"{step.title}: {step.summary}"
            )
        if step.attempt > 1:
            text = f"{step.title}: attempt {step.attempt}"
            yield Deviation(run_id=run.id, step_id=step.step_id, kind="retried", text=text)
        if step.executions > 1:
            text = f"{step.title}: ran again after the bot was interrupted; what was done already is not done twice"
            yield Deviation(run_id=run.id, step_id=step.step_id, kind="interrupted", text=text)
        usual, took = expected.get(step.step_id), _took_s(step.started_at, step.ended_at)
        if usual and took is not None and took > max(SLOW_FACTOR * usual, usual + SLOW_MIN_S):
            text = f"{step.title}: took {took:.0f} s, expected {usual:.0f} s"
            yield Deviation(run_id=run.id, step_id=step.step_id, kind="slow", text=text)


def _not_run(run: RunRecord) -> Iterable[Deviation]:
    """Yield the planned steps that a run which ended early never came to."""
    if run.plan is None or run.status not in (RunStatus.FAILED, RunStatus.CANCELLED):
        return
    began = {step.step_id for step in run.steps}
    left = [step.title for step in run.plan.steps if step.id not in began]
    if began and left:
        text = (
            f"{len(left)} of {len(run.plan.steps)} steps of the {run.action} did not run: {', '.join(left)}"
        )
        yield Deviation(run_id=run.id, kind="skipped", text=text)


def _than_last_time(run: RunRecord, earlier: Sequence[RunRecord]) -> Iterable[Deviation]:
    """Yield the steps that took clearly longer than in the last run of the same action."""
    last = next(
        (one for one in earlier if one.action == run.action and one.status is RunStatus.SUCCEEDED), None
    )
    if last is None:
        return
    before = {step.step_id: _took_s(step.started_at, step.ended_at) for step in last.steps}
    for step in run.steps:
        usual, took = before.get(step.step_id), _took_s(step.started_at, step.ended_at)
        if usual is None or took is None or step.status not in (StepStatus.DONE, StepStatus.WARNING):
            continue
        if took > max(SLOWER_FACTOR * usual, usual + SLOW_MIN_S):
            text = f"{step.title}: took {took:.0f} s, {usual:.0f} s last time ({last.id})"
            yield Deviation(run_id=run.id, step_id=step.step_id, kind="slower", text=text)


def _of_drill(run: RunRecord) -> Iterable[Deviation]:
    """Yield the deviations among the steps that a drill played, and what was slower than it may be."""
    for step in run.steps:
        for slow in step.data.get("slow", ()):
            yield Deviation(run_id=run.id, step_id=step.step_id, kind="slow", text=str(slow))
        for one in step.data.get("drilled", {}).get("steps", ()):
            what = f"{one['action']}: {one['title']}"
            usual, took = one.get("expected_s"), one["seconds"]
            if one["status"] in ("failed", "warning"):
                text = f"{what}: {one['summary']}"
                yield Deviation(run_id=run.id, step_id=one["step_id"], kind=one["status"], text=text)
            elif usual and took > max(SLOW_FACTOR * usual, usual + SLOW_MIN_S):
                text = f"{what}: took {took:.0f} s, expected {usual:.0f} s"
                yield Deviation(run_id=run.id, step_id=one["step_id"], kind="slow", text=text)


def _of_order(
    run: RunRecord, runs: Sequence[RunRecord], diagnoses: Sequence[tuple[float, Verdict]]
) -> Iterable[Deviation]:
    """Judge the order: triage before a fallback, and a fallback before a restore."""
    if run.status in (RunStatus.REFUSED, RunStatus.DENIED, RunStatus.EXPIRED):
        return
    began = run.started_at or run.created_at
    if run.action == "fallback":
        before = [verdict for at, verdict in diagnoses if began - FRESH_TRIAGE_S <= at <= began]
        if not before:
            yield Deviation(
                run_id=run.id, kind="order", text="the fallback began without a triage in the hour before"
            )
        elif before[-1].verdict is not VerdictKind.FALL_BACK:
            text = f"the fallback began although the last triage said {before[-1].verdict.value.replace('_', ' ')}"
            yield Deviation(run_id=run.id, kind="order", text=text)
    if run.action == "restore":
        fell_back = [
            other
            for other in runs
            if other.action == "fallback" and (other.started_at or other.created_at) < began
        ]
        if not fell_back:
            yield Deviation(
                run_id=run.id, kind="order", text="the restore began without a fallback in this incident"
            )


def _took_s(started_at: float | None, ended_at: float | None) -> float | None:
    return None if started_at is None or ended_at is None else ended_at - started_at
