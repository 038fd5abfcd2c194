"""The store: deliveries, incidents, the audit trail, and the version of changes."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.incidents.incidents import Incidents
from bot.store import store as store_module
from bot.store.records import IncidentStatus, Person, Place, RunRecord, RunStatus, UserError
from bot.store.retention import sweep_rows
from bot.store.store import ID_ALPHABET, Store

ONCALL = Person(id="U1", name="oncall")
THREAD = Place(channel="C1", thread_ts="1.1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'state' / 'rows.sqlite'}")
    made.create()
    yield made
    made.close()


def add_run(store: Store, run_id: str = "toy-2222") -> RunRecord:
    record = RunRecord(
        id=run_id,
        action="toy",
        host="h1",
        status=RunStatus.PLANNING,
        requester=ONCALL,
        place=THREAD,
        created_at=store.clock(),
    )
    return store.insert_run(record, dedupe_key=run_id, changes_host=False)[0]


def test_the_database_is_private_and_in_wal_mode(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "state" / "rows.sqlite"
    assert file.stat().st_mode & 0o777 == 0o600
    with store.database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_a_delivery_is_new_exactly_once_across_threads(store: Store) -> None:
    answers: list[bool] = []
    threads = [
        threading.Thread(target=lambda: answers.append(store.deliveries.first_time("envelope")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 7 + [True]
    assert store.deliveries.first_time("another")
    assert store.deliveries.sweep(older_than_s=-1) == 2
    assert store.deliveries.first_time("envelope")


def test_many_threads_write_without_losing_a_change(store: Store) -> None:
    run = add_run(store)

    def write() -> None:
        for n in range(20):
            store.update_run(run.id, next_action=str(n))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = store.get(run.id)
    assert now is not None
    assert now.version == run.version + 80


def test_changed_since_returns_only_what_changed(store: Store) -> None:
    first, second = add_run(store, "toy-2222"), add_run(store, "toy-3333")
    assert [run_id for run_id, _ in store.changed_since(0)] == [first.id, second.id]
    seen = store.changed_since(0)[-1][1]
    assert store.changed_since(seen) == []
    store.set_message_ts(first.id, "17.2")
    ((run_id, version),) = store.changed_since(seen)
    assert run_id == first.id
    run = store.get(first.id)
    assert run is not None
    assert (run.version, run.message_ts) == (version, "17.2")


def test_run_ids_can_be_read_aloud(store: Store) -> None:
    assert not set("aeiou01lio") & set(ID_ALPHABET)
    run_id = store.new_id("fb")
    assert run_id.startswith("fb-")
    assert len(run_id) == 7
    add_run(store, run_id)
    with pytest.raises(ValueError, match="taken"):
        store.insert_run(
            add_run(store, "toy-4444").model_copy(update={"id": run_id}), dedupe_key="x", changes_host=False
        )


def test_the_id_of_a_removed_run_is_not_given_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its message is still in Slack: a second run of the same id would have two."""
    monkeypatch.setattr(store_module, "ID_ALPHABET", "bc")  # 16 ids
    now = store.clock()
    given = set()
    for _ in range(16):
        run = add_run(store, store.new_id("toy"))
        given.add(run.id)
        with store.change(run.id) as change:
            change.set_status(RunStatus.SUCCEEDED)
        now += 200 * 86_400
        store.clock = lambda at=now: at  # type: ignore[misc]
        assert sweep_rows(store, older_than_s=86_400) == 1
    assert len(given) == 16


def test_a_host_has_one_open_incident_with_an_ordered_timeline(store: Store) -> None:
    incidents = Incidents(store)
    opened = incidents.open(host="h1", title="requests stall", place=THREAD, by=ONCALL, cause="nccl_hang")
    with pytest.raises(UserError, match=f"{opened.id} is already open on h1"):
        incidents.open(host="h1", title="again", place=THREAD, by=ONCALL)
    other = incidents.open(host="h2", title="other", place=Place(channel="C2"), by=ONCALL)
    assert incidents.active("h1") == opened
    assert incidents.active("h3") is None
    assert incidents.for_place(THREAD) == opened
    assert incidents.for_place(Place(channel="C2")) == other
    assert incidents.for_place(Place(channel="C1", thread_ts="9.9")) is None
    run = add_run(store)
    incidents.join(opened.id, run.id)
    incidents.note(opened.id, by=ONCALL, text=" customers call ")
    closed = incidents.close(opened.id, by=ONCALL)
    assert closed.status is IncidentStatus.CLOSED
    with pytest.raises(UserError, match="already closed"):
        incidents.close(opened.id, by=ONCALL)
    assert [(e.kind, e.run_id) for e in incidents.timeline(opened.id)] == [
        ("incident.open", None),
        ("incident.join", run.id),
        ("note", None),
        ("incident.close", None),
    ]
    assert incidents.timeline(opened.id)[2].text == "customers call"
    assert incidents.active("h1") is None
    incidents.open(host="h1", title="the next one", place=THREAD, by=ONCALL)


def test_the_audit_trail_is_exported_as_json_lines(store: Store) -> None:
    for n in range(3):
        add_run(store, f"toy-{n}")
    lines = [json.loads(line) for line in store.audit.json_lines()]
    assert [line["run_id"] for line in lines] == ["toy-0", "toy-1", "toy-2"]
    assert {"at", "actor", "kind", "text", "host", "data", "id"} <= set(lines[0])
    assert list(store.audit.json_lines(since=store.clock() + 60)) == []
