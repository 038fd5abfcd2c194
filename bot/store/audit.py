"""The audit trail: timeline rows that are only ever appended, linked by hashes, and their export as JSON lines.

Every start, decision, step end, stop and denial is one row, written in the transaction of the change that it describes.
"""

import json
from collections.abc import Iterator

import sqlalchemy as sa

from bot.store.audit_chain import GENESIS, chain_hash, stored_content
from bot.store.database import Database
from bot.store.records import TimelineEntry
from bot.store.schema import audit_chain, timeline
from gpu_actions.models import Frozen

BATCH = 500


def append(connection: sa.Connection, entry: TimelineEntry) -> None:
    """Append one entry to the trail and to its hash chain, in the caller's transaction."""
    content = entry.model_dump(mode="json")
    last = connection.execute(sa.select(audit_chain.c.hash).with_for_update()).scalar_one()
    new = chain_hash(last, content)
    connection.execute(timeline.insert().values(**content, hash=new))
    connection.execute(audit_chain.update().values(hash=new))


def begin_chain(connection: sa.Connection) -> None:
    """Begin the chain of an empty database."""
    if connection.execute(sa.select(audit_chain.c.id)).first() is None:
        connection.execute(audit_chain.insert().values(id=1, hash=GENESIS, anchor=GENESIS, anchor_id=0))


class AuditReport(Frozen):
    """The result of a check of the chain. `problem` is empty if it is intact; `broken_at` is the first wrong entry's id."""

    entries: int
    last_hash: str
    removed_through: int
    broken_at: int | None = None
    problem: str = ""


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

    def verify(self, *, expected: str = "") -> AuditReport:
        """Recompute the whole chain. It sees an entry that was changed, inserted, removed or moved, also at the end.

        A chain that was written anew as a whole lacks the hash that an earlier check printed: give it as `expected`.
        """
        with self._database.read() as connection:
            end = connection.execute(audit_chain.select()).one()
            current, count, last_id = end.anchor, 0, end.anchor_id
            found = expected in ("", current)
            while rows := self._batch(connection, last_id):
                for row in rows:
                    current = chain_hash(current, stored_content(row))
                    found = found or current == expected
                    if row.hash != current:
                        problem = (
                            f"entry {row.id} is not the one that was written, or one before it is missing"
                        )
                        return _report(end, count, broken_at=row.id, problem=problem)
                    count, last_id = count + 1, row.id
            if current != end.hash:
                return _report(end, count, problem="entries are missing at the end of the trail")
            if not found:
                return _report(
                    end, count, problem=f"no entry has the hash {expected[:12]}: the trail was written anew"
                )
        return _report(end, count)

    @staticmethod
    def _batch(connection: sa.Connection, after: int) -> list[sa.Row[tuple[object, ...]]]:
        query = timeline.select().where(timeline.c.id > after).order_by(timeline.c.id).limit(BATCH)
        return list(connection.execute(query).all())

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
                .limit(BATCH)
            )
            with self._database.read() as connection:
                rows = connection.execute(query).all()
            for row in rows:
                yield json.dumps({"id": row.id, "hash": row.hash, **stored_content(row)}, sort_keys=True)
            if len(rows) < BATCH:
                return
            last = rows[-1].id


def _entry(row: sa.Row[tuple[object, ...]]) -> TimelineEntry:
    return TimelineEntry.model_validate(stored_content(row))


def _report(end: sa.Row[tuple[object, ...]], entries: int, **found: object) -> AuditReport:
    values = {"entries": entries, "last_hash": end.hash, "removed_through": end.anchor_id, **found}
    return AuditReport.model_validate(values)
