"""The rows of runs: inserting, reading and changing them.

Every change increments one counter and stores its value as the run's version, so that "what changed since" is a query.
Subscribers in this process are notified after the commit. Methods block for a millisecond or two: call them through
`asyncio.to_thread`.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from bot.store.audit import Audit, append, begin_chain
from bot.store.database import Database
from bot.store.deliveries import Deliveries
from bot.store.records import FINAL, Person, RunRecord, RunStatus, TimelineEntry
from bot.store.row_to_record import readable, run_records
from bot.store.schema import artifacts, counters, host_locks, runs, signals, steps
from gpu_actions.action import Signal
from gpu_actions.models import JsonObject, Verdict

ID_ALPHABET = "23456789bcdfghjkmnpqrstvwxz"
"""No vowels, no 0/o, 1/l/i: ids are read aloud at 3 a.m. and must not form words."""
ID_LENGTH = 4
ID_STEP = 328_451
"""Coprime with the number of ids, and near its golden section: successive ids look unlike."""

ACTIVE = tuple(status.value for status in RunStatus if status not in FINAL)


def random_id(prefix: str) -> str:
    """Return a short random id such as `fb-7k2m`, for where there is no database (see `Store.new_id`)."""
    return _id(prefix, secrets.randbelow(_all_ids()))


def _all_ids() -> int:
    return int(len(ID_ALPHABET) ** ID_LENGTH)


def _id(prefix: str, number: int) -> str:
    letters = []
    for _ in range(ID_LENGTH):
        number, letter = divmod(number, len(ID_ALPHABET))
        letters.append(ID_ALPHABET[letter])
    return f"{prefix}-{''.join(letters)}"


class HostBusy(Exception):
    """Another run holds the host. `run_id` is that run."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"{run_id} holds the host")
        self.run_id = run_id


class RunChange:
    """A write transaction on one run. `row` is the run before the change, `at` the time of the change.

    Set `changed` to False to leave the run's version alone and notify nobody.
    """

    def __init__(self, connection: sa.Connection, run_id: str, at: float) -> None:
        self.connection = connection
        self.at = at
        self.changed = True
        self.row = connection.execute(runs.select().where(runs.c.id == run_id)).one()

    def set(self, **values: Any) -> None:
        """Set columns of the run."""
        self.connection.execute(runs.update().where(runs.c.id == self.row.id).values(**values))

    def set_status(self, status: RunStatus, **values: Any) -> None:
        """Set the status and other columns. A final status also sets the end time and frees the host."""
        if status.final:
            values.setdefault("ended_at", self.at)
            self.connection.execute(host_locks.delete().where(host_locks.c.run_id == self.row.id))
        self.set(status=status.value, **values)

    def record(
        self,
        kind: str,
        text: str,
        *,
        actor: str = "bot",
        data: JsonObject | None = None,
        incident_id: str | None = None,
    ) -> None:
        """Append an entry to the audit trail of the run and of its incident (`incident_id` if it joins one just now)."""
        append(
            self.connection,
            TimelineEntry(
                at=self.at,
                host=self.row.host,
                actor=actor,
                kind=kind,
                text=text,
                run_id=self.row.id,
                incident_id=incident_id or self.row.incident_id,
                data=data or {},
            ),
        )


