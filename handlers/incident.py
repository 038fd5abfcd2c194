"""`/incident open|status|note|timeline|report|close [host]`: the incident's thread and its record."""

from functools import partial

from bot.presenter import incidents as texts
from bot.slack.posts import post
from bot.store.records import IncidentRecord, Place, UserError
from handlers import incident_record
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
    incident = services.incidents.open(host=host, title=title, place=place, by=call.person)
    await call.answer(texts.accepted_open(incident))


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


async def _close(call: Call, words: Words) -> None:
    host = host_of(call, words)
    services = call.services
    await services.access.require(call.person, services.access.change_role, f"close the incident on {host}")
    incident = _active(call, host)
    if running := services.runs.list(host=host, active_only=True):
        ids = ", ".join(run.id for run in running)
        raise UserError(
            f"{incident.id} stays open: {ids} still running on {host}. Wait for the end, or stop it first."
        )
    closed = services.incidents.close(incident.id, by=call.person)
    if closed.place.thread_ts is not None:
        message = texts.closed(closed, call.person, call.context)
        await post(call.client, message, closed.place)
    where = await services.reports.publish(closed, by=call.person)
    await call.answer(texts.accepted_close(closed, where))


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
    if first.lower() in call.services.hosts:
        return first.lower(), " ".join(split(rest))
    return call.services.settings.default_host.name, " ".join(split(text))


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
        "close [host]": "close it, and post its report",
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
