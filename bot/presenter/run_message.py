"""The one message of a run, edited live: its state first, then what is happening or what to do, then the steps.

`run_message` is pure. A triage run with a verdict becomes the verdict card.
"""

from collections.abc import Iterator

from bot.presenter.approval_request import approval_blocks
from bot.presenter.message import (
    Block,
    Lines,
    Message,
    Part,
    actions,
    button,
    compose,
    footnote,
    header,
    section,
)
from bot.presenter.mrkdwn import capitalized, clock, code, duration, first_line, link, one_line, size, user
from bot.presenter.render_context import RenderContext
from bot.presenter.steps import failed_step, plan_lines, position, running_step, step_lines
from bot.presenter.verdict_card import verdict_card, verdict_of
from bot.presenter.vocabulary import action_name, count, diagnoses
from bot.store.records import RunRecord, RunStatus, StepRecord, StepStatus

STOP = "stop"
HOLD = "hold"
NEXT = "next"
ABORT = "abort"
STEERED = frozenset({"restore.shift", "restore.compare"})
"""The steps that listen to `hold`, `next` and `abort`."""

_STATES = {
    RunStatus.PLANNING: (":hourglass_flowing_sand:", "planning"),
    RunStatus.WAITING: (":raised_hand:", "waiting for approval"),
    RunStatus.QUEUED: (":hourglass_flowing_sand:", "queued"),
    RunStatus.RUNNING: (":hourglass_flowing_sand:", "running"),
    RunStatus.SETTLING: (":warning:", "cleaning up"),
    RunStatus.SUCCEEDED: (":white_check_mark:", "done"),
    RunStatus.FAILED: (":x:", "failed"),
    RunStatus.CANCELLED: (":octagonal_sign:", "stopped"),
    RunStatus.REFUSED: (":no_entry:", "refused"),
    RunStatus.DENIED: (":no_entry_sign:", "denied"),
    RunStatus.EXPIRED: (":alarm_clock:", "expired"),
}


def run_message(run: RunRecord, context: RenderContext) -> Message:
    """Return the message of a run in its current state."""
    verdict = verdict_of(run) if diagnoses(run.action) else None
    if verdict is not None and run.status.final:
        return verdict_card(run, verdict, context, links=_artifact_links(run), footer=_footer(run, context))
    title = run_title(run)
    now = now_line(run, context)
    problems = tuple(f":small_red_triangle: {one_line(problem, 500)}" for problem in run.problems)
    waiting = run.status is RunStatus.WAITING and run.plan is not None
    buttons = _buttons(run)
    parts: list[Part] = [
        header(title),
        section(f"{state_sign(run)} {now}"),
        Lines(problems, noun="problems"),
        *_what_it_costs(run),
        Lines(tuple(_what_clients_saw(run, now)), noun="lines on clients"),
        *approval_blocks(run, context),
        plan_lines(run.plan) if waiting and run.plan is not None else step_lines(run, context.now),
        *([buttons] if buttons else []),
        _artifact_links(run),
        _footer(run, context),
    ]
    return compose(f"{title}\n{now}", parts)


def run_title(run: RunRecord) -> str:
    """Return the header: `Fallback on demo: running (fb-7k2m)`."""
    return f"{action_name(run.action)} on {run.host}: {state_word(run)} ({run.id})"


def state_word(run: RunRecord) -> str:
    return "done, with warnings" if _has_warnings(run) else _STATES[run.status][1]


def state_sign(run: RunRecord) -> str:
    return ":warning:" if _has_warnings(run) else _STATES[run.status][0]


def _has_warnings(run: RunRecord) -> bool:
    succeeded = run.status is RunStatus.SUCCEEDED
    return succeeded and any(step.status is StepStatus.WARNING for step in run.steps)


def now_line(run: RunRecord, context: RenderContext) -> str:
    """Return the second line: what is happening now, or how the run ended and what to do next."""
    match run.status:
        case RunStatus.PLANNING:
            return "Reading the host to make the plan. Nothing has changed yet."
        case RunStatus.WAITING:
            gate = run.plan.gate if run.plan is not None else None
            who = context.role(gate.approvers) if gate is not None else "an approver"
            return f"Waiting for {count(run.short_of_approvals, 'approval')} from {who}. Nothing has changed yet."
        case RunStatus.QUEUED:
            return f"Queued: starts as soon as {one_line(run.host)} is free."
        case RunStatus.RUNNING:
            step = running_step(run)
            return "Between two steps." if step is None else _step_now(run, step)
        case RunStatus.SETTLING:
            step, failed = running_step(run), failed_step(run)
            why = "" if failed is None else f"{_failure(failed, 200)}. "
            doing = "" if step is None else f" {_step_now(run, step)}"
            return f"{why}Returning the host to a defined state.{doing}"
        case _:
            return _ended(run, context)


