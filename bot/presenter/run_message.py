"""The one message of a run, edited live: state first, what happens now or what to do second, then step by step.

`run_message` is pure: a record and a view in, a message out. A triage run with a verdict becomes the verdict card.
"""

from collections.abc import Mapping

from bot.presenter.gate import gate_blocks
from bot.presenter.message import (
    Block,
    Lines,
    Message,
    Part,
    actions,
    button,
    compose,
    context,
    header,
    section,
)
from bot.presenter.mrkdwn import clock, code, duration, first_line, link, one_line, size, user
from bot.presenter.steps import failed_step, plan_lines, position, running_step, step_lines
from bot.presenter.verdict_card import verdict_card, verdict_of
from bot.presenter.view import View, action_name, diagnoses, start_words
from bot.store.records import RunRecord, RunStatus, StepRecord, StepStatus

STOP = "stop"
HOLD = "hold"
NEXT = "next"
ABORT = "abort"
STEERED = frozenset({"restore.shift", "restore.compare"})
SIGNAL_BUTTONS: Mapping[str, str] = {HOLD: "Hold", NEXT: "Next stage now", ABORT: "Put it back"}

_SIGNS = {
    RunStatus.PLANNING: ":hourglass_flowing_sand:",
    RunStatus.WAITING: ":raised_hand:",
    RunStatus.QUEUED: ":hourglass_flowing_sand:",
    RunStatus.RUNNING: ":hourglass_flowing_sand:",
    RunStatus.SETTLING: ":warning:",
    RunStatus.SUCCEEDED: ":white_check_mark:",
    RunStatus.FAILED: ":x:",
    RunStatus.CANCELLED: ":octagonal_sign:",
    RunStatus.REFUSED: ":no_entry:",
    RunStatus.DENIED: ":no_entry_sign:",
    RunStatus.EXPIRED: ":alarm_clock:",
}
_STATES = {
    RunStatus.PLANNING: "planning",
    RunStatus.WAITING: "waiting for approval",
    RunStatus.QUEUED: "queued",
    RunStatus.RUNNING: "running",
    RunStatus.SETTLING: "cleaning up",
    RunStatus.SUCCEEDED: "done",
    RunStatus.FAILED: "failed",
    RunStatus.CANCELLED: "stopped",
    RunStatus.REFUSED: "refused",
    RunStatus.DENIED: "denied",
    RunStatus.EXPIRED: "expired",
}


def run_message(run: RunRecord, view: View) -> Message:
    """The message of a run as it stands now."""
    verdict = verdict_of(run) if diagnoses(run.action) else None
    if verdict is not None and run.status.final:
        return verdict_card(run, verdict, view, links=artifact_links(run), footer=footer(run, view))
    title = run_title(run)
    now = now_line(run, view)
    parts: list[Part] = [header(title), section(f"{state_sign(run)} {now}")]
    if run.problems:
        parts.append(
            Lines(tuple(f":small_red_triangle: {one_line(p, 500)}" for p in run.problems), noun="problems")
        )
    parts.extend(_what_it_costs(run))
    parts.extend(gate_blocks(run, view))
    if run.status is RunStatus.WAITING and run.plan is not None:
        parts.append(plan_lines(run.plan))
    else:
        parts.append(step_lines(run, view.now))
    if buttons := run_buttons(run):
        parts.append(buttons)
    parts.append(artifact_links(run))
    parts.append(footer(run, view))
    return compose(f"{title}\n{now}", parts)


def run_title(run: RunRecord) -> str:
    """The header: `Fallback on demo: running (fb-7k2m)`."""
    return f"{action_name(run.action)} on {run.host}: {state_word(run)} ({run.id})"


def state_word(run: RunRecord) -> str:
    if run.status is RunStatus.SUCCEEDED and has_warnings(run):
        return "done, with warnings"
    return _STATES[run.status]


def state_sign(run: RunRecord) -> str:
    if run.status is RunStatus.SUCCEEDED and has_warnings(run):
        return ":warning:"
    return _SIGNS[run.status]


def has_warnings(run: RunRecord) -> bool:
    return any(step.status is StepStatus.WARNING for step in run.steps)


def now_line(run: RunRecord, view: View) -> str:
    """The second line: what happens at this moment, or how it ended and what to do next."""
    match run.status:
        case RunStatus.PLANNING:
            return "Making the plan: looking at what is there. Nothing is changed yet."
        case RunStatus.WAITING:
            gate = run.plan.gate if run.plan is not None else None
            missing = run.short_of_approvals
            who = view.role(gate.approvers) if gate is not None else "an approver"
            return f"Waiting for {missing} approval{'' if missing == 1 else 's'} from {who}. Nothing is changed yet."
        case RunStatus.QUEUED:
            return f"Queued: starts as soon as {one_line(run.host)} is free."
        case RunStatus.RUNNING | RunStatus.SETTLING:
            return _at_work(run, view)
        case _:
            return _ended(run, view)


