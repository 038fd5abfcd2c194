"""The texts of incidents: opened, status, timeline, closed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bot.presenter.message import Lines, Message, compose, footnote, header, section
from bot.presenter.mrkdwn import ago, clock, code, duration, link, one_line, user
from bot.presenter.private_answers import plain, run_line
from bot.presenter.render_context import RenderContext
from bot.presenter.vocabulary import count
from bot.store.records import IncidentRecord, IncidentStatus, Person, RunRecord, TimelineEntry

if TYPE_CHECKING:
    from bot.incidents.report.facts import IncidentFacts


def opened(host: str, title: str, by: Person, context: RenderContext) -> Message:
    """Return the first message of an incident's thread."""
    first = f"INCIDENT: {title} ({host})"
    return compose(
        one_line(first),
        [
            header(first),
            section(
                f"*Next:* {context.command('triage', host)} for a verdict. Everything goes into this thread."
            ),
            footnote(f"opened by {user(by)} {ago(context.now)}"),
        ],
    )


def already_open(incident: IncidentRecord, url: str) -> Message:
    where = f" {link(url, 'Its thread')}." if url else ""
    return plain(
        f":no_entry: {one_line(incident.host)} already has an open incident, {code(incident.id)}: "
        f"{one_line(incident.title)}.{where}"
    )


def noted(incident: IncidentRecord, text: str) -> Message:
    return plain(f":white_check_mark: Noted in {code(incident.id)}: {one_line(text, 300)}")


def status(
    incident: IncidentRecord | None, host: str, runs: Sequence[RunRecord], context: RenderContext
) -> Message:
    """Return the open incident of a host and its running runs."""
    if incident is None:
        first = f"No incident is open on {one_line(host)}."
    else:
        age = duration(context.now - incident.opened_at)
        cause = f" Cause: {one_line(incident.cause)}." if incident.cause else ""
        first = f":rotating_light: {code(incident.id)} on {one_line(host)}, open for {age}: {one_line(incident.title)}.{cause}"
    lines = tuple(run_line(run, context) for run in runs) or ("Nothing is running there.",)
    return compose(first, [section(first), Lines(lines, noun="runs")])


def timeline(incident: IncidentRecord, entries: Sequence[TimelineEntry]) -> Message:
    """Return what happened, in order; if it is too long, the latest lines."""
    first = f"Timeline of {code(incident.id)} on {one_line(incident.host)}"
    lines = tuple(f"{clock(e.at)} *{one_line(e.actor, 60)}* {one_line(e.text, 300)}" for e in entries)
    shown = Lines(lines or ("Nothing has happened yet.",), noun="entries", drop="start")
    return compose(first, [section(f"*{first}*"), shown])


def closed(
    incident: IncidentRecord, by: Person, context: RenderContext, *, cause: str = "", repair: str = ""
) -> Message:
    """Return the last message of an incident: how long it took, its cause and its repair."""
    took = duration((incident.closed_at or context.now) - incident.opened_at)
    lines = [f":white_check_mark: Closed by {user(by)} after {took}: {one_line(incident.title)}"]
    lines += [f"*Cause:* {one_line(cause, 500)}"] if cause else []
    lines += [f"*Repair:* {one_line(repair, 500)}"] if repair else []
    text = "\n".join(lines)
    return compose(text, [section(text), footnote(code(incident.id))])


def accepted_close(incident: IncidentRecord, kept_at: str) -> Message:
    """Return the answer to a close. `kept_at` is where the report is if Slack did not take it."""
    where = f"written to {code(kept_at)} on the bot's host" if kept_at else "in its thread and pinned"
    return plain(f":white_check_mark: Incident {code(incident.id)} is closed. Its report is {where}.")


def decided(incident: IncidentRecord, what: str) -> Message:
    return plain(f":white_check_mark: Recorded in {code(incident.id)}: {what}.")


def reported(incident: IncidentRecord, kept_at: str) -> Message:
    """Return the answer to a request for a report. `kept_at` is set if Slack did not take it."""
    if kept_at:
        where = f"On the bot's host: {code(kept_at)}."
        return plain(
            f":warning: The report of {code(incident.id)} is written, but Slack did not take it. {where}"
        )
    return plain(f":white_check_mark: The report of {code(incident.id)} is in its thread and pinned.")


def report(facts: "IncidentFacts") -> Message:
    """Return the message above a report's files: how it stands, the summary, what is left to do."""
    incident = facts.incident
    state = "is closed" if incident.status is IncidentStatus.CLOSED else "is still open"
    first = f"REPORT: {incident.title} ({incident.id} {state})"
    lines = tuple(one_line(sentence, 300) for sentence in facts.summary)
    left = f"{count(len(facts.follow_ups), 'follow-up')}, {count(len(facts.deviations), 'deviation')} from the runbook"
    return compose(
        one_line(first),
        [
            header(first),
            section(f"*What to do:* read it, correct it, and work through the follow-ups ({left})."),
            Lines(lines, noun="sentences"),
            footnote(f"report of {clock(facts.made_at, with_date=True)}; Markdown, HTML and JSON below"),
        ],
    )
