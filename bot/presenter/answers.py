"""The short answers to one person: started, stopped, not allowed, not understood, broken. One clear line each."""

from collections.abc import Iterable, Sequence

from bot.presenter.message import Lines, Message, Part, compose, context, header, section
from bot.presenter.mrkdwn import clock, code, duration, link, one_line, user, words
from bot.presenter.run_message import now_line, run_title, state_sign, state_word
from bot.presenter.verdict_card import verdict_of, verdict_title
from bot.presenter.view import VERDICT_SIGNS, View, action_name, diagnoses, start_words
from bot.store.records import RunRecord, RunStatus


def plain(text: str) -> Message:
    """A text that is escaped already, or ours."""
    return compose(text, [section(text)])


def refused(text: str) -> Message:
    """What cannot be done, from an error made for people: escaped here."""
    return plain(f":no_entry: {one_line(text, 1200)}")


def accepted(text: str) -> Message:
    return plain(f":white_check_mark: {one_line(text, 1200)}")


def broken(error_id: str, what: str) -> Message:
    """An error of ours. The id stands in the log beside its cause."""
    return plain(
        f":x: {one_line(what, 200)} hit an error of the bot's own ({code(error_id)}; its log has the cause under this id). "
        "Look with `status` before you try again: it may have started."
    )


def too_late(seconds: float, what: str) -> Message:
    return plain(
        f":hourglass: {one_line(what, 200)} reached me {duration(seconds)} late and Slack had told you that it failed, "
        "so I started nothing. Please send it again."
    )


def started(run: RunRecord, *, duplicate: bool, url: str, in_thread: bool) -> Message:
    """The answer to a start: which run, and where it can be watched."""
    name = f"{action_name(run.action)} on {one_line(run.host)}"
    where = "in the incident's thread" if in_thread else "in this channel"
    follow = f"Follow it {link(url, 'here')}." if url else f"Follow it {where}."
    verb = "was already asked for" if duplicate else "is on its way"
    return plain(f"{name} ({code(run.id)}) {verb}. {follow}")


def working(text: str) -> Message:
    return plain(f":hourglass_flowing_sand: {one_line(text, 300)}")


def status_message(run: RunRecord | None, action: str, host: str, view: View, *, url: str = "") -> Message:
    """Where the latest run of an action stands, or that there is none."""
    if run is None:
        how = view.command(action, start_words(action, host))
        return plain(
            f"No {action_name(action).lower()} has run on {one_line(host)} yet. To start one: {how}."
        )
    if diagnoses(action) and run.status.final and (verdict := verdict_of(run)) is not None:
        first = f"{VERDICT_SIGNS[verdict.verdict]} {one_line(verdict_title(verdict, run.host))}"
        ended = run.ended_at or run.created_at
        second = f"{one_line(verdict.summary, 400)} ({duration(view.now - ended)} ago)"
    else:
        first = f"{state_sign(run)} {one_line(run_title(run))}"
        second = now_line(run, view)
    parts: list[Part] = [section(f"{first}\n{second}")]
    if url:
        parts.append(context(link(url, "Its message")))
    return compose(f"{first}\n{second}", parts)


def runs_message(runs: Sequence[RunRecord], view: View) -> Message:
    """Several runs, one line each."""
    if not runs:
        return plain("Nothing is running.")
    return compose(f"{len(runs)} runs", [Lines(tuple(run_line(run, view) for run in runs), noun="runs")])


def run_line(run: RunRecord, view: View) -> str:
    at = f", {duration(view.now - run.created_at)} ago"
    return f"{state_sign(run)} {code(run.id)} {action_name(run.action)} on {one_line(run.host)}: {state_word(run)}{at}"


def gate_closed(run: RunRecord, view: View) -> str:
    """Why a decision on this run comes too late or too early, in one line; empty while it waits."""
    if run.status is RunStatus.WAITING:
        return ""
    who = [f"{user(d.user)} ({d.decision} at {clock(d.at)})" for d in run.decisions]
    decided = f" It was decided by {words(who)}." if who else ""
    state = {
        RunStatus.PLANNING: "is still being planned: wait for its plan",
        RunStatus.EXPIRED: "has expired without a decision; ask for it again",
        RunStatus.DENIED: "was denied",
    }.get(run.status, f"is {state_word(run)}")
    return f"{code(run.id)} {state}.{decided}"


def unknown_run(run_id: str, waiting: Iterable[RunRecord]) -> Message:
    ids = [code(run.id) for run in waiting]
    hint = f" Waiting now: {words(ids)}." if ids else " No run waits for an approval now."
    return plain(f":no_entry: I know no run {code(run_id)}.{hint}")


def outdated_button() -> Message:
    return plain(
        ":no_entry: This button is of an older version of mine and does nothing any more. Use the newest message, or `help`."
    )


def triage_outdated(newer: RunRecord, view: View) -> Message:
    """The answer to "Start fallback" on a card that a newer triage has overtaken."""
    verdict = verdict_of(newer)
    says = verdict_title(verdict, newer.host) if verdict is not None else run_title(newer)
    return plain(
        f":no_entry: A newer triage ({code(newer.id)}) says {one_line(says)}, so this button started nothing. "
        f"If you want it all the same: {view.command('fallback', f'start {newer.host}')}."
    )


def titled(title: str, lines: Sequence[str], noun: str = "lines") -> Message:
    return compose(title, [header(title), Lines(tuple(lines), noun=noun)])