class Store:
    """The database of the bot. Call `create()` before use and `close()` at the end."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self.database = Database(url)
        self.clock = clock
        self.deliveries = Deliveries(self.database, clock)
        self.audit = Audit(self.database)
        self._subscribers: list[Callable[[str], None]] = []

    def create(self) -> None:
        """Create the tables, or upgrade those of an older version. Raise DatabaseTooNew for those of a newer one."""
        self.database.create()
        with self.database.write() as connection:
            begin_chain(connection)
            for name, first in (("changes", 0), ("ids", secrets.randbelow(_all_ids()))):
                query = sa.select(counters.c.value).where(counters.c.name == name)
                if connection.execute(query).scalar() is None:
                    connection.execute(counters.insert().values(name=name, value=first))

    def close(self) -> None:
        self.database.close()

    # -- changes -------------------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call `callback(run_id)` after each commit, from the writing thread. Return a function that unsubscribes."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    @contextmanager
    def change(self, run_id: str) -> Iterator[RunChange]:
        """Open a write transaction on a run. On commit the run gets the next version and the subscribers are notified."""
        with self.database.write() as connection:
            version = _next_version(connection)
            change = RunChange(connection, run_id, self.clock())
            yield change
            if change.changed:
                change.set(version=version)
        if change.changed:
            self.notify(run_id)

    def notify(self, run_id: str) -> None:
        """Notify the subscribers of this process that a run has changed."""
        for callback in tuple(self._subscribers):
            callback(run_id)

    def version(self) -> int:
        """Return the version of the newest change to any run, or 0."""
        with self.database.read() as connection:
            return int(connection.execute(sa.select(sa.func.max(runs.c.version))).scalar() or 0)

    def changed_since(self, version: int) -> list[tuple[str, int]]:
        """Return `(run_id, version)` of the runs that changed after a version, oldest change first."""
        query = sa.select(runs.c.id, runs.c.version).where(runs.c.version > version).order_by(runs.c.version)
        with self.database.read() as connection:
            return [(row.id, row.version) for row in connection.execute(query)]

    # -- runs ----------------------------------------------------------------------------------------------------

    def new_id(self, prefix: str) -> str:
        """Return a short id such as `fb-7k2m` that this database has not given to anything, not even to what is removed.

        Slack's messages, links and people's notes outlive the rows. All half a million ids are given before one returns.
        Those of an earlier version were random, so the caller retries on the rare collision.
        """
        with self.database.write() as connection:
            number = _count(connection, "ids")
        return _id(prefix, number * ID_STEP % _all_ids())

    def insert_run(self, record: RunRecord, *, dedupe_key: str, changes_host: bool) -> tuple[RunRecord, bool]:
        """Insert a run, and lock its host if the run changes it. Return `(run, duplicate)`.

        For a known `dedupe_key` return the run that it started. Raise HostBusy, or ValueError if the id is taken.
        """
        with self.database.write() as connection:
            version = _next_version(connection)
            known = connection.execute(
                sa.select(runs.c.id).where(runs.c.dedupe_key == dedupe_key)
            ).scalar_one_or_none()
            if known is None:
                _insert(connection, record, dedupe_key, changes_host, version)
        run = self.get(known or record.id)
        if run is None:
            raise LookupError(f"the run {known or record.id} vanished from the database")
        if known is None:
            self.notify(run.id)
        return run, known is not None

    def get(self, run_id: str) -> RunRecord | None:
        """Return a run with its steps, decisions and artifacts, or None."""
        with self.database.read() as connection:
            found = run_records(connection, runs.select().where(runs.c.id == run_id))
        return found[0] if found else None

    def list(
        self,
        *,
        action: str | None = None,
        host: str | None = None,
        active_only: bool = False,
        limit: int = 20,
    ) -> list[RunRecord]:
        """Return runs, newest first."""
        query = runs.select().order_by(runs.c.created_at.desc(), runs.c.id).limit(limit)
        if action is not None:
            query = query.where(runs.c.action == action)
        if host is not None:
            query = query.where(runs.c.host == host)
        if active_only:
            query = query.where(runs.c.status.in_(ACTIVE))
        with self.database.read() as connection:
            return run_records(connection, query)

    def of_incident(self, incident_id: str) -> Sequence[RunRecord]:
        """Return the runs of an incident, oldest first."""
        query = runs.select().where(runs.c.incident_id == incident_id).order_by(runs.c.created_at)
        with self.database.read() as connection:
            return run_records(connection, query)

    def active(self) -> Sequence[Any]:
        """Return the rows of all runs that have not ended."""
        with self.database.read() as connection:
            return connection.execute(runs.select().where(runs.c.status.in_(ACTIVE))).all()

    def row(self, run_id: str) -> Any:
        """Return the row of a run. Raise LookupError if there is none."""
        with self.database.read() as connection:
            row = connection.execute(runs.select().where(runs.c.id == run_id)).one_or_none()
        if row is None:
            raise LookupError(f"no run {run_id} in the database")
        return row

    def move(
        self,
        run_id: str,
        *,
        allowed: Sequence[RunStatus],
        to: RunStatus,
        actor: str = "bot",
        text: str,
        values: Mapping[str, Any] | None = None,
    ) -> bool:
        """Compare and set the status. Return False if it is no longer one of `allowed`."""
        with self.change(run_id) as change:
            change.changed = change.row.status in allowed
            if change.changed:
                change.set_status(to, **(values or {}))
                change.record(f"run.{to.value}", text, actor=actor)
        return change.changed

    def update_run(self, run_id: str, **values: Any) -> None:
        """Set columns of a run that need no compare-and-set."""
        with self.change(run_id) as change:
            change.set(**values)

    def set_message_ts(self, run_id: str, ts: str) -> None:
        """Store which Slack message shows the run."""
        self.update_run(run_id, message_ts=ts)

    def newest_messages(self, count: int) -> Sequence[tuple[str, str]]:
        """Return the newest messages of runs as `(channel, ts)`, newest first."""
        query = (
            sa.select(runs.c.place, runs.c.message_ts)
            .where(runs.c.message_ts.is_not(None))
            .order_by(runs.c.created_at.desc())
            .limit(count)
        )
        with self.database.read() as connection:
            return [(str(row.place["channel"]), row.message_ts) for row in connection.execute(query)]

    def set_file_id(self, artifact_id: int, file_id: str) -> None:
        """Store the id of the Slack file that an artifact was uploaded as."""
        this = artifacts.c.id == artifact_id
        with self.database.read() as connection:
            run_id = connection.execute(sa.select(artifacts.c.run_id).where(this)).scalar_one()
        with self.change(run_id) as change:
            change.connection.execute(artifacts.update().where(this).values(slack_file_id=file_id))

    # -- signals and verdicts ------------------------------------------------------------------------------------

    def add_signal(self, run_id: str, signal: Signal, by: Person) -> None:
        """Store a person's signal to a run."""
        with self.change(run_id) as change:
            values = {"run_id": run_id, "signal": signal, "by": by.model_dump(), "at": change.at}
            change.connection.execute(signals.insert().values(values))
            change.record(f"signal.{signal}", f"{by.name or by.id}: {signal}", actor=by.id)

    def signals(self, run_id: str) -> tuple[Signal, ...]:
        """Return the signals of a run, oldest first."""
        query = sa.select(signals.c.signal).where(signals.c.run_id == run_id).order_by(signals.c.id)
        with self.database.read() as connection:
            return tuple(connection.execute(query).scalars())

    def last_verdict(self, host: str, *, max_age_s: float) -> tuple[Verdict, float] | None:
        """Return the newest verdict of a triage that ended within `max_age_s`, and the seconds since that triage began."""
        query = (
            sa.select(steps.c.verdict, steps.c.started_at)
            .join(runs, runs.c.id == steps.c.run_id)
            .where(
                runs.c.host == host,
                runs.c.action == "triage",
                steps.c.verdict.is_not(None),
                steps.c.ended_at >= self.clock() - max_age_s,
            )
            .order_by(steps.c.ended_at.desc())
            .limit(1)
        )
        with self.database.read() as connection:
            found = connection.execute(query).one_or_none()
        if found is None or (verdict := readable(Verdict, found[0])) is None:
            return None
        return verdict, self.clock() - found[1]


