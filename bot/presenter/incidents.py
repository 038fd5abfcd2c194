"""The texts of incidents: opened, status, timeline, closed."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bot.presenter.message import Lines, Message, Part, compose, footnote, header, section
from bot.presenter.mrkdwn import ago, clip, clock, code, duration, link, one_line, user
from bot.presenter.private_answers import plain, run_line
from bot.presenter.render_context import RenderContext
from bot.presenter.run_message import run_title, state_sign
from bot.presenter.vocabulary import count
from bot.store.records import IncidentRecord, IncidentStatus, Person, RunRecord, TimelineEntry

if TYPE_CHECKING:
    from bot.incidents.report.model import IncidentFacts


MAX_ROOM_RUNS = 3


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


def room_name(incident: IncidentRecord) -> str:
    """Return the name of an incident's own channel, within Slack's rules: 80 lower-case characters."""
    words = re.sub(r"[^a-z0-9]+", "-", f"{incident.id}-{incident.host}-{incident.cause}".lower())
    return words.strip("-")[:80].rstrip("-")


def room_topic(incident: IncidentRecord) -> str:
    """Return the topic of an incident's own channel (Slack: 250 characters)."""
    state = "open" if incident.status is IncidentStatus.OPEN else "closed"
    return clip(f"{incident.title} on {incident.host}: {state} ({incident.id})", 250)


def room_status(incident: IncidentRecord, runs: Sequence[RunRecord], context: RenderContext) -> Message:
    """Return the pinned message of an incident's own channel: how it stands, what to do, the newest runs."""
    is_open = incident.status is IncidentStatus.OPEN
    first = f"INCIDENT: {incident.title} ({incident.host}){'' if is_open else ': closed'}"
    host = incident.host
    todo = (
        f"{context.command('incident', f'status {host}')}, or {context.command('incident', f'close {host}')}"
    )
    lines = [f"{state_sign(run)} {one_line(run_title(run))} ({code(run.id)})" for run in runs[:MAX_ROOM_RUNS]]
    true = (
        ":rotating_light: Everything about it goes into this channel."
        if is_open
        else ":white_check_mark: It is over."
    )
    parts: list[Part] = [
        header(first),
        section(f"{true}\n*Next:* {todo}." if is_open else f"{true} Its report is in this channel."),
        Lines(tuple(lines), noun="runs"),
        footnote(f"opened by {user(incident.opened_by)} {ago(incident.opened_at)} · {code(incident.id)}"),
    ]
    return compose(one_line(first), parts)


def room_opened(incident: IncidentRecord, channel: str, missing: Sequence[str]) -> Message:
    """Return the pointer in the old thread, with what Slack refused to do in the new channel."""
    text = f":arrow_right: {code(incident.id)} goes on in <#{channel}>."
    lines = tuple(f":warning: {one_line(problem, 200)}" for problem in missing)
    return compose(text, [section(text), Lines(lines, noun="problems")])


def no_room(incident: IncidentRecord, problem: str) -> Message:
    """Return the answer in the thread if Slack refuses a channel."""
    return plain(
        f":warning: {code(incident.id)} has no channel of its own: {one_line(problem, 200)}. This thread is used."
    )


def no_bookmark() -> Message:
    return plain(
        ":warning: Slack refused the bookmark (bookmarks.add, needs bookmarks:write); the report is pinned."
    )


def already_open(incident: IncidentRecord, url: str) -> Message:
    where = f" {link(url, 'Its thread')}." if url else ""
    return plain(
        f":no_entry: {one_line(incident.host)} already has an open incident, {code(incident.id)}: "
        f"{one_line(incident.title)}.{where}"
    )


def noted(incident: IncidentRecord, text: str) -> Message:
    return plain(f":white_check_mark: Noted in {code(incident.id)}: {one_line(text, 300)}")


def quoted(incident: IncidentRecord, text: str) -> Message:
    return plain(f":memo: Recorded in {code(incident.id)}: {one_line(text, 300)}")


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


def report(facts: "IncidentFacts", *, canvas: str = "") -> Message:
    """Return the message above a report's files: how it stands, the summary, what is left to do, the link of its canvas."""
    incident = facts.incident
    state = "is closed" if incident.status is IncidentStatus.CLOSED else "is still open"
    first = f"REPORT: {incident.title} ({incident.id} {state})"
    lines = tuple(one_line(sentence, 300) for sentence in facts.summary)
    left = f"{count(len(facts.follow_ups), 'follow-up')}, {count(len(facts.deviations), 'deviation')} from the runbook"
    it = link(canvas, "the canvas") if canvas else "it"
    files = "the page with its charts, and JSON," if canvas else "Markdown, HTML and JSON"
    return compose(
        one_line(first),
        [
            header(first),
            section(f"*What to do:* read {it}, correct it, and work through the follow-ups ({left})."),
            Lines(lines, noun="sentences"),
            footnote(f"report of {clock(facts.made_at, with_date=True)}; {files} below"),
        ],
    )
