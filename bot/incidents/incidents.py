"""Incidents: a thread in a channel, the runs that belong to it, and its timeline. One open incident per host."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from bot.store.audit import append
from bot.store.records import IncidentRecord, IncidentStatus, Person, Place, TimelineEntry, UserError
from bot.store.schema import incidents
from bot.store.store import Store

QUOTE = "message"
"""A person's message that was taken into the record."""
ROOM = "incident.room"
"""The kind of the timeline entries about an incident's own channel."""


class Incidents:
    """The incidents in the store. Methods block for a millisecond or two."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def open(self, *, host: str, title: str, place: Place, by: Person, cause: str = "") -> IncidentRecord:
        """Open an incident of a host. Raise UserError if one is already open."""
        now = self._store.clock()
        for _ in range(20):
            incident_id = self._store.new_id("inc")
            if self.get(incident_id) is None:
                break
        try:
            with self._store.database.write() as connection:
                connection.execute(
                    incidents.insert().values(
                        id=incident_id,
                        host=host,
                        title=title,
                        cause=cause,
                        status=IncidentStatus.OPEN.value,
                        channel=place.channel,
                        thread_ts=place.thread_ts,
                        opened_by=by.model_dump(),
                        opened_at=now,
                    )
                )
                append(connection, self._entry(incident_id, host, by, "incident.open", title, cause=cause))
        except IntegrityError:
            known = self.active(host)
            raise UserError(
                f"{known.id if known else 'An incident'} is already open on {host}: add a note to it, or close it first."
            ) from None
        return self._existing(incident_id)

    def get(self, incident_id: str) -> IncidentRecord | None:
        """Return an incident, or None."""
        return self._one(incidents.c.id == incident_id)

    def active(self, host: str) -> IncidentRecord | None:
        """Return the open incident of a host, or None."""
        return self._one(incidents.c.host == host, incidents.c.status == IncidentStatus.OPEN.value)

    def newest(self, *, host: str | None = None, limit: int = 20) -> list[IncidentRecord]:
        """Return incidents, newest first."""
        query = incidents.select().order_by(incidents.c.opened_at.desc()).limit(limit)
        if host is not None:
            query = query.where(incidents.c.host == host)
        with self._store.database.read() as connection:
            return [_record(row) for row in connection.execute(query)]

    def latest(self, host: str) -> IncidentRecord | None:
        """Return the open incident of a host, or else its newest one."""
        return self.active(host) or self._one(incidents.c.host == host)

    def for_place(self, place: Place) -> IncidentRecord | None:
        """Return the newest open incident in a thread, or in the channel if the place has no thread."""
        conditions = [incidents.c.channel == place.channel, incidents.c.status == IncidentStatus.OPEN.value]
        if place.thread_ts is not None:
            conditions.append(incidents.c.thread_ts == place.thread_ts)
        return self._one(*conditions)

    def join(self, incident_id: str, run_id: str) -> IncidentRecord:
        """Make a run part of an incident, with its later timeline entries. Raise UserError if either is unknown."""
        incident = self._existing(incident_id)
        run = self._store.get(run_id)
        if run is None:
            raise UserError(f"I know no run {run_id!r}.")
        with self._store.change(run_id) as change:
            change.set(incident_id=incident_id)
            change.record(
                "incident.join",
                f"{run_id} ({run.action}) belongs to this incident",
                incident_id=incident_id,
            )
        return incident

    def note(self, incident_id: str, *, by: Person, text: str) -> None:
        """Add a person's note to the timeline. Raise UserError for an unknown incident or an empty text."""
        incident = self._existing(incident_id)
        if not text.strip():
            raise UserError("There is nothing to note: say what happened.")
        self._store.audit.record(self._entry(incident_id, incident.host, by, "note", text.strip()))

    def quote(self, incident_id: str, *, by: Person, text: str, ts: str, chosen_by: str) -> bool:
        """Record a person's message that others chose. Return False if it is in the record already."""
        incident = self._existing(incident_id)
        if any(one.kind == QUOTE and one.data.get("ts") == ts for one in self.timeline(incident_id)):
            return False
        self._store.audit.record(
            self._entry(incident_id, incident.host, by, QUOTE, text, ts=ts, chosen_by=chosen_by)
        )
        return True

    def decide(self, incident_id: str, *, by: Person, what: str, text: str, **data: str) -> None:
        """Record something about the incident itself: `severity`, `lead`, `scribe`, `report`. The last one counts."""
        incident = self._existing(incident_id)
        self._store.audit.record(
            self._entry(incident_id, incident.host, by, f"incident.{what}", text, **data)
        )

    def move(self, incident_id: str, room: Place, *, by: Person, **data: str) -> None:
        """Let an incident go on in a channel of its own; `data` is kept with it (see `room`)."""
        incident = self._existing(incident_id)
        with self._store.database.write() as connection:
            connection.execute(
                incidents.update()
                .where(incidents.c.id == incident_id)
                .values(channel=room.channel, thread_ts=None)
            )
            entry = self._entry(incident_id, incident.host, by, ROOM, f"goes on in {room.channel}", **data)
            append(connection, entry)

    def room(self, incident_id: str) -> dict[str, str] | None:
        """Return what is known of an incident's own channel; None until it was made or refused."""
        entries = [e for e in self.timeline(incident_id) if e.kind == ROOM]
        known: dict[str, str] = {}
        for entry in entries:
            known |= {name: str(value) for name, value in entry.data.items()}
        return known if entries else None

    def close(self, incident_id: str, *, by: Person) -> IncidentRecord:
        """Close an incident. Raise UserError if it is already closed."""
        incident = self._existing(incident_id)
        with self._store.database.write() as connection:
            done = connection.execute(
                incidents.update()
                .where(incidents.c.id == incident_id, incidents.c.status == IncidentStatus.OPEN.value)
                .values(status=IncidentStatus.CLOSED.value, closed_at=self._store.clock())
            )
            if done.rowcount == 0:
                raise UserError(f"{incident_id} is already closed.")
            text = f"closed by {by.name or by.id}"
            append(connection, self._entry(incident_id, incident.host, by, "incident.close", text))
        return self._existing(incident_id)

    def timeline(self, incident_id: str) -> list[TimelineEntry]:
        """Return everything that happened in an incident, in order."""
        return self._store.audit.of_incident(incident_id)

    def _entry(
        self, incident_id: str, host: str, by: Person, kind: str, text: str, **data: str
    ) -> TimelineEntry:
        return TimelineEntry(
            at=self._store.clock(),
            incident_id=incident_id,
            host=host,
            actor=by.id,
            kind=kind,
            text=text,
            data=dict(data),
        )

    def _existing(self, incident_id: str) -> IncidentRecord:
        incident = self.get(incident_id)
        if incident is None:
            raise UserError(f"I know no incident {incident_id!r}.")
        return incident

    def _one(self, *conditions: sa.ColumnElement[bool]) -> IncidentRecord | None:
        query = incidents.select().where(*conditions).order_by(incidents.c.opened_at.desc()).limit(1)
        with self._store.database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _record(row)


def _record(row: Any) -> IncidentRecord:
    values = dict(row._mapping)
    place = Place(channel=values.pop("channel"), thread_ts=values.pop("thread_ts"))
    return IncidentRecord.model_validate({**values, "place": place}, extra="ignore")
