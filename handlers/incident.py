"""`/incident open|status|note|timeline|close [host]`: the incident's record, kept while people work."""

from bot.presenter import incidents as texts
from bot.presenter.help import SubcommandHelp
from bot.store.records import IncidentRecord, Place, UserError
from handlers.arguments import Grammar, Words, split
from handlers.call import Call, permalink
from handlers.command import Command, host_of

TIMELINE_LINES = 100


class IncidentCommand(Command):
    """Like the other commands, but what stands behind `note` and `open` is free text."""

    async def run(self, call: Call, text: str) -> None:
        """Parse and do. Raises UserError for words that are not understood."""
        first, _, rest = text.strip().partition(" ")
        if first.lower() in ("note", "open") and rest.strip():
            host, free = _host_and_text(call, rest)
            work = note if first.lower() == "note" else open_incident
            await work(call.about(f"/incident {first.lower()}"), host, free)
            return
        await super().run(call, text)


async def open_incident(call: Call, host: str, title: str) -> None:
    """Open the incident of a host with a message of its own, whose thread it lives in."""
    services = call.services
    await services.access.require(call.person, services.access.change_role, f"open an incident on {host}")
    if (known := services.incidents.active(host)) is not None:
        url = await permalink(call.client, known.place.channel, known.place.thread_ts)
        await call.answer(texts.already_open(known, url))
        return
    title = title or f"{host} needs a look"
    message = texts.opened(host, title, call.person, call.view)
    posted = await call.client.chat_postMessage(
        channel=call.channel, text=message.text, blocks=list(message.blocks), thread_ts=call.thread_ts
    )
    place = Place(channel=call.channel, thread_ts=call.thread_ts or str(posted["ts"]))
    incident = services.incidents.open(host=host, title=title, place=place, by=call.person)
    await call.answer(texts.accepted_open(incident))


async def note(call: Call, host: str, text: str) -> None:
    """Put a line into the incident's timeline."""
    incident = _active(call, host)
    call.services.incidents.note(incident.id, by=call.person, text=text)
    await call.answer(texts.noted(incident, text))


async def _open(call: Call, words: Words) -> None:
    await open_incident(call, host_of(call, words), "")


async def _note(call: Call, words: Words) -> None:
    raise UserError("Say what to note: /incident note [host] WHAT HAPPENED.")


async def _status(call: Call, words: Words) -> None:
    host = host_of(call, words)
    incident = call.services.incidents.active(host)
    runs = call.services.runs.list(host=host, active_only=True)
    await call.answer(texts.status(incident, host, runs, call.view))


async def _timeline(call: Call, words: Words) -> None:
    incident = _active(call, host_of(call, words))
    entries = call.services.incidents.timeline(incident.id)
    await call.answer(texts.timeline(incident, entries[-TIMELINE_LINES:]))


async def _close(call: Call, words: Words) -> None:
    host = host_of(call, words)
    services = call.services
    await services.access.require(call.person, services.access.change_role, f"close the incident on {host}")
    incident = _active(call, host)
    running = services.runs.list(host=host, active_only=True)
    if running:
        ids = ", ".join(run.id for run in running)
        raise UserError(
            f"{incident.id} stays open: {ids} still at work on {host}. Wait for the end, or stop them first."
        )
    closed = services.incidents.close(incident.id, by=call.person)
    if closed.place.thread_ts is not None:
        message = texts.closed(closed, call.person, call.view)
        await call.client.chat_postMessage(
            channel=closed.place.channel,
            thread_ts=closed.place.thread_ts,
            text=message.text,
            blocks=list(message.blocks),
        )
    await call.answer(texts.accepted_close(closed))


def _active(call: Call, host: str) -> IncidentRecord:
    incident = call.services.incidents.active(host)
    if incident is None:
        raise UserError(f"No incident is open on {host}. To open one: /incident open {host} WHAT IS WRONG.")
    return incident


def _host_and_text(call: Call, rest: str) -> tuple[str, str]:
    """The host where the first word names one, and the rest as it was typed."""
    first, _, behind = rest.strip().partition(" ")
    if first.lower() in call.services.hosts:
        return first.lower(), " ".join(split(behind))
    return call.services.settings.default_host.name, " ".join(split(rest))


COMMAND = IncidentCommand(
    name="incident",
    summary="keeps the record of an incident: its thread, its runs, its timeline.",
    grammar=Grammar(
        name="incident", subcommands=("open", "status", "note", "timeline", "close"), takes_options=False
    ),
    usages=(
        SubcommandHelp("open [host] WHAT IS WRONG", "open one; its thread gathers everything"),
        SubcommandHelp("status [host]", "what is open and what is at work"),
        SubcommandHelp("note [host] TEXT", "put a line into the timeline"),
        SubcommandHelp("timeline [host]", "everything that happened, in order"),
        SubcommandHelp("close [host]", "close it"),
    ),
    subcommands={"open": _open, "status": _status, "note": _note, "timeline": _timeline, "close": _close},
)
