"""Short answers that only one person sees: started, stopped, not allowed, not understood, failed."""

from collections.abc import Iterable, Sequence

from bot.presenter.message import Lines, Message, Part, compose, footnote, section
from bot.presenter.mrkdwn import capitalized, clock, code, duration, link, one_line, user, words
from bot.presenter.render_context import RenderContext
from bot.presenter.run_message import now_line, run_title, state_sign, state_word
from bot.presenter.verdict_card import verdict_of, verdict_title
from bot.presenter.vocabulary import VERDICT_SIGNS, action_name, count, diagnoses
from bot.store.records import RunRecord, RunStatus


def plain(text: str) -> Message:
    """Return a message of text that is escaped already."""
    return compose(text, [section(text)])


def refused(text: str) -> Message:
    return plain(f":no_entry: {one_line(text, 1200)}")


def accepted(text: str) -> Message:
    return plain(f":white_check_mark: {one_line(text, 1200)}")


def working(text: str) -> Message:
    return plain(f":hourglass_flowing_sand: {one_line(text, 300)}")


def broken(error_id: str, what: str) -> Message:
    """Report an internal error; the log holds its cause under the same id."""
    return plain(
        f":x: {capitalized(one_line(what, 200))} failed because of an error in the bot ({code(error_id)} in its log). "
        "It may have started: check `status` before you try again."
    )


def too_late(seconds: float, what: str) -> Message:
    return plain(
        f":hourglass: {capitalized(one_line(what, 200))} reached me {duration(seconds)} late, so I started nothing. "
        "Send it again if you still want it."
    )


def started(run: RunRecord, *, duplicate: bool, url: str) -> Message:
    """Answer a start: which run it is and where to follow it."""
    where = "in its thread" if run.place.thread_ts is not None else f"in <#{run.place.channel}>"
    follow = f"Follow it {link(url, 'here') if url else where}."
    verb = "was started already" if duplicate else "is starting"
    return plain(f"{action_name(run.action)} on {one_line(run.host)} ({code(run.id)}) {verb}. {follow}")


def status_message(
    run: RunRecord | None, action: str, host: str, context: RenderContext, *, url: str = ""
) -> Message:
    """Return the state of an action's latest run, or how to start one."""
    if run is None:
        name, start = action_name(action).lower(), context.start(action, host)
        return plain(f"No {name} has run on {one_line(host)} yet. To start one: {start}.")
    verdict = verdict_of(run) if diagnoses(action) and run.status.final else None
    if verdict is not None:
        first = f"{VERDICT_SIGNS[verdict.verdict]} {one_line(verdict_title(verdict, run.host))}"
        age = duration(context.now - (run.ended_at or run.created_at))
        second = f"{one_line(verdict.summary, 400)} ({age} ago)"
    else:
        first = f"{state_sign(run)} {one_line(run_title(run))}"
        second = now_line(run, context)
    text = f"{first}\n{second}"
    parts: list[Part] = [section(text)]
    if url:
        parts.append(footnote(link(url, "Its message")))
    return compose(text, parts)


def runs_message(runs: Sequence[RunRecord], context: RenderContext) -> Message:
    if not runs:
        return plain("Nothing is running.")
    return compose(
        count(len(runs), "run"), [Lines(tuple(run_line(run, context) for run in runs), noun="runs")]
    )


def run_line(run: RunRecord, context: RenderContext) -> str:
    age = duration(context.now - run.created_at)
    title = f"{action_name(run.action)} on {one_line(run.host)}"
    return f"{state_sign(run)} {code(run.id)} {title}: {state_word(run)}, {age} ago"


def approval_closed(run: RunRecord) -> str:
    """Return why a decision on this run is too early or too late, or an empty string while the run waits for one."""
    if run.status is RunStatus.WAITING:
        return ""
    state = {
        RunStatus.PLANNING: "is still being planned: wait for its plan",
        RunStatus.EXPIRED: "has expired without a decision; ask for it again",
        RunStatus.DENIED: "was denied",
    }.get(run.status, f"is over: {state_word(run)}" if run.status.final else f"is {state_word(run)}")
    who = [f"{user(d.user)} ({d.decision} at {clock(d.at)})" for d in run.decisions]
    return f"{code(run.id)} {state}." + (f" It was decided by {words(who)}." if who else "")


def waiting_runs(waiting: Iterable[RunRecord]) -> str:
    ids = [run.id for run in waiting]
    return f"Waiting for approval now: {words(ids)}." if ids else "No run is waiting for approval now."


def unknown_run(run_id: str, waiting: Iterable[RunRecord]) -> Message:
    return plain(f":no_entry: I know no run {code(run_id)}. {waiting_runs(waiting)}")


def outdated_button() -> Message:
    return plain(
        ":no_entry: This button belongs to an older version of the bot and no longer works. "
        "Use the newest message, or ask for `help`."
    )


def triage_outdated(newer: RunRecord, context: RenderContext) -> Message:
    """Answer a press of Start fallback on a card that a newer triage contradicts."""
    verdict = verdict_of(newer)
    says = verdict_title(verdict, newer.host) if verdict is not None else run_title(newer)
    return plain(
        f":no_entry: A newer triage ({code(newer.id)}) says {one_line(says)}, so this button started nothing. "
        f"To fall back anyway: {context.start('fallback', newer.host)}."
    )
