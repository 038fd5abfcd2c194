"""The one message of a run, edited live: its state first, then what is happening or what to do, then the buttons.

Finished steps are one line; every step, file and figure is behind the button Details. `run_message` is pure. A triage run
with a verdict becomes the verdict card.
"""

from collections.abc import Iterator

from bot.incidents.outage import card_lines
from bot.presenter.approval_request import decision_lines
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
from bot.presenter.mrkdwn import ago, capitalized, code, duration, first_line, gist, link, one_line, user
from bot.presenter.render_context import RenderContext
from bot.presenter.steps import failed_step, folded_lines, live_plan, position, running_step
from bot.presenter.verdict_card import DETAILS, verdict_card, verdict_of
from bot.presenter.vocabulary import action_name, count, diagnoses
from bot.store.records import RunRecord, RunStatus, StepRecord, StepStatus
from gpu_actions.serving.request_account import RequestAccount
from gpu_actions.tier.client_account import capacity_text

STOP = "stop"
HOLD = "hold"
NEXT = "next"
ABORT = "abort"
MAX_PROBLEMS = 2
MAX_FILES = 2
OUTCOME_WORDS = 20
CLIENT_WORDS = 20
FIGURE_WORDS = 60
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
        return verdict_card(run, verdict, context)
    title = run_title(run)
    now = now_line(run, context)
    is_working = run.status in (RunStatus.RUNNING, RunStatus.SETTLING) and bool(run.steps)
    first = now
    if is_working and run.status is RunStatus.RUNNING:
        first = first_line(now)  # the plan below says what the step reports
    parts: list[Part] = [
        header(title),
        section(f"{state_sign(run)} {first}"),
        Lines(tuple(_problems(run)), noun="problems"),
        *([buttons] if (buttons := _buttons(run)) else []),
        live_plan(run) if is_working else folded_lines(run),
        Lines(tuple(_what_clients_saw(run, now)), noun="lines on clients"),
        Lines(
            tuple(f"*{label}:* {gist(text, FIGURE_WORDS)}" for label, text in card_lines(run).items()),
            noun="figures",
        ),
        Lines(tuple(decision_lines(run)), noun="decisions", small=True),
        _footer(run, context),
    ]
    return compose(f"{title}\n{now}", parts)


def _problems(run: RunRecord) -> Iterator[str]:
    """Yield the first reasons why a plan was refused, and how many more there are."""
    if run.status is RunStatus.REFUSED:
        yield from (f":small_red_triangle: {gist(problem, 20)}" for problem in run.problems[:MAX_PROBLEMS])
        if (more := len(run.problems) - MAX_PROBLEMS) > 0:
            yield f"{more} more in Details"


def run_title(run: RunRecord) -> str:
    """Return the header: `Fallback on demo: running`."""
    return f"{action_name(run.action)} on {run.host}: {state_word(run)}"


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
            return f"{count(run.short_of_approvals, 'approval')} needed: see the request. Nothing has changed yet."
        case RunStatus.QUEUED:
            return f"Queued: starts as soon as {one_line(run.host)} is free."
        case RunStatus.RUNNING:
            step = running_step(run)
            return "Between two steps." if step is None else _step_now(run, step, context.now)
        case RunStatus.SETTLING:
            step, failed = running_step(run), failed_step(run)
            why = "" if failed is None else f"{_failure(failed, 15)}. "
            doing = "" if step is None else f"\n{_step_now(run, step, context.now)}"
            return f"{why}Returning the host to a defined state.{doing}"
        case _:
            return _ended(run, context)


def _step_now(run: RunRecord, step: StepRecord, now_s: float) -> str:
    place = position(run, step)
    progress = "" if step.progress is None else f" {step.progress * 100:.0f} %"
    took = "" if step.started_at is None else f" for {duration(now_s - step.started_at)}"
    resumed = ", resumed after a restart" if step.executions > 1 else ""
    summary = gist(first_line(step.summary), 15)
    first = f"{f'Step {place}: ' if place else ''}*{gist(step.title, 8)}*{progress}{took}{resumed}"
    return f"{first}\n{summary}" if summary else first


def _failure(step: StepRecord, words: int) -> str:
    return f"{gist(step.title, 8)} failed: {gist(first_line(step.summary), words)}".rstrip(".")


def _ended(run: RunRecord, context: RenderContext) -> str:
    outcome = gist(run.outcome, OUTCOME_WORDS) or _outcome(run)
    if not outcome.startswith("tp "):  # the tier's name stays in lower case
        outcome = capitalized(outcome)
    next_action = gist(run.next_action, OUTCOME_WORDS)
    if not next_action and run.status in (RunStatus.EXPIRED, RunStatus.DENIED):
        next_action = f"To ask again: {context.start(run.action, run.host)}."
    return f"{outcome}\n*Next:* {next_action}" if next_action else outcome


