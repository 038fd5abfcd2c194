"""`/incident report|severity|lead|scribe`: the incident's report, and what people decide about the incident itself."""

import re

from bot.presenter import incidents as texts
from bot.store.records import IncidentRecord, UserError
from handlers.call import Call

SEVERITY = re.compile(r"^sev-?([1-5])$", re.IGNORECASE)
MENTION = re.compile(r"^<@([A-Z0-9]+)(?:\|([^>]*))?>$")


async def report(call: Call, incident: IncidentRecord) -> None:
    """Post the report of an incident in its thread: at any time, also after its end."""
    services = call.services
    where = await services.reports.publish(incident, by=call.person)
    await call.answer(texts.reported(incident, where))


async def severity(call: Call, incident: IncidentRecord, word: str) -> None:
    """Set the severity of an open incident: SEV1 (worst) to SEV5."""
    found = SEVERITY.match(word.strip())
    if found is None:
        how = call.slash("incident", "severity SEV2")
        raise UserError(f"{word.strip()[:40]!r} is no severity. Use SEV1 (worst) to SEV5: {how}.")
    services = call.services
    await services.access.require(
        call.person, services.access.change_role, f"set the severity of {incident.id}"
    )
    level = f"SEV{found[1]}"
    call.services.incidents.decide(
        incident.id, by=call.person, what="severity", text=f"severity {level}", severity=level
    )
    await call.answer(texts.decided(incident, f"severity {level}"))


async def role(call: Call, incident: IncidentRecord, name: str, word: str) -> None:
    """Name the lead or the scribe of an open incident: `me`, or a mention."""
    services = call.services
    await services.access.require(
        call.person, services.access.change_role, f"name the {name} of {incident.id}"
    )
    found = MENTION.match(word.strip())
    if found is not None:
        user_id, shown = found[1], found[2] or found[1]
    elif word.strip().lower() in ("me", ""):
        user_id, shown = call.person.id, call.person.name or call.person.id
    else:
        raise UserError(f"Say who: {call.slash('incident', f'{name} me')}, or mention a person.")
    services.incidents.decide(
        incident.id, by=call.person, what=name, text=f"{shown} is the {name}", name=shown, user=user_id
    )
    await call.answer(texts.decided(incident, f"<@{user_id}> is the {name}"))
