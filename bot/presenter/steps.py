"""The lines of a run's steps and of a plan: one line a step, its state first.

Pure functions over the records; used by the live message, the plan message and the answers to `status`.
"""

from collections.abc import Sequence

from bot.presenter.message import Lines
from bot.presenter.mrkdwn import code, duration, first_line, one_line
from bot.store.records import RunRecord, RunStatus, StepRecord, StepStatus
from gpu_actions.plan import Plan, Step

STEP_SIGNS = {
    StepStatus.PENDING: ":white_circle:",
    StepStatus.RUNNING: ":hourglass_flowing_sand:",
    StepStatus.DONE: ":white_check_mark:",
    StepStatus.WARNING: ":warning:",
    StepStatus.FAILED: ":x:",
    StepStatus.SKIPPED: ":fast_forward:",
    StepStatus.CANCELLED: ":octagonal_sign:",
}


def all_steps(run: RunRecord) -> tuple[StepRecord, ...]:
    """The steps as recorded, with the plan's steps that nothing is recorded of yet as pending, in the plan's order."""
    if run.plan is None:
        return run.steps
    recorded = {step.step_id for step in run.steps}
    missing = [step for step in run.plan.steps if step.id not in recorded]
    if not missing:
        return run.steps
    pending = StepStatus.SKIPPED if run.status.final else StepStatus.PENDING
    order = {step.id: n for n, step in enumerate(run.plan.steps)}
    forward = [step for step in run.steps if not step.compensating]
    forward += [StepRecord(step_id=step.id, title=step.title, status=pending) for step in missing]
    forward.sort(key=lambda step: (order.get(step.step_id, len(order)), step.attempt))
    return (*forward, *(step for step in run.steps if step.compensating))


def running_step(run: RunRecord) -> StepRecord | None:
    """The step at work, the latest where there are several."""
    return next((step for step in reversed(run.steps) if step.status is StepStatus.RUNNING), None)


def failed_step(run: RunRecord) -> StepRecord | None:
    """The last step that failed on the way forward: what a reader must know of a failed run."""
    return next(
        (s for s in reversed(run.steps) if s.status is StepStatus.FAILED and not s.compensating),
        None,
    )


def position(run: RunRecord, step: StepRecord) -> str:
    """`3 of 9`, counted in the plan; empty for clean-up steps."""
    ids = [planned.id for planned in run.plan.steps] if run.plan is not None else []
    return f"{ids.index(step.step_id) + 1} of {len(ids)}" if step.step_id in ids else ""


def step_line(step: StepRecord, now: float) -> str:
    """One line: sign, title, the first line of its summary, and its seconds."""
    parts = [STEP_SIGNS[step.status], f"*{one_line(step.title, 100)}*"]
    notes = []
    if step.compensating:
        notes.append("clean-up")
    if step.attempt > 1:
        notes.append(f"attempt {step.attempt}")
    if step.executions > 1:
        notes.append("taken up again after a restart")
    if notes:
        parts.append(f"({', '.join(notes)})")
    tail = []
    if step.status is StepStatus.RUNNING and step.progress is not None:
        tail.append(f"{step.progress * 100:.0f} %")
    summary = one_line(first_line(step.summary), 260)
    if summary:
        tail.append(summary)
    if step.status is StepStatus.FAILED and step.next_action:
        tail.append(f"Next: {one_line(step.next_action, 200)}")
    if seconds := step_seconds(step, now):
        tail.append(seconds)
    return " ".join(parts) + (" - " + " · ".join(tail) if tail else "")


def step_seconds(step: StepRecord, now: float) -> str:
    """How long it took, or has been at work; empty before it starts."""
    if step.started_at is None:
        return ""
    if step.ended_at is not None:
        return duration(step.ended_at - step.started_at)
    return f"for {duration(max(0.0, now - step.started_at))}" if step.status is StepStatus.RUNNING else ""


def step_lines(run: RunRecord, now: float) -> Lines:
    """All steps of a run; when there are too many, the earlier ones go first."""
    steps = all_steps(run)
    if run.status in (RunStatus.DENIED, RunStatus.EXPIRED, RunStatus.REFUSED):
        steps = run.steps
    return Lines(tuple(step_line(step, now) for step in steps), noun="steps", drop="start")


def plan_lines(plan: Plan) -> Lines:
    """The plan's steps with everything they will use, one list entry a step."""
    lines: list[str] = []
    for number, step in enumerate(plan.steps, start=1):
        lines.append(_planned(f"{number}.", step))
        lines.extend(_details(step.details))
    for step in plan.compensation:
        lines.append(_planned("If it fails:", step))
        lines.extend(_details(step.details))
    return Lines(tuple(lines), noun="lines of the plan")


def _planned(number: str, step: Step) -> str:
    expected = f" · about {duration(step.expected_s)}" if step.expected_s else ""
    reads = "" if step.mutates else " · only reads"
    return f"{number} *{one_line(step.title, 160)}*{expected}{reads}"


def _details(details: Sequence[str]) -> list[str]:
    return [f"      {code(line, 350)}" for line in details if line.strip()]
