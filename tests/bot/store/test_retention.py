"""Retention: what is old goes, what an open incident needs stays, and the audit trail can still be verified."""

import asyncio
import time
from pathlib import Path

import sqlalchemy as sa
from dbos import DBOS

from bot.incidents.incidents import Incidents
from bot.runs.dbos_config import sweep_workflows
from bot.store.records import Person, Place, RunStatus
from bot.store.retention import sweep_rows, sweep_run_folders
from bot.store.schema import metadata, timeline
from bot.store.store import Store
from tests.bot.toys import build, ended, start

DAY = 86_400.0
ONCALL = Person(id="U1", name="oncall")


def counts(store: Store) -> dict[str, int]:
    with store.database.read() as connection:
        return {
            table.name: int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())
            for table in metadata.sorted_tables
        }


async def test_old_runs_go_with_their_rows_folders_and_workflows_and_an_open_incident_keeps_its_own(
    tmp_path: Path,
) -> None:
    settings, store, runs = build(tmp_path / "state")
    incidents = Incidents(store)
    folder = settings.host_dir("toy") / "runs"
    await runs.engine.launch()
    try:
        old = [await ended(runs, (await start(runs, "look", script="count:a")).id) for _ in range(3)]
        incident = incidents.open(host="toy", title="t", place=Place(channel="C", thread_ts="1.1"), by=ONCALL)
        of_incident = await start(runs, "look", script="count:b")
        incidents.join(incident.id, of_incident.id)
        await ended(runs, of_incident.id)
        now = store.clock()
        store.clock = lambda: now + 200 * DAY
        young = await ended(runs, (await start(runs, "look", script="count:c")).id)
        assert sweep_rows(store, older_than_s=180 * DAY) == 3
        assert [run.id for run in runs.list()] == [young.id, of_incident.id]
        assert counts(store)["run_steps"] == 2
        report = store.audit.verify()
        assert (report.problem, report.removed_through > 0) == ("", True)
        assert incidents.timeline(incident.id) != []
        assert sweep_run_folders(store, [folder], older_than_s=30 * DAY) == 3
        assert sorted(path.name for path in folder.iterdir()) == sorted([of_incident.id, young.id])
        assert await sweep_workflows(older_than_s=DAY) == 0, "DBOS has its own clock: these ended just now"
        removed = 0
        async with asyncio.timeout(20):  # DBOS stores the end of a workflow a moment after our row
            while removed < 2 * len([*old, of_incident, young]):
                removed += await sweep_workflows(older_than_s=-1)
                await asyncio.sleep(0.02)
        assert await DBOS.list_workflows_async() == []
        assert runs.get(young.id).status is RunStatus.SUCCEEDED, "an ended run is read from its own rows"
        incidents.close(incident.id, by=ONCALL)
        store.clock = lambda: now + 500 * DAY
        assert sweep_rows(store, older_than_s=180 * DAY) == 2
        left = counts(store)
        assert (left["runs"], left["run_steps"], left["incidents"], left["timeline"]) == (0, 0, 0, 1)
        assert store.audit.verify().problem == ""
        await ended(runs, (await start(runs, "look", script="count:d")).id)
        assert store.audit.verify().problem == "", "the chain goes on where it was shortened"
    finally:
        await runs.engine.close()
        store.close()


async def test_a_shortened_trail_still_shows_a_change(tmp_path: Path) -> None:
    _, store, runs = build(tmp_path / "state")
    await runs.engine.launch()
    try:
        await ended(runs, (await start(runs, "look", script="count:a")).id)
        now = store.clock()
        store.clock = lambda: now + 200 * DAY
        await ended(runs, (await start(runs, "look", script="count:b")).id)
        await asyncio.to_thread(sweep_rows, store, older_than_s=180 * DAY)
        with store.database.write() as connection:
            first = connection.execute(sa.select(sa.func.min(timeline.c.id))).scalar_one()
            connection.execute(timeline.delete().where(timeline.c.id == first))
        assert store.audit.verify().broken_at == first + 1
    finally:
        await runs.engine.close()
        store.close()


async def test_a_run_in_progress_is_never_removed(tmp_path: Path) -> None:
    _, store, runs = build(tmp_path / "state")
    await runs.engine.launch()
    try:
        waiting = await start(runs, "gated", script="count:a")
        await runs.wait(waiting.id, until=lambda run: run.status is RunStatus.WAITING)
        store.clock = lambda: time.time() + 400 * DAY
        assert sweep_rows(store, older_than_s=180 * DAY) == 0
        assert await sweep_workflows(older_than_s=-1) == 0
    finally:
        await runs.engine.close()
        store.close()
