"""`/incident open|status|note|timeline|report|close [host]`: the incident's thread and its record."""

import json
from collections.abc import Mapping
from functools import partial

from bot.presenter import forms
from bot.presenter import incidents as texts
from bot.slack.posts import post
from bot.store.records import IncidentRecord, Place, UserError
from handlers import incident_record, modals
from handlers.arguments import Words, split
from handlers.call import Call, permalink
from handlers.command import Command, host_of

TIMELINE_LINES = 100


async def open_incident(call: Call, text: str) -> None:
    """Open the incident of a host with a message of its own, whose thread collects everything about it."""
    host, title = _host_and_text(call, text)
    services = call.services
    await services.access.require(call.person, services.access.change_role, f"open an incident on {host}")
    if (known := services.incidents.active(host)) is not None:
        url = await permalink(call.client, known.place.channel, known.place.thread_ts)
        await call.answer(texts.already_open(known, url))
        return
    title = title or f"{host} needs attention"
    message = texts.opened(host, title, call.person, call.context)
    ts = await post(call.client, message, Place(channel=call.channel, thread_ts=call.thread_ts))
    place = Place(channel=call.channel, thread_ts=call.thread_ts or ts)
    services.incidents.open(host=host, title=title, place=place, by=call.person)


async def note(call: Call, text: str) -> None:
    """Add a line to the incident's timeline."""
    host, line = _host_and_text(call, text)
    if not line:
        raise UserError(f"Say what to note: {call.slash('incident', 'note [host] WHAT HAPPENED')}.")
    incident = _active(call, host)
    call.services.incidents.note(incident.id, by=call.person, text=line)
    await call.answer(texts.noted(incident, line))


async def _status(call: Call, words: Words) -> None:
    host = host_of(call, words)
    incident = call.services.incidents.active(host)
    runs = call.services.runs.list(host=host, active_only=True)
    await call.answer(texts.status(incident, host, runs, call.context))


async def _timeline(call: Call, words: Words) -> None:
    incident = _active(call, host_of(call, words))
    entries = call.services.incidents.timeline(incident.id)
    await call.answer(texts.timeline(incident, entries[-TIMELINE_LINES:]))


async def closable(call: Call, host: str) -> IncidentRecord:
    """Return the open incident of a host. Raises UserError if it cannot be closed now, or not by this person."""
    services = call.services
    await services.access.require(call.person, services.access.change_role, f"close the incident on {host}")
    incident = _active(call, host)
    if running := services.runs.list(host=host, active_only=True):
        ids = ", ".join(run.id for run in running)
        raise UserError(
            f"{incident.id} stays open: {ids} still running on {host}. Wait for the end, or stop it first."
        )
    return incident


async def close(call: Call, host: str, *, cause: str = "", repair: str = "") -> None:
    """Close the incident of a host; the cause and the repair go into its timeline and its thread."""
    incident = await closable(call, host)
    for word, text in (("cause", cause), ("repair", repair)):
        if text:
            call.services.incidents.note(incident.id, by=call.person, text=f"{word}: {text}")
    closed = call.services.incidents.close(incident.id, by=call.person)
    call.services.alerts.work_on_pages()
    message = texts.closed(closed, call.person, call.context, cause=cause, repair=repair)
    await post(call.client, message, closed.place)
    where = await call.services.reports.publish(closed, by=call.person)
    await call.answer(texts.accepted_close(closed, where))


async def _close(call: Call, words: Words) -> None:
    """Ask for the cause and the repair, then close the incident; a mention closes it at once."""
    host = host_of(call, words)
    known = await closable(call, host)
    if not call.trigger_id:
        await close(call, host)
        return

    async def build() -> modals.View:
        about = json.dumps({"host": host, "channel": call.channel, "thread": call.thread_ts})
        return forms.close_view(known, callback=CLOSE_INCIDENT, metadata=about)

    instead = f"@{call.services.identity.name} incident close {host}"
    await modals.show(call, "Close the incident", build, otherwise=forms.no_form(instead))


async def _closed(call: Call, about: modals.View, values: modals.Values) -> None:
    host = str(about.get("host") or call.services.default_host())
    await close(call, host, cause=values.get(forms.CAUSE, ""), repair=values.get(forms.REPAIR, ""))


CLOSE_INCIDENT = "close_incident"
FORMS: Mapping[str, modals.Form] = {CLOSE_INCIDENT: modals.Form(submit=_closed)}


async def _report(call: Call, words: Words) -> None:
    """Post the report of the open incident of a host, or else of its last one."""
    host = host_of(call, words)
    incident = call.services.incidents.latest(host)
    if incident is None:
        raise UserError(f"There was no incident on {host} yet, so there is nothing to report.")
    await incident_record.report(call, incident)


async def severity(call: Call, text: str) -> None:
    host, word = _host_and_text(call, text)
    await incident_record.severity(call, _active(call, host), word)


async def role(name: str, call: Call, text: str) -> None:
    host, word = _host_and_text(call, text)
    await incident_record.role(call, _active(call, host), name, word)


def _active(call: Call, host: str) -> IncidentRecord:
    incident = call.services.incidents.active(host)
    if incident is None:
        how = call.slash("incident", f"open {host} WHAT IS WRONG")
        raise UserError(f"No incident is open on {host}. To open one: {how}.")
    return incident


def _host_and_text(call: Call, text: str) -> tuple[str, str]:
    """Split off a leading host name. Return `(host, rest)`, with the default host if none is named."""
    first, _, rest = text.partition(" ")
    name = first.lower().removeprefix("host=")
    if name in call.services.hosts:
        return name, " ".join(split(rest))
    return call.services.default_host(), " ".join(split(text))


COMMAND = Command(
    name="incident",
    summary="Keep the record of an incident: its thread, its runs, its timeline.",
    hint="open|status|note|timeline|report|close [host]",
    usages={
        "open [host] WHAT IS WRONG": "open one; its thread collects everything",
        "status [host]": "show the open incident and what is running",
        "note [host] TEXT": "add a line to the timeline",
        "timeline [host]": "show everything that happened, in order",
        "severity [host] SEV2": "say how bad it is, SEV1 (worst) to SEV5",
        "lead|scribe [host] [@PERSON]": "say who leads, and who writes; without a name: you",
        "report [host]": "post the report: summary, impact, timeline, deviations, follow-ups",
        "close [host]": "close it: a form asks for cause and repair; its report follows",
    },
    subcommands={"status": _status, "timeline": _timeline, "report": _report, "close": _close},
    free_text={
        "open": open_incident,
        "note": note,
        "severity": severity,
        "lead": partial(role, "lead"),
        "scribe": partial(role, "scribe"),
    },
    takes_options=False,
)
