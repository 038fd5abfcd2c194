"""The store: what the bot remembers of runs, their steps, decisions and files, as rows that outlive it.

Every change raises one counter and stamps the run with it, so that "what changed since" is a query; whoever subscribed in this
process is told after the commit. Methods block for a millisecond or two; async callers use `asyncio.to_thread`.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from bot.store.audit import Audit, append
from bot.store.database import Database
from bot.store.records import FINAL, Person, RunRecord, RunStatus
from bot.store.rows import run_records
from bot.store.schema import artifacts, counters, deliveries, host_locks, runs, signals, steps
from gpu_actions.action import Signal
from gpu_actions.models import Verdict

ID_ALPHABET = "23456789bcdfghjkmnpqrstvwxz"
"""No vowels, no 0/o, 1/l/i: ids are read aloud at 3 a.m. and must not form words."""

ACTIVE = tuple(status.value for status in RunStatus if status not in FINAL)


def new_id(prefix: str) -> str:
    """A short id such as `fb-7k2m`; the caller retries on the rare clash."""
    return f"{prefix}-{''.join(secrets.choice(ID_ALPHABET) for _ in range(4))}"


class HostBusy(Exception):
    """Another run holds the host. `run_id` is that run."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"{run_id} holds the host")
        self.run_id = run_id