def _at_work(run: RunRecord, view: View) -> str:
    step = running_step(run)
    settling = run.status is RunStatus.SETTLING
    if step is None:
        return "Putting the host into a defined state." if settling else "Between two steps."
    place = position(run, step)
    progress = f" {step.progress * 100:.0f} %." if step.progress is not None else ""
    summary = one_line(first_line(step.summary), 300)
    line = f"{f'Step {place}: ' if place else ''}*{one_line(step.title, 150)}*{progress}{f' {summary}' if summary else ''}"
    if not settling:
        return line
    failed = failed_step(run)
    why = (
        f"{one_line(failed.title, 100)} failed: {one_line(first_line(failed.summary), 200)}. "
        if failed
        else ""
    )
    return f"{why}Putting the host into a defined state. {line}"


def _ended(run: RunRecord, view: View) -> str:
    outcome = one_line(run.outcome, 700) or _outcome(run)
    if not outcome.startswith("tp "):  # a step's line begins small, here it is a sentence
        outcome = outcome[:1].upper() + outcome[1:]
    next_action = one_line(run.next_action, 500)
    again = view.command(run.action, start_words(run.action, run.host))
    if not next_action and run.status in (RunStatus.EXPIRED, RunStatus.DENIED):
        next_action = f"To ask again: {again}."
    return f"{outcome}\n*Next:* {next_action}" if next_action else outcome


def _outcome(run: RunRecord) -> str:
    failed = failed_step(run)
    match run.status:
        case RunStatus.SUCCEEDED:
            last = next((s for s in reversed(run.steps) if s.summary), None)
            return one_line(first_line(last.summary), 500) if last is not None else "Done."
        case RunStatus.FAILED if failed is not None:
            return f"{one_line(failed.title, 120)}: {one_line(first_line(failed.summary), 500)}"
        case RunStatus.REFUSED:
            return "The plan cannot work; nothing was touched."
        case RunStatus.DENIED:
            return "Denied; nothing was touched."
        case RunStatus.EXPIRED:
            return "The approval was not given in time; nothing was touched."
        case RunStatus.CANCELLED:
            return "Stopped."
        case _:
            return "Failed."


def _what_it_costs(run: RunRecord) -> list[Part]:
    """Losses and warnings of the plan: while it waits, and for a run at work the warnings only."""
    if run.plan is None or run.status.final:
        return []
    return list(costs(run.plan.losses if run.status is RunStatus.WAITING else "", run.plan.warnings))


def costs(losses: str, warnings: tuple[str, ...]) -> tuple[Part, ...]:
    """What is lost and what to watch, one line each."""
    lines = [f":warning: {one_line(warning, 400)}" for warning in warnings]
    if losses:
        lines.insert(0, f"*What is lost:* {one_line(losses, 400)}")
    return (Lines(tuple(lines), noun="warnings"),) if lines else ()


def run_buttons(run: RunRecord) -> Block | None:
    """Stop while it is active; hold, next and abort while a step listens to them."""
    if run.status.final or run.status is RunStatus.SETTLING:
        return None
    buttons = []
    step = running_step(run)
    if step is not None and listens(run, step):
        buttons = [
            button(
                label,
                action_id,
                run.id,
                style="danger" if action_id == ABORT else None,
                confirm="All traffic goes back to the fallback tier at once." if action_id == ABORT else "",
            )
            for action_id, label in SIGNAL_BUTTONS.items()
        ]
    question = (
        f"{action_name(run.action)} on {run.host} ends, and the host is put into one defined state."
        if run.plan is not None and run.plan.compensation
        else f"{action_name(run.action)} on {run.host} ends now."
    )
    return actions(*buttons, button("Stop", STOP, run.id, style="danger", confirm=question))


def listens(run: RunRecord, step: StepRecord) -> bool:
    """Whether the step at work takes hold, next and abort: the steps of a restore that people steer."""
    planned = run.plan.steps if run.plan is not None else ()
    return any(p.id == step.step_id and p.verb in STEERED for p in planned)


def artifact_links(run: RunRecord) -> Lines:
    """One link an artifact, with its size: it goes out whether or not an upload works."""
    return Lines(
        tuple(
            f":paperclip: {link(a.url, a.artifact.title or a.artifact.name)} {size(a.artifact.size_bytes)}"
            for a in run.artifacts
        ),
        noun="files",
        small=True,
    )


def footer(run: RunRecord, view: View) -> Block:
    """Who asked, when, how long, which plan."""
    parts = [f"asked by {user(run.requester)} at {clock(run.created_at, with_date=True)}"]
    if run.started_at is not None:
        end = run.ended_at if run.ended_at is not None else view.now
        parts.append(
            f"{'took' if run.ended_at is not None else 'at work for'} {duration(end - run.started_at)}"
        )
    if run.plan_hash:
        parts.append(f"plan {code(run.plan_hash)}")
    parts.append(code(run.id))
    return context(" · ".join(parts))
