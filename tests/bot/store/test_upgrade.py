"""Databases of other versions: migrated, continued, or refused with a sentence."""

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from bot.runs.approvals import Approvals
from bot.store import upgrade
from bot.store.audit import AuditReport
from bot.store.records import RunStatus, TimelineEntry
from bot.store.schema import SCHEMA_VERSION, metadata
from bot.store.schema import runs as runs_table
from bot.store.store import Store
from bot.store.upgrade import DatabaseTooNew
from tests.bot.toys import LEAD, build, effects, effects_dir, ended, start
from tests.postgres import postgresql

DATABASES = Path(__file__).parents[2] / "data" / "databases"
COMMITS = sorted(path.name for path in DATABASES.iterdir() if path.is_dir())


def restore(state_dir: Path, commit: str) -> dict[str, str]:
    """Write the database of an earlier commit's bot, killed in the middle of two runs. Return its runs by action."""
    state_dir.mkdir(parents=True)
    for name in ("gpu-oncall", "dbos"):
        with sqlite3.connect(state_dir / f"{name}.sqlite") as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript((DATABASES / commit / f"{name}.sql").read_text())
        connection.close()
    with sqlite3.connect(state_dir / "gpu-oncall.sqlite") as connection:
        connection.execute(
            "UPDATE runs SET gate_expires_at = ? WHERE status = 'waiting'", [time.time() + 600]
        )
        runs = dict(connection.execute("SELECT action, id FROM runs").fetchall())
    connection.close()
    effects_dir(state_dir).mkdir(parents=True)
    (effects_dir(state_dir) / "a").write_text("\n")  # what the earlier bot's first step left on the host
    return runs


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgresql() as url:
        yield url


@pytest.mark.parametrize("commit", COMMITS)
async def test_the_runs_of_an_earlier_version_are_continued(tmp_path: Path, commit: str) -> None:
    state_dir = tmp_path / "state"
    runs_by_action = restore(state_dir, commit)
    _, store, runs = build(state_dir)
    try:
        await runs.engine.launch()
        waiting = runs.get(runs_by_action["gated"])
        assert waiting.status is RunStatus.WAITING
        answer = await Approvals(store).decide(
            run_id=waiting.id, user=LEAD, decision="approve", plan_hash=waiting.plan_hash
        )
        assert answer.accepted, answer.message
        (effects_dir(state_dir) / "release").touch()
        assert (await ended(runs, runs_by_action["gated"])).status is RunStatus.SUCCEEDED
        assert (await ended(runs, runs_by_action["look"])).status is RunStatus.SUCCEEDED
        assert effects(state_dir, "a") == [""], "a step that had ended does not run again"
        assert len(effects(state_dir, "c")) == 1
        old = runs.get(runs_by_action["toy"])
        assert old.status is RunStatus.SUCCEEDED and [record.artifact.name for record in old.artifacts] == [
            "report.txt"
        ]
        assert runs.get(runs_by_action["triage"]).steps[0].verdict is not None
        assert store.audit.verify().problem == ""
    finally:
        await runs.engine.close()
        store.close()
    copy = upgrade.copy_of(state_dir / "gpu-oncall.sqlite", "0001")
    assert copy.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(copy) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (4,)


def _differences(engine: sa.Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))


@pytest.mark.parametrize("commit", COMMITS)
def test_a_migrated_database_has_the_schema_of_a_new_one(tmp_path: Path, commit: str) -> None:
    restore(tmp_path / "state", commit)
    store = Store(f"sqlite:///{tmp_path / 'state' / 'gpu-oncall.sqlite'}")
    store.create()
    assert _differences(store.database.engine) == []
    store.close()


def test_postgresql_gets_the_same_schema_from_the_migrations(postgres_url: str) -> None:
    store = Store(postgres_url)
    engine = store.database.engine
    first = sa.MetaData()  # the schema of version 0001: today's, without what later versions add
    for table in metadata.sorted_tables:
        if table.name not in ("audit_chain", "alert_groups", "pages"):
            table.to_metadata(first)
    first.tables["timeline"]._columns.remove(first.tables["timeline"].c.hash)  # type: ignore[attr-defined]
    first.create_all(engine)
    with engine.begin() as connection:
        entry = {
            "at": 1.5,
            "host": "h1",
            "actor": "U1",
            "kind": "note",
            "text": "från före",
            "data": {"a": [1, 0.1]},
        }
        connection.execute(first.tables["timeline"].insert().values(entry))
    store.create()
    assert _differences(engine) == []
    report = store.audit.verify()
    assert (report.problem, report.entries) == ("", 1)
    store.close()


async def test_two_processes_upgrade_one_after_the_other(tmp_path: Path) -> None:
    restore(tmp_path / "state", COMMITS[0])
    stores = [Store(f"sqlite:///{tmp_path / 'state' / 'gpu-oncall.sqlite'}") for _ in range(4)]
    await asyncio.gather(*(asyncio.to_thread(store.create) for store in stores))
    for store in stores:
        assert store.audit.verify().problem == ""
        store.close()


def test_alembic_reads_the_version_of_a_new_database(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'rows.sqlite'}")
    store.create()
    with store.database.engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == SCHEMA_VERSION
    store.close()


def test_the_newest_migration_is_the_version_of_the_schema() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(upgrade.__file__).with_name("migrations")))
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA_VERSION


def test_a_database_of_a_newer_version_is_refused_and_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "rows.sqlite"
    store = Store(f"sqlite:///{file}")
    store.create()
    with store.database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9001'"))
    upgrade.copy_of(file, SCHEMA_VERSION).touch()
    with pytest.raises(DatabaseTooNew, match="schema 9001 of a newer gpu-oncall") as refused:
        store.create()
    assert f"{file}.schema-{SCHEMA_VERSION} in its place" in str(refused.value)
    store.close()


