"""Removes what is too old: runs with their steps, closed incidents, alert groups, and the oldest part of the audit trail.

Nothing of an open incident is removed, and no run whose files are still stored. The audit trail loses only its beginning, and
keeps the hash of the last entry it lost, so that the rest can still be verified.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from bot.store.records import FINAL, IncidentStatus
from bot.store.schema import (
    alert_groups,
    artifacts,
    audit_chain,
    decisions,
    incidents,
    pages,
    runs,
    signals,
    steps,
    timeline,
)
from bot.store.store import Store

BATCH = 200
"""Runs removed in one transaction, so that a sweep after a long time does not block the bot."""


def sweep_rows(store: Store, *, older_than_s: float) -> int:
    """Remove rows that are older than this. Return how many runs were removed."""
    cutoff = store.clock() - older_than_s
    removed = 0
    while count := _sweep_runs(store, cutoff):
        removed += count
    with store.database.write() as connection:
        remaining = sa.select(runs.c.incident_id).where(runs.c.incident_id.is_not(None))
        connection.execute(
            incidents.delete().where(
                incidents.c.status == IncidentStatus.CLOSED.value,
                incidents.c.closed_at < cutoff,
                incidents.c.id.not_in(remaining),
            )
        )
        connection.execute(pages.delete().where(sa.func.coalesce(pages.c.closed_at, pages.c.at) < cutoff))
        connection.execute(alert_groups.delete().where(alert_groups.c.closed_at < cutoff))
        _shorten_trail(connection, cutoff)
    return removed


def sweep_run_folders(store: Store, folders: Sequence[Path], *, older_than_s: float) -> int:
    """Remove the working folders of runs that ended longer ago than this. Return how many.

    Their artifacts are stored elsewhere. A folder of no known run is one of a shell command, or its run's rows are gone: its
    own age counts.
    """
    cutoff = store.clock() - older_than_s
    with store.database.read() as connection:
        columns = (runs.c.id, runs.c.ended_at, incidents.c.status)
        query = sa.select(*columns).outerjoin(incidents, incidents.c.id == runs.c.incident_id)
        known = {row.id: row for row in connection.execute(query)}
    removed = 0
    for path in (path for folder in folders if folder.is_dir() for path in folder.iterdir()):
        run = known.get(path.name)
        if run is None:
            is_old = path.stat().st_mtime < cutoff
        else:
            is_old = (
                run.ended_at is not None and run.ended_at < cutoff and run.status != IncidentStatus.OPEN.value
            )
        if is_old:
            shutil.rmtree(path, ignore_errors=True)
            removed += 1
    return removed


def _sweep_runs(store: Store, cutoff: float) -> int:
    open_incidents = sa.select(incidents.c.id).where(
        sa.or_(incidents.c.status == IncidentStatus.OPEN.value, incidents.c.closed_at >= cutoff)
    )
    stored = sa.select(artifacts.c.run_id).where(artifacts.c.swept_at.is_(None), artifacts.c.url != "")
    query = (
        sa.select(runs.c.id)
        .where(
            runs.c.status.in_([status.value for status in FINAL]),
            runs.c.ended_at < cutoff,
            sa.or_(runs.c.incident_id.is_(None), runs.c.incident_id.not_in(open_incidents)),
            runs.c.id.not_in(stored),
        )
        .limit(BATCH)
    )
    with store.database.write() as connection:
        old = list(connection.execute(query).scalars())
        for table in (steps, decisions, signals, artifacts):
            connection.execute(table.delete().where(table.c.run_id.in_(old)))
        connection.execute(runs.delete().where(runs.c.id.in_(old)))
    return len(old)


def _shorten_trail(connection: sa.Connection, cutoff: float) -> None:
    """Remove the entries before the first one that is younger, or belongs to an open incident or to a run that is kept.

    The newest entry always stays: SQLite would give its id again.
    """
    open_incidents = sa.select(incidents.c.id).where(incidents.c.status == IncidentStatus.OPEN.value)
    kept = sa.or_(
        timeline.c.at >= cutoff,
        timeline.c.incident_id.in_(open_incidents),
        timeline.c.run_id.in_(sa.select(runs.c.id)),
    )
    newest = sa.select(sa.func.max(timeline.c.id)).scalar_subquery()
    first_kept = (
        sa.select(sa.func.min(timeline.c.id)).where(sa.or_(kept, timeline.c.id == newest)).scalar_subquery()
    )
    query = (
        sa.select(timeline.c.id, timeline.c.hash)
        .where(timeline.c.id < first_kept)
        .order_by(timeline.c.id.desc())
        .limit(1)
    )
    last = connection.execute(query).one_or_none()
    if last is not None:
        connection.execute(sa.select(audit_chain.c.hash).with_for_update())
        connection.execute(audit_chain.update().values(anchor=last.hash, anchor_id=last.id))
        connection.execute(timeline.delete().where(timeline.c.id <= last.id))
