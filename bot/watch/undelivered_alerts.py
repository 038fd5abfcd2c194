"""Alerts, kept as rows until they are delivered: a bot that is killed before that delivers them after its next start.

A monitor's alert is written in one transaction with the state that raised it, so neither exists without the other.
"""

from collections.abc import Iterable

import sqlalchemy as sa

from bot.store.deliveries import first_time
from bot.store.records import Alert
from bot.store.row_to_record import readable
from bot.store.schema import untold_alarms
from bot.store.store import Store

KEPT_S = 86_400.0
"""An undelivered alert older than a day is dropped: newer checks say what is true now."""


class UndeliveredAlerts:
    """The rows. Methods block for a millisecond or two."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def keep(self, alerts: Iterable[Alert]) -> None:
        """Keep alerts until they are delivered; one that is already kept stays unchanged."""
        with self._store.database.write() as connection:
            keep_alerts(connection, alerts)

    def keep_new(self, alerts: Iterable[tuple[str, Alert]]) -> list[Alert]:
        """Keep the alerts whose delivery key is new, in one transaction with their keys. Return them."""
        new = []
        with self._store.database.write() as connection:
            for key, alert in alerts:
                if first_time(connection, key, self._store.clock()):
                    keep_alerts(connection, [alert])
                    new.append(alert)
        return new

    def delivered(self, alert: Alert) -> None:
        with self._store.database.write() as connection:
            connection.execute(untold_alarms.delete().where(untold_alarms.c.id == alert.id))

    def all(self) -> list[Alert]:
        """Return the undelivered alerts, oldest first. Drop those that are too old or of another version."""
        with self._store.database.write() as connection:
            old = untold_alarms.c.at < self._store.clock() - KEPT_S
            connection.execute(untold_alarms.delete().where(old))
            rows = connection.execute(untold_alarms.select().order_by(untold_alarms.c.at)).all()
            alerts = []
            for row in rows:
                if (alert := readable(Alert, row.alarm)) is not None:
                    alerts.append(alert)
                else:
                    connection.execute(untold_alarms.delete().where(untold_alarms.c.id == row.id))
        return alerts


def keep_alerts(connection: sa.Connection, alerts: Iterable[Alert]) -> None:
    """Keep alerts as part of the caller's transaction."""
    for alert in alerts:
        if connection.execute(sa.select(untold_alarms.c.id).where(untold_alarms.c.id == alert.id)).first():
            continue
        values = {"id": alert.id, "alarm": alert.model_dump(mode="json"), "at": alert.at_s}
        connection.execute(untold_alarms.insert().values(values))
