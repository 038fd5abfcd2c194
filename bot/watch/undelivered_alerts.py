"""What was seen and must reach people, kept as rows until it has: a bot that is killed meanwhile tells it after its next start.

A monitor's alarm is written in one transaction with the state that raised it, so neither is there without the other.
"""

import hashlib
from collections.abc import Iterable

import sqlalchemy as sa
from pydantic import Field, ValidationError

from bot.store.schema import untold_alarms
from bot.store.store import Store
from gpu_actions.models import Frozen, VerdictKind

KEPT_S = 86_400.0
"""Older than a day, an alarm that could not be told is history: the looks of now say what is."""


class Alarm(Frozen):
    """One thing that was seen. `key` is its burst's; the same cause of a burst again is another alarm, by `at_s`."""

    host: str
    cause: str
    title: str
    source: str
    reason: str
    verdict: VerdictKind
    key: str
    at_s: float = Field(description="when it was seen, by the store's clock")
    window_s: float | None = Field(
        default=None, description="how long the triage must look to see the same; None: as the settings say"
    )

    @property
    def id(self) -> str:
        """What makes a repeat of this very alarm start nothing new; 32 characters."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]


class UntoldAlarms:
    """The rows. Methods block for a millisecond or two."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def keep(self, alarms: Iterable[Alarm]) -> None:
        """Keep alarms until they are told; one that is kept already stays as it is."""
        with self._store.database.write() as connection:
            keep_alarms(connection, alarms)

    def told(self, alarm: Alarm) -> None:
        """People know it."""
        with self._store.database.write() as connection:
            connection.execute(untold_alarms.delete().where(untold_alarms.c.id == alarm.id))

    def all(self) -> list[Alarm]:
        """Those that nobody was told of, oldest first; what is too old, or of another version, is dropped."""
        with self._store.database.write() as connection:
            old = untold_alarms.c.at < self._store.clock() - KEPT_S
            connection.execute(untold_alarms.delete().where(old))
            rows = connection.execute(untold_alarms.select().order_by(untold_alarms.c.at)).all()
            alarms = []
            for row in rows:
                try:
                    alarms.append(Alarm.model_validate(row.alarm))
                except ValidationError:
                    connection.execute(untold_alarms.delete().where(untold_alarms.c.id == row.id))
        return alarms


def keep_alarms(connection: sa.Connection, alarms: Iterable[Alarm]) -> None:
    """Keep alarms in a transaction of the caller."""
    for alarm in alarms:
        if connection.execute(sa.select(untold_alarms.c.id).where(untold_alarms.c.id == alarm.id)).first():
            continue
        connection.execute(
            untold_alarms.insert().values(id=alarm.id, alarm=alarm.model_dump(mode="json"), at=alarm.at_s)
        )
