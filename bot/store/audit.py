"""The timeline and audit trail: rows that are only ever appended, and their export as JSON lines.

Every start, decision, step end, stop and denial is one row, written in the transaction of the change it tells of.
"""

import json
from collections.abc import Iterator

import sqlalchemy as sa

from bot.store.database import Database
from bot.store.records import TimelineEntry
from bot.store.schema import timeline
from gpu_actions.models import JsonObject

EXPORT_BATCH = 500


def append(
    connection: sa.Connection,
    *,
    at: float,
    host: str,
    actor: str,
    kind: str,
    text: str,
    run_id: str | None = None,
    incident_id: str | None = None,
    data: JsonObject | None = None,
) -> None:
    """Add one line, in the caller's transaction. `kind` is `run.start`, `decision.approve`, `step.done`, ..."""
    connection.execute(
        timeline.insert().values(
            at=at,
            host=host,
            actor=actor,
            kind=kind,
            text=text,
            run_id=run_id,
            incident_id=incident_id,
            data=data or {},
        )
    )


class Audit:
    """Reads the trail; `record` adds a line that belongs to no other change (a denied request)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, entry: TimelineEntry) -> None:
        """Add one line in a transaction of its own."""
        with self._database.write() as connection:
            append(connection, **entry.model_dump(mode="json"))

    def of_run(self, run_id: str) -> list[TimelineEntry]:
        """What happened to a run, in order."""
        return self._select(timeline.c.run_id == run_id)

    def of_incident(self, incident_id: str) -> list[TimelineEntry]:
        """What happened in an incident, in order."""
        return self._select(timeline.c.incident_id == incident_id)

    def _select(self, condition: sa.ColumnElement[bool]) -> list[TimelineEntry]:
        with self._database.read() as connection:
            rows = connection.execute(timeline.select().where(condition).order_by(timeline.c.id)).all()
        return [entry_of(row) for row in rows]

    def json_lines(self, *, since: float = 0.0) -> Iterator[str]:
        """The trail from a Unix time on, one JSON object a line, oldest first; read in batches."""
        last = 0
        while True:
            query = (
                timeline.select()
                .where(timeline.c.id > last, timeline.c.at >= since)
                .order_by(timeline.c.id)
                .limit(EXPORT_BATCH)
            )
            with self._database.read() as connection:
                rows = connection.execute(query).all()
            for row in rows:
                yield json.dumps({"id": row.id, **entry_of(row).model_dump(mode="json")}, sort_keys=True)
            if len(rows) < EXPORT_BATCH:
                return
            last = rows[-1].id


def entry_of(row: sa.Row[tuple[object, ...]]) -> TimelineEntry:
    """A row as the model."""
    values = dict(row._mapping)
    values.pop("id")
    return TimelineEntry.model_validate(values)