def _insert(
    connection: sa.Connection, record: RunRecord, dedupe_key: str, changes_host: bool, version: int
) -> None:
    if connection.execute(sa.select(runs.c.id).where(runs.c.id == record.id)).first():
        raise ValueError(f"the run id {record.id} is taken")
    if changes_host:
        query = sa.select(host_locks.c.run_id).where(host_locks.c.host == record.host)
        if (holder := connection.execute(query).scalar_one_or_none()) is not None:
            raise HostBusy(holder)
    dumped = record.model_dump(
        mode="json",
        include={"id", "action", "host", "status", "requester", "place", "options", "incident_id"},
    )
    connection.execute(
        runs.insert().values(
            **dumped,
            created_at=record.created_at,
            changes_host=changes_host,
            problems=[],
            dedupe_key=dedupe_key,
            workflow_id=record.id,
            version=version,
        )
    )
    if changes_host:
        connection.execute(host_locks.insert().values(host=record.host, run_id=record.id))
    change = RunChange(connection, record.id, record.created_at)
    text = f"{record.requester.name or record.requester.id} started {record.action}"
    change.record("run.start", text, actor=record.requester.id, data={"options": record.options})


def _next_version(connection: sa.Connection) -> int:
    """Increment the change counter. Taken first in a transaction: on PostgreSQL its row lock serializes the writers."""
    return _count(connection, "changes")


def _count(connection: sa.Connection, name: str) -> int:
    """Increment a counter and return its value."""
    this = counters.c.name == name
    connection.execute(counters.update().where(this).values(value=counters.c.value + 1))
    return int(connection.execute(sa.select(counters.c.value).where(this)).scalar_one())