def _step_now(run: RunRecord, step: StepRecord) -> str:
    place = position(run, step)
    progress = f" {step.progress * 100:.0f} %." if step.progress is not None else ""
    summary = one_line(first_line(step.summary), 300)
    return f"{f'Step {place}: ' if place else ''}*{one_line(step.title, 150)}*{progress}{f' {summary}' if summary else ''}"


def _failure(step: StepRecord, limit: int) -> str:
    return f"{one_line(step.title, 120)} failed: {one_line(first_line(step.summary), limit)}".rstrip(".")


def _ended(run: RunRecord, context: RenderContext) -> str:
    outcome = one_line(run.outcome, 700) or _outcome(run)
    if not outcome.startswith("tp "):  # the tier's name stays in lower case
        outcome = capitalized(outcome)
    next_action = one_line(run.next_action, 500)
    if not next_action and run.status in (RunStatus.EXPIRED, RunStatus.DENIED):
        next_action = f"To ask again: {context.start(run.action, run.host)}."
    return f"{outcome}\n*Next:* {next_action}" if next_action else outcome


def _outcome(run: RunRecord) -> str:
    failed = failed_step(run)
    match run.status:
        case RunStatus.SUCCEEDED:
            last = next((s for s in reversed(run.steps) if s.summary), None)
            return one_line(first_line(last.summary), 500) if last is not None else "Done."
        case RunStatus.FAILED if failed is not None:
            return _failure(failed, 500)
        case RunStatus.REFUSED:
            return "The plan cannot work. Nothing was changed."
        case RunStatus.DENIED:
            return "Denied. Nothing was changed."
        case RunStatus.EXPIRED:
            return "Nobody approved it in time. Nothing was changed."
        case RunStatus.CANCELLED:
            return "Stopped."
        case _:
            return "Failed."


def _what_it_costs(run: RunRecord) -> tuple[Part, ...]:
    """Return the plan's warnings while it is active, and what is lost while it waits."""
    if run.plan is None or run.status.final:
        return ()
    return costs(run.plan.losses if run.status is RunStatus.WAITING else "", run.plan.warnings)


def costs(losses: str, warnings: tuple[str, ...]) -> tuple[Part, ...]:
    """Return what is lost and what to watch, one line each."""
    lost = (f"*What is lost:* {one_line(losses, 400)}",) if losses else ()
    return (
        Lines((*lost, *(f":warning: {one_line(warning, 400)}" for warning in warnings)), noun="warnings"),
    )


def _what_clients_saw(run: RunRecord, now: str) -> Iterator[str]:
    """Return what clients saw as the latest step counted it, unless the line on the run's end says so already."""
    for step in reversed(run.steps):
        clients = step.data.get("clients")
        if isinstance(clients, dict) and clients.get("text"):
            text = one_line(str(clients["text"]), 500)
            if text not in now and capitalized(text) not in now:
                yield f"*Clients:* {text}"
            return


def _buttons(run: RunRecord) -> Block | None:
    """Return Stop while the run is active, and Pause, Next stage now and Put it back while a step listens to them."""
    if run.status.final or run.status is RunStatus.SETTLING:
        return None
    buttons = []
    step = running_step(run)
    planned = run.plan.steps if run.plan is not None else ()
    if step is not None and any(p.id == step.step_id and p.verb in STEERED for p in planned):
        back = "All traffic goes back to the fallback tier at once."
        buttons = [
            button("Pause", HOLD, run.id),
            button("Next stage now", NEXT, run.id),
            button("Put it back", ABORT, run.id, style="danger", confirm=back),
        ]
    cleans_up = run.plan is not None and bool(run.plan.compensation)
    question = f"{action_name(run.action)} on {run.host} ends now." + (
        " The host is returned to a defined state." if cleans_up else ""
    )
    return actions(*buttons, button("Stop", STOP, run.id, style="danger", confirm=question))


def _artifact_links(run: RunRecord) -> Lines:
    """Return a link and a size per artifact; a link works even if its upload fails."""
    lines = (
        f":paperclip: {link(a.url, a.artifact.title or a.artifact.name)} {size(a.artifact.size_bytes)}"
        for a in run.artifacts
    )
    return Lines(tuple(lines), noun="files", small=True)


def _footer(run: RunRecord, context: RenderContext) -> Block:
    """Return who asked, when, how long it took, and the ids."""
    parts = [f"requested by {user(run.requester)} at {clock(run.created_at, with_date=True)}"]
    if run.started_at is not None and run.ended_at is not None:
        parts.append(f"took {duration(run.ended_at - run.started_at)}")
    elif run.started_at is not None:
        parts.append(f"running for {duration(context.now - run.started_at)}")
    if run.plan_hash:
        parts.append(f"plan {code(run.plan_hash)}")
    parts.append(code(run.id))
    return footnote(" · ".join(parts))