def _outcome(run: RunRecord) -> str:
    failed = failed_step(run)
    match run.status:
        case RunStatus.SUCCEEDED:
            last = next((s for s in reversed(run.steps) if s.summary), None)
            return gist(first_line(last.summary), OUTCOME_WORDS) if last is not None else "Done."
        case RunStatus.FAILED if failed is not None:
            return _failure(failed, OUTCOME_WORDS)
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


def costs(losses: str, warnings: tuple[str, ...]) -> tuple[Part, ...]:
    """Return what is lost and what to watch, one line each."""
    lost = (f"*What is lost:* {one_line(losses, 400)}",) if losses else ()
    return (
        Lines((*lost, *(f":warning: {one_line(warning, 400)}" for warning in warnings)), noun="warnings"),
    )


def _what_clients_saw(run: RunRecord, now: str) -> Iterator[str]:
    """Return what clients saw as the latest step counted it: how many requests ended how, and what is served now.

    Without an account its text says why, unless the line on the run's end says so already.
    """
    found = (step.data.get("clients") for step in reversed(run.steps))
    clients = next((one for one in found if isinstance(one, dict) and one.get("text")), None)
    if clients is None:
        return
    if not clients.get("account"):
        text = gist(str(clients["text"]), CLIENT_WORDS)
        if text not in now and capitalized(text) not in now:
            yield f"*Clients:* {text}"
        return
    account = RequestAccount.model_validate(clients["account"], extra="ignore")
    yield f"*Clients:* {_endings(account)}"
    if capacity := capacity_text(account, clients.get("served_per_s")):
        yield f"*Capacity:* {capacity}"


def _endings(account: RequestAccount) -> str:
    """Return the counts of the router's record, those that matter most first."""
    parts = [
        f"{account.aborted} cut" if account.aborted else "",
        f"{account.failed} failed" if account.failed else "",
        f"{account.refused} refused" if account.refused else "",
        f"{account.resent} retried on the other tier" if account.resent else "",
        f"{account.finished} finished",
    ]
    if account.incomplete:
        parts.append("the record is not complete: there may be more")
    elif not account.lost:
        parts.insert(0, "none lost")
    gap = account.without_answer
    if gap is not None and gap.seconds >= 1:
        parts.append(f"{gap.seconds:.0f} s without an answer")
    return ", ".join(filter(None, parts))


def _buttons(run: RunRecord) -> Block | None:
    """Return the buttons that act now: Details; Stop while the run is active; three more while a step listens to them."""
    buttons = [button("Details", DETAILS, run.id)] if run.plan or run.steps or len(run.problems) > 1 else []
    if not run.status.final and run.status is not RunStatus.SETTLING:
        buttons += [*_steering(run), _stop(run)]
    return actions(*buttons) if buttons else None


def _steering(run: RunRecord) -> list[Block]:
    step = running_step(run)
    planned = run.plan.steps if run.plan is not None else ()
    if step is None or not any(p.id == step.step_id and p.verb in STEERED for p in planned):
        return []
    back = "All traffic goes back to the fallback tier at once."
    return [
        button("Pause", HOLD, run.id),
        button("Next stage now", NEXT, run.id),
        button("Put it back", ABORT, run.id, style="danger", confirm=back),
    ]


def _stop(run: RunRecord) -> Block:
    cleans_up = run.plan is not None and bool(run.plan.compensation)
    question = f"{action_name(run.action)} on {run.host} ends now."
    question += " The host is returned to a defined state." if cleans_up else ""
    return button("Stop", STOP, run.id, style="danger", confirm=question)


def _footer(run: RunRecord, context: RenderContext) -> Block:
    """Return the newest files, who asked, how long ago, how long it took, and the ids."""
    # A picture is in the thread itself once it is uploaded; until then, and if Slack refuses it, the link leads to it.
    shown = [a for a in run.artifacts if not (a.artifact.inline and a.slack_file_id)][-MAX_FILES:]
    parts = [link(a.url, gist(a.artifact.title or a.artifact.name, 3)) for a in shown]
    if more := len(run.artifacts) - len(shown):
        parts.append(f"{count(more, 'more file')} in Details" if shown else count(more, "file"))
    parts.append(f"{user(run.requester)} {ago(run.created_at)}")
    if run.started_at is not None and run.ended_at is not None:
        parts.append(f"took {duration(run.ended_at - run.started_at)}")
    elif run.started_at is not None:
        parts.append(f"running for {duration(context.now - run.started_at)}")
    if run.plan_hash:
        parts.append(f"plan {code(run.plan_hash)}")
    return footnote(" · ".join((*parts, code(run.id))))