def _change(store: Store, run_id: str, column: str, change: Any) -> None:
    this = runs_table.c.id == run_id
    with store.database.write() as connection:
        stored = connection.execute(sa.select(runs_table.c[column]).where(this)).scalar_one()
        connection.execute(runs_table.update().where(this).values({column: change(stored)}))


async def test_fields_of_another_version_are_ignored_in_everything_but_a_plan(tmp_path: Path) -> None:
    _, store, runs = build(tmp_path / "state")
    await runs.engine.launch()
    try:
        run = await start(runs, "triage", script="verdict:look")
        await ended(runs, run.id)
        for column in ("requester", "place"):
            _change(store, run.id, column, lambda stored: {**stored, "added_later": {"x": 1}})
        with store.database.write() as connection:
            connection.execute(
                sa.text(
                    """UPDATE run_steps SET verdict = json_insert(verdict, '$.added_later', 1) WHERE run_id = :id"""
                ),
                {"id": run.id},
            )
        read = runs.get(run.id)
        assert read.requester.name == "oncall" and read.steps[0].verdict is not None and read.unreadable == ()
        found = store.last_verdict("toy", max_age_s=60)
        assert found is not None and found[0].cause == "nccl_hang"
        with store.database.write() as connection:
            connection.execute(
                sa.text(
                    "UPDATE run_steps SET verdict = json_set(verdict, '$.verdict', 'quarantine') WHERE run_id = :id"
                ),
                {"id": run.id},
            )
        read = runs.get(run.id)
        assert read.unreadable == ("step look",)
        assert [step.summary for step in read.steps] == ["bad"], "the readable part of the step stays"
        assert store.last_verdict("toy", max_age_s=60) is None, "a verdict that cannot be read is no verdict"
        with store.database.write() as connection:
            connection.execute(sa.text("UPDATE runs SET status = 'parked' WHERE id = :id"), {"id": run.id})
        other = await start(runs, "triage", script="calm:look")
        await ended(runs, other.id)
        assert [one.id for one in store.list()] == [other.id], "one unreadable run does not hide the others"
    finally:
        await runs.engine.close()
        store.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: {**plan, "version": 2}, "its plan has format 2, this version reads format 1"),
        (
            lambda plan: {**plan, "steps": [{**step, "only_if": "x"} for step in plan["steps"]]},
            "its plan has steps.0.only_if that this version does not know",
        ),
    ],
)
async def test_a_plan_of_another_version_is_not_carried_out_and_the_run_says_why(
    tmp_path: Path, change: Any, said: str
) -> None:
    _, store, runs = build(tmp_path / "state")
    await runs.engine.launch()
    try:
        run = await start(runs, "gated", script="count:a")
        waiting = await runs.wait(run.id, until=lambda run: run.status is RunStatus.WAITING)
        _change(store, run.id, "plan", change)
        answer = await Approvals(store).decide(
            run_id=run.id, user=LEAD, decision="approve", plan_hash=waiting.plan_hash
        )
        assert not answer.accepted and said in answer.message
        store.update_run(run.id, next_action="")  # wakes the run
        over = await ended(runs, run.id)
        assert over.status is RunStatus.FAILED
        assert said in over.outcome and "Nothing was touched" in over.outcome
        assert over.unreadable == (said,)
        assert effects(tmp_path / "state", "a") == []
    finally:
        await runs.engine.close()
        store.close()


INSERT_AGAIN = (
    "INSERT INTO timeline (at, host, actor, kind, text, data, hash) "
    "SELECT at, host, actor, kind, text, data, hash FROM timeline WHERE id = 2"
)


def _tampered(store: Store, *statements: str) -> AuditReport:
    with store.database.write() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    return store.audit.verify()


@pytest.mark.parametrize(
    ("statements", "broken_at"),
    [
        (["UPDATE timeline SET text = 'nothing happened' WHERE id = 3"], 3),
        (["UPDATE timeline SET actor = 'U_OTHER' WHERE id = 1"], 1),
        (["DELETE FROM timeline WHERE id = 2"], 3),
        (["DELETE FROM timeline WHERE id = 5"], None),
        (["UPDATE timeline SET id = 99 WHERE id = 3"], 4),
        ([INSERT_AGAIN], 6),
        (["UPDATE audit_chain SET hash = 'x'"], None),
    ],
)
def test_each_change_of_the_audit_trail_is_noticed(
    tmp_path: Path, statements: list[str], broken_at: int | None
) -> None:
    store = Store(f"sqlite:///{tmp_path / 'rows.sqlite'}")
    store.create()
    for number in range(5):
        store.audit.record(
            TimelineEntry(at=number + 0.1, host="h1", actor="U1", kind="note", text=f"note {number}")
        )
    assert store.audit.verify().problem == ""
    report = _tampered(store, *statements)
    assert report.problem and report.broken_at == broken_at
    store.close()


def test_a_trail_that_was_written_anew_lacks_the_hash_that_was_kept_elsewhere(tmp_path: Path) -> None:
    hashes = []
    for name in ("first", "second"):
        store = Store(f"sqlite:///{tmp_path / name}")
        store.create()
        for number in range(3):
            store.audit.record(
                TimelineEntry(at=number, host="h1", actor="U1", kind="note", text=f"{name} {number}")
            )
            hashes.append(store.audit.verify().last_hash)
        assert store.audit.verify(expected=hashes[-2]).problem == ""
        store.close()
    store = Store(f"sqlite:///{tmp_path / 'second'}")
    assert "written anew" in store.audit.verify(expected=hashes[1]).problem
    store.close()
