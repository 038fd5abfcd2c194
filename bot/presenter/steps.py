"""One line per step, of a run or of a plan: its state first. Pure functions over the records."""

from collections.abc import Sequence

from bot.presenter.message import Block, Lines, TaskStatus, plan, task
from bot.presenter.mrkdwn import capitalized, code, duration, first_line, gist, one_line
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

TASKS: dict[StepStatus, TaskStatus] = {
    StepStatus.PENDING: "pending",
    StepStatus.RUNNING: "in_progress",
    StepStatus.DONE: "complete",
    StepStatus.WARNING: "complete",
    StepStatus.FAILED: "error",
    StepStatus.SKIPPED: "complete",
    StepStatus.CANCELLED: "error",
}
"""A step's state as Slack's task cards name it."""
MAX_NOTED = 2
SUMMARY_WORDS = 15
NOTE_WORDS = 10


def running_step(run: RunRecord) -> StepRecord | None:
    """Return the running step, the latest if there are several."""
    return next((step for step in reversed(run.steps) if step.status is StepStatus.RUNNING), None)


def failed_step(run: RunRecord) -> StepRecord | None:
    """Return the last step that failed, clean-up steps aside: the reason why a run failed."""
    failed = (s for s in reversed(run.steps) if s.status is StepStatus.FAILED and not s.compensating)
    return next(failed, None)


def position(run: RunRecord, step: StepRecord) -> str:
    """Return `3 of 9`, counted in the plan; empty for clean-up steps."""
    ids = [planned.id for planned in run.plan.steps] if run.plan is not None else []
    return f"{ids.index(step.step_id) + 1} of {len(ids)}" if step.step_id in ids else ""


def folded_lines(run: RunRecord) -> Lines:
    """Return the finished steps as one line, and one line for each that failed or warned; the running one is said above."""
    if not run.steps or run.status in (RunStatus.DENIED, RunStatus.EXPIRED, RunStatus.REFUSED):
        return Lines(())
    done, counted = _counted(run)
    lines = [
        f"{STEP_SIGNS[step.status]} *{gist(step.title, 6)}* {gist(first_line(step.summary), NOTE_WORDS)}".rstrip()
        for step in _noted(run)
    ]
    return Lines(
        (f"{STEP_SIGNS[StepStatus.DONE if done else StepStatus.PENDING]} {counted}", *lines),
        noun="steps",
        drop="start",
    )


def live_plan(run: RunRecord) -> Block:
    """Return the steps of a run at work as a native plan: how many are done, what went wrong, now, and next."""
    tasks = [
        task(
            f"{step.step_id}.{step.attempt}",
            f"Warning: {gist(step.title, 6)}" if step.status is StepStatus.WARNING else gist(step.title, 6),
            TASKS[step.status],
            details=gist(first_line(step.summary), NOTE_WORDS),
        )
        for step in _noted(run)
    ]
    if (now := running_step(run)) is not None:
        said = gist(first_line(now.summary), SUMMARY_WORDS) or gist(now.title, 8)
        tasks.append(task(f"{now.step_id}.{now.attempt}", capitalized(said), TASKS[now.status]))
    coming = [step for step in _all_steps(run) if step.status is StepStatus.PENDING and not step.compensating]
    if coming and run.status is not RunStatus.SETTLING:
        tasks.append(task(f"{coming[0].step_id}.next", f"Then: {gist(coming[0].title, 6)}", "pending"))
    return plan(_counted(run)[1], tasks)


def _noted(run: RunRecord) -> Sequence[StepRecord]:
    """Return the latest steps that failed or warned."""
    noted = [s for s in _all_steps(run) if s.status in (StepStatus.FAILED, StepStatus.WARNING)]
    return noted[-MAX_NOTED:]


def _counted(run: RunRecord) -> tuple[int, str]:
    """Return how many steps are done, and that in words."""
    steps = _all_steps(run)
    forward = [step for step in steps if not step.compensating]
    done = sum(step.status in (StepStatus.DONE, StepStatus.WARNING) for step in forward)
    cleaned = sum(step.status is StepStatus.DONE for step in steps if step.compensating)
    counted = f"{done} of {len({step.step_id for step in forward})} steps done"
    return done, counted + (f", {cleaned} of the clean-up" if cleaned else "")


def step_lines(run: RunRecord, now: float) -> Lines:
    """Return all steps of a run; if there are too many, the earliest are dropped."""
    never_ran = run.status in (RunStatus.DENIED, RunStatus.EXPIRED, RunStatus.REFUSED)
    steps = run.steps if never_ran else _all_steps(run)
    return Lines(tuple(_step_line(step, now) for step in steps), noun="steps", drop="start")


def plan_lines(plan: Plan) -> Lines:
    """Return the plan's steps with everything they will use."""
    lines: list[str] = []
    numbered = [(f"{number}.", step) for number, step in enumerate(plan.steps, start=1)]
    for label, step in (*numbered, *(("If it fails:", step) for step in plan.compensation)):
        lines.append(_planned_line(label, step))
        lines += [f"      {code(detail, 350)}" for detail in step.details if detail.strip()]
    return Lines(tuple(lines), noun="lines of the plan")


def _all_steps(run: RunRecord) -> Sequence[StepRecord]:
    """Return the recorded steps and the plan's steps without a record yet, in the plan's order, clean-up last."""
    recorded = {step.step_id for step in run.steps}
    planned = run.plan.steps if run.plan is not None else ()
    order = {step.id: n for n, step in enumerate(planned)}
    pending = StepStatus.SKIPPED if run.status.final else StepStatus.PENDING
    missing = [
        StepRecord(step_id=s.id, title=s.title, status=pending) for s in planned if s.id not in recorded
    ]
    if not missing:
        return run.steps
    forward = [*(step for step in run.steps if not step.compensating), *missing]
    forward.sort(key=lambda step: (order.get(step.step_id, len(order)), step.attempt))
    return (*forward, *(step for step in run.steps if step.compensating))


def _step_line(step: StepRecord, now: float) -> str:
    """Return sign, title, the first line of the summary, and the duration."""
    notes = [
        "clean-up" if step.compensating else "",
        f"attempt {step.attempt}" if step.attempt > 1 else "",
        "resumed after a restart" if step.executions > 1 else "",
    ]
    noted = ", ".join(filter(None, notes))
    running, failed = step.status is StepStatus.RUNNING, step.status is StepStatus.FAILED
    tail = [
        f"{step.progress * 100:.0f} %" if running and step.progress is not None else "",
        one_line(first_line(step.summary), 260),
        f"Next: {one_line(step.next_action, 200)}" if failed and step.next_action else "",
        _took(step, now),
    ]
    details = " · ".join(filter(None, tail))
    title = f"{STEP_SIGNS[step.status]} *{one_line(step.title, 100)}*"
    return title + (f" ({noted})" if noted else "") + (f" - {details}" if details else "")


def _took(step: StepRecord, now: float) -> str:
    if step.started_at is None:
        return ""
    if step.ended_at is not None:
        return duration(step.ended_at - step.started_at)
    return f"for {duration(now - step.started_at)}" if step.status is StepStatus.RUNNING else ""


def _planned_line(label: str, step: Step) -> str:
    expected = f" · about {duration(step.expected_s)}" if step.expected_s else ""
    reads = "" if step.mutates else " · read only"
    return f"{label} *{one_line(step.title, 160)}*{expected}{reads}"