class Deliveries:
    """Requests seen before, durably: Slack delivers 2-4 times after a retry or a reconnect (slack.md)."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def first_time(self, key: str) -> bool:
        """True exactly once for a key, whatever process asks."""
        try:
            with self._database.write() as connection:
                connection.execute(deliveries.insert().values(key=key, at=self._clock()))
        except IntegrityError:
            return False
        return True

    def seen(self, key: str) -> bool:
        """Whether a key was given before; asking leaves no trace."""
        with self._database.read() as connection:
            query = sa.select(deliveries.c.key).where(deliveries.c.key == key)
            return connection.execute(query).first() is not None

    def sweep(self, *, older_than_s: float = 7 * 86_400) -> int:
        """Forget old keys; gives how many."""
        with self._database.write() as connection:
            done = connection.execute(
                deliveries.delete().where(deliveries.c.at < self._clock() - older_than_s)
            )
            return int(done.rowcount)


class Store:
    """The rows of the bot. Build it, `create()` the tables, `close()` at the end."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self.database = Database(url)
        self.clock = clock
        self.deliveries = Deliveries(self.database, clock)
        self.audit = Audit(self.database)
        self._subscribers: list[Callable[[str], None]] = []

    def create(self) -> None:
        """Make what is missing of the tables."""
        self.database.create()
        with self.database.write() as connection:
            known = connection.execute(
                sa.select(counters.c.value).where(counters.c.name == "changes")
            ).scalar()
            if known is None:
                connection.execute(counters.insert().values(name="changes", value=0))

    def close(self) -> None:
        self.database.close()

    # -- changes -------------------------------------------------------------------------------------------------

    def subscribe(self, told: Callable[[str], None]) -> Callable[[], None]:
        """Have `told(run_id)` called after each commit, from the writing thread. Gives the function that ends it."""
        self._subscribers.append(told)
        return lambda: self._subscribers.remove(told)

    @contextmanager
    def change(self, run_id: str) -> Iterator[sa.Connection]:
        """A write transaction on a run: stamps it with the next version and tells the subscribers after the commit."""
        with self.database.write() as connection:
            version = _next(connection)
            yield connection
            connection.execute(runs.update().where(runs.c.id == run_id).values(version=version))
        self.tell(run_id)

    def tell(self, run_id: str) -> None:
        """Tell the subscribers of this process that a run has changed."""
        for told in tuple(self._subscribers):
            told(run_id)

    def version(self) -> int:
        """The version of the newest change to any run; 0 before the first."""
        with self.database.read() as connection:
            newest = connection.execute(sa.select(sa.func.max(runs.c.version))).scalar()
        return int(newest or 0)

    def changed_since(self, version: int) -> list[tuple[str, int]]:
        """The runs that changed after a version, oldest change first, each with its version now."""
        query = sa.select(runs.c.id, runs.c.version).where(runs.c.version > version).order_by(runs.c.version)
        with self.database.read() as connection:
            return [(row.id, row.version) for row in connection.execute(query)]

    # -- runs ----------------------------------------------------------------------------------------------------

    def insert_run(self, record: RunRecord, *, dedupe_key: str, changes_host: bool) -> tuple[RunRecord, bool]:
        """Add a run, taking the host's lock for one that changes it. Gives (run, duplicate).

        A known `dedupe_key` gives the run it started. Raises HostBusy, and ValueError when the id is taken.
        """
        with self.database.write() as connection:
            version = _next(connection)
            known = connection.execute(
                sa.select(runs.c.id).where(runs.c.dedupe_key == dedupe_key)
            ).scalar_one_or_none()
            if known is None:
                if connection.execute(sa.select(runs.c.id).where(runs.c.id == record.id)).first():
                    raise ValueError(f"the run id {record.id} is taken")
                holder = connection.execute(
                    sa.select(host_locks.c.run_id).where(host_locks.c.host == record.host)
                ).scalar_one_or_none()
                if changes_host and holder is not None:
                    raise HostBusy(holder)
                connection.execute(
                    runs.insert().values(
                        id=record.id,
                        action=record.action,
                        host=record.host,
                        status=record.status.value,
                        changes_host=changes_host,
                        requester=record.requester.model_dump(),
                        place=record.place.model_dump(),
                        options=record.options,
                        problems=[],
                        incident_id=record.incident_id,
                        dedupe_key=dedupe_key,
                        workflow_id=record.id,
                        created_at=record.created_at,
                        version=version,
                    )
                )
                if changes_host:
                    connection.execute(host_locks.insert().values(host=record.host, run_id=record.id))
                append(
                    connection,
                    at=record.created_at,
                    host=record.host,
                    actor=record.requester.id,
                    kind="run.start",
                    text=f"{record.requester.name or record.requester.id} started {record.action}",
                    run_id=record.id,
                    incident_id=record.incident_id,
                    data={"options": record.options},
                )
        run = self.get(known or record.id)
        if run is None:
            raise LookupError(f"the run {known or record.id} vanished from the database")
        if known is None:
            self.tell(run.id)
        return run, known is not None

    def get(self, run_id: str) -> RunRecord | None:
        """One run with everything of it, or None."""
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
        """Runs, newest first."""
        query = runs.select().order_by(runs.c.created_at.desc(), runs.c.id).limit(limit)
        if action is not None:
            query = query.where(runs.c.action == action)
        if host is not None:
            query = query.where(runs.c.host == host)
        if active_only:
            query = query.where(runs.c.status.in_(ACTIVE))
        with self.database.read() as connection:
            return run_records(connection, query)

    def active(self) -> Sequence[Any]:
        """The bare rows of all runs that have not ended."""
        with self.database.read() as connection:
            return connection.execute(runs.select().where(runs.c.status.in_(ACTIVE))).all()

    def row(self, run_id: str) -> Any:
        """The bare row of a run. Raises LookupError when there is none."""
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
        actor: str,
        text: str,
        values: Mapping[str, Any] | None = None,
    ) -> bool:
        """Compare and set the status. A final one frees the host. Gives False when it was not in `allowed` any more."""
        now = self.clock()
        moved = False
        with self.database.write() as connection:
            version = _next(connection)
            row = connection.execute(runs.select().where(runs.c.id == run_id)).one()
            if row.status in {status.value for status in allowed}:
                change = {"status": to.value, "version": version, **(values or {})}
                if to.final:
                    change.setdefault("ended_at", now)
                    connection.execute(host_locks.delete().where(host_locks.c.run_id == run_id))
                connection.execute(runs.update().where(runs.c.id == run_id).values(**change))
                append(
                    connection,
                    at=now,
                    host=row.host,
                    actor=actor,
                    kind=f"run.{to.value}",
                    text=text,
                    run_id=run_id,
                    incident_id=row.incident_id,
                )
                moved = True
        if moved:
            self.tell(run_id)
        return moved

    def update_run(self, run_id: str, **values: Any) -> None:
        """Set columns of a run that carry no decision (a message's ts, a reminder's time)."""
        with self.change(run_id) as connection:
            connection.execute(runs.update().where(runs.c.id == run_id).values(**values))

    def set_message_ts(self, run_id: str, ts: str) -> None:
        """Keep which Slack message shows the run."""
        self.update_run(run_id, message_ts=ts)

    def set_file_id(self, artifact_id: int, file_id: str) -> None:
        """Keep the Slack file of an artifact once it was uploaded."""
        with self.database.read() as connection:
            run_id = connection.execute(
                sa.select(artifacts.c.run_id).where(artifacts.c.id == artifact_id)
            ).scalar_one()
        with self.change(run_id) as connection:
            connection.execute(
                artifacts.update().where(artifacts.c.id == artifact_id).values(slack_file_id=file_id)
            )

    # -- signals and verdicts ------------------------------------------------------------------------------------

    def add_signal(self, run_id: str, signal: Signal, by: Person) -> None:
        """Keep what a person told a run."""
        row = self.row(run_id)
        with self.change(run_id) as connection:
            connection.execute(
                signals.insert().values(run_id=run_id, signal=signal, by=by.model_dump(), at=self.clock())
            )
            append(
                connection,
                at=self.clock(),
                host=row.host,
                actor=by.id,
                kind=f"signal.{signal}",
                text=f"{by.name or by.id}: {signal}",
                run_id=run_id,
                incident_id=row.incident_id,
            )

    def signals(self, run_id: str) -> tuple[Signal, ...]:
        """Everything people told a run, oldest first."""
        query = sa.select(signals.c.signal).where(signals.c.run_id == run_id).order_by(signals.c.id)
        with self.database.read() as connection:
            return tuple(connection.execute(query).scalars())

    def last_verdict(self, host: str, *, max_age_s: float) -> tuple[Verdict, float] | None:
        """The newest verdict that a finished triage step gave of a host, if it is young enough; and how long ago it began."""
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
        return None if found is None else (Verdict.model_validate(found[0]), self.clock() - found[1])


def _next(connection: sa.Connection) -> int:
    """The next version. Taken first in a transaction: on PostgreSQL its row lock is what puts writers one behind the other."""
    connection.execute(
        counters.update().where(counters.c.name == "changes").values(value=counters.c.value + 1)
    )
    value: int = connection.execute(
        sa.select(counters.c.value).where(counters.c.name == "changes")
    ).scalar_one()
    return value
