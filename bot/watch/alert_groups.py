"""Alertmanager's alerts grouped by host and cause: one message that counts, however many alerts arrive.

A group lives until its last alert is resolved or its incident is closed. Its row outlives the bot, so a restart neither posts
the group again nor loses its count.
"""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from bot.store.records import Alert, IncidentStatus, Place
from bot.store.schema import alert_groups, incidents
from bot.store.store import Store


@dataclass(frozen=True)
class AlertGroup:
    """The alerts of one cause on one host. `firing` has the fingerprints of those that are not resolved."""

    id: int
    host: str
    cause: str
    place: Place | None
    """The channel and timestamp of the message that counts; None until it is posted."""
    is_root: bool
    total: int
    firing: frozenset[str]
    last_at: float
    previous_at: float
    """When the alert before the last one arrived; 0 for a new group."""
    shown: int
    alert: Alert
    """The last one."""
    closed: bool

    @property
    def is_new(self) -> bool:
        """Return True until people have seen the group: in its own message, or in the card of a triage."""
        return self.previous_at == 0.0


class AlertGroups:
    """The rows. Methods block for a millisecond or two."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, alert: Alert) -> AlertGroup:
        """Count a firing alert in the open group of its host and cause, or open one. A repeat counts once."""
        with self._store.database.write() as connection:
            row = self._open_row(connection, alert)
            if row is None:
                values = {"host": alert.host, "cause": alert.cause, "total": 1, "shown": 0, "is_root": False}
                times = {"first_at": alert.at_s, "last_at": alert.at_s}
                latest = {"firing": [alert.fingerprint], "alert": alert.model_dump(mode="json")}
                made: Any = connection.execute(alert_groups.insert().values(**values, **times, **latest))
                return self._group(connection, int(made.inserted_primary_key[0]), previous_at=0.0)
            if (
                alert.fingerprint in row.firing and alert.at_s <= row.last_at
            ):  # delivered again after a restart
                return self._group(connection, row.id, previous_at=row.last_at if row.ts else 0.0)
            firing = sorted({*row.firing, alert.fingerprint})
            new = {"total": row.total + 1, "firing": firing, "last_at": alert.at_s}
            new["alert"] = alert.model_dump(mode="json")
            connection.execute(alert_groups.update().where(alert_groups.c.id == row.id).values(new))
            return self._group(connection, row.id, previous_at=row.last_at)

    def resolve(self, alert: Alert) -> AlertGroup | None:
        """Take a resolved alert out of its group, and close the group with its last one. Return None if it is in none."""
        with self._store.database.write() as connection:
            row = self._open_row(connection, alert)
            if row is None or alert.fingerprint not in row.firing:
                return None
            firing = [one for one in row.firing if one != alert.fingerprint]
            closed_at = None if firing else self._store.clock()
            new = {"firing": firing, "closed_at": closed_at, "shown": -1}
            connection.execute(alert_groups.update().where(alert_groups.c.id == row.id).values(new))
            return self._group(connection, row.id, previous_at=row.last_at)

    def posted(self, group: AlertGroup, place: Place, *, is_root: bool) -> None:
        """Store where the group's message is."""
        values = {"channel": place.channel, "ts": place.thread_ts, "is_root": is_root, "shown": group.total}
        self._update(group.id, values)

    def shown(self, group: AlertGroup) -> None:
        """Store that the group's message shows this state."""
        with self._store.database.write() as connection:
            this = sa.and_(alert_groups.c.id == group.id, alert_groups.c.shown == group.shown)
            connection.execute(alert_groups.update().where(this).values(shown=group.total))

    def get(self, group_id: int) -> AlertGroup:
        with self._store.database.read() as connection:
            return self._group(connection, group_id, previous_at=0.0)

    def outdated(self) -> list[AlertGroup]:
        """Return the groups whose message shows an older count."""
        columns = alert_groups.c
        query = sa.select(columns.id).where(columns.ts.is_not(None), columns.shown != columns.total)
        with self._store.database.read() as connection:
            return [
                self._group(connection, one, previous_at=0.0) for one in connection.execute(query).scalars()
            ]

    def _open_row(self, connection: sa.Connection, alert: Alert) -> Any:
        """Return the row of the open group, after closing one whose incident people have closed."""
        columns = alert_groups.c
        query = alert_groups.select().where(
            columns.host == alert.host, columns.cause == alert.cause, columns.closed_at.is_(None)
        )
        row = connection.execute(query.with_for_update()).one_or_none()
        if row is None:
            return None
        closed = sa.select(incidents.c.id).where(
            incidents.c.host == alert.host,
            incidents.c.status == IncidentStatus.CLOSED.value,
            incidents.c.closed_at > row.last_at,
        )
        if connection.execute(closed).first() is None:
            return row
        connection.execute(
            alert_groups.update()
            .where(columns.id == row.id)
            .values(closed_at=self._store.clock(), shown=row.total)
        )
        return None

    def _update(self, group_id: int, values: dict[str, Any]) -> None:
        with self._store.database.write() as connection:
            connection.execute(alert_groups.update().where(alert_groups.c.id == group_id).values(values))

    @staticmethod
    def _group(connection: sa.Connection, group_id: int, *, previous_at: float) -> AlertGroup:
        row = connection.execute(alert_groups.select().where(alert_groups.c.id == group_id)).one()
        return AlertGroup(
            id=row.id,
            host=row.host,
            cause=row.cause,
            place=None if row.ts is None else Place(channel=row.channel, thread_ts=row.ts),
            is_root=row.is_root,
            total=row.total,
            firing=frozenset(row.firing),
            last_at=row.last_at,
            previous_at=previous_at,
            shown=row.shown,
            alert=Alert.model_validate(row.alert, extra="ignore"),
            closed=row.closed_at is not None,
        )
