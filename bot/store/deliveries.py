"""Requests that were already handled. Slack delivers a request again after a retry or a reconnect (two to four times)."""

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from bot.store.audit import append
from bot.store.database import Database
from bot.store.records import TimelineEntry
from bot.store.schema import deliveries


class Deliveries:
    """Idempotency keys of requests, kept in the database."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def first_time(self, key: str, entry: TimelineEntry | None = None) -> bool:
        """Remember a key, with its audit entry in the same transaction. Return True exactly once, across all processes."""
        try:
            with self._database.write() as connection:
                connection.execute(deliveries.insert().values(key=key, at=self._clock()))
                if entry is not None:
                    append(connection, entry)
        except IntegrityError:
            return False
        return True

    def seen(self, key: str) -> bool:
        """Return True if a key is known, without remembering it."""
        with self._database.read() as connection:
            query = sa.select(deliveries.c.key).where(deliveries.c.key == key)
            return connection.execute(query).first() is not None

    def with_prefix(self, prefix: str) -> list[str]:
        """Return the known keys that begin so."""
        query = sa.select(deliveries.c.key).where(deliveries.c.key.startswith(prefix, autoescape=True))
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def sweep(self, *, older_than_s: float = 7 * 86_400) -> int:
        """Delete old keys. Return how many."""
        old = deliveries.c.at < self._clock() - older_than_s
        with self._database.write() as connection:
            return int(connection.execute(deliveries.delete().where(old)).rowcount)


def first_time(connection: sa.Connection, key: str, at: float) -> bool:
    """Remember a key in the caller's transaction. Return True if it is new."""
    known = sa.select(deliveries.c.key).where(deliveries.c.key == key)
    if connection.execute(known).first() is not None:
        return False
    connection.execute(deliveries.insert().values(key=key, at=at))
    return True
