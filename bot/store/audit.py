"""The audit trail: timeline rows that are only ever appended, and their export as JSON lines.

Every start, decision, step end, stop and denial is one row, written in the transaction of the change that it describes.
"""

import json
from collections.abc import Iterator

import sqlalchemy as sa

from bot.store.database import Database
from bot.store.records import TimelineEntry
from bot.store.schema import timeline

EXPORT_BATCH = 500


def append(connection: sa.Connection, entry: TimelineEntry) -> None:
    """Append one entry in the caller's transaction."""
    connection.execute(timeline.insert().values(entry.model_dump(mode="json")))


class Audit:
    """Read access to the trail; `record` appends an entry that belongs to no other change (a denied request)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, entry: TimelineEntry) -> None:
        """Append one entry in its own transaction."""
        with self._database.write() as connection:
            append(connection, entry)

    def of_run(self, run_id: str) -> list[TimelineEntry]:
        """Return the entries of a run, oldest first."""
        return self._select(timeline.c.run_id == run_id)

    def of_incident(self, incident_id: str) -> list[TimelineEntry]:
        """Return the entries of an incident, oldest first."""
        return self._select(timeline.c.incident_id == incident_id)

    def _select(self, condition: sa.ColumnElement[bool]) -> list[TimelineEntry]:
        with self._database.read() as connection:
            rows = connection.execute(timeline.select().where(condition).order_by(timeline.c.id)).all()
        return [_entry(row) for row in rows]

    def json_lines(self, *, since: float = 0.0) -> Iterator[str]:
        """Yield the entries since a Unix time, oldest first, one JSON object per line. Reads in batches."""
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
                yield json.dumps({"id": row.id, **_entry(row).model_dump(mode="json")}, sort_keys=True)
            if len(rows) < EXPORT_BATCH:
                return
            last = rows[-1].id


def _entry(row: sa.Row[tuple[object, ...]]) -> TimelineEntry:
    return TimelineEntry.model_validate({k: v for k, v in row._mapping.items() if k != "id"})
