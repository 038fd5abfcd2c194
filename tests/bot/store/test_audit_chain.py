"""Whatever is changed in the audit trail afterwards, and however often, its check finds it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.store.records import TimelineEntry
from bot.store.schema import timeline
from bot.store.store import Store

COUNT = 8
TEXT_COLUMNS = ("incident_id", "run_id", "host", "actor", "kind", "text", "hash")

numbers = st.integers(1, COUNT)
EDITS = st.one_of(
    st.tuples(st.just("text"), numbers, st.sampled_from(TEXT_COLUMNS), st.text('ab1:{}\\"é\n', max_size=6)),
    st.tuples(st.just("at"), numbers, st.floats(-1e9, 1e9, allow_nan=False)),
    st.tuples(
        st.just("data"), numbers, st.dictionaries(st.text("ab", max_size=2), st.integers(), max_size=2)
    ),
    st.tuples(st.just("delete"), numbers),
    st.tuples(st.just("swap"), numbers, numbers),
    st.tuples(st.just("copy"), numbers, st.integers(COUNT + 1, 2 * COUNT)),
)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        made = Store(f"sqlite:///{Path(folder) / 'rows.sqlite'}")
        made.create()
        for number in range(COUNT):
            entry = TimelineEntry(
                at=number / 3, host="h1", actor=f"U{number % 2}", kind="note", text=f"ab{number}", data={"a": number},
                run_id="fb-aaaa" if number % 3 else None,
            )  # fmt: skip
            made.audit.record(entry)
        yield made
        made.close()


def apply(connection: sa.Connection, edit: tuple[object, ...]) -> None:
    """Change the trail as somebody with access to the database would."""
    what, number, *rest = edit
    this = timeline.c.id == number
    if what == "text":
        connection.execute(timeline.update().where(this).values({str(rest[0]): rest[1]}))
    elif what in ("at", "data"):
        connection.execute(timeline.update().where(this).values({str(what): rest[0]}))
    elif what == "delete":
        connection.execute(timeline.delete().where(this))
    elif what == "swap":
        for old, new in ((number, -1), (rest[0], number), (-1, rest[0])):
            connection.execute(timeline.update().where(timeline.c.id == old).values(id=new))
    else:
        row = connection.execute(timeline.select().where(this)).one_or_none()
        taken = connection.execute(timeline.select().where(timeline.c.id == rest[0])).one_or_none()
        if row is not None and taken is None:
            connection.execute(timeline.insert().values({**row._mapping, "id": rest[0]}))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EDITS, min_size=1, max_size=4))
def test_any_edits_of_the_trail_are_found_and_no_edit_is_no_alarm(
    store: Store, edits: list[tuple[object, ...]]
) -> None:
    with store.database.read() as connection:
        written = connection.execute(timeline.select().order_by(timeline.c.id)).all()
    assert store.audit.verify().problem == ""
    with store.database.write() as connection:
        for edit in edits:
            apply(connection, edit)
        now = connection.execute(timeline.select().order_by(timeline.c.id)).all()
    try:
        assert bool(store.audit.verify().problem) == (now != written)
    finally:
        with store.database.write() as connection:
            connection.execute(timeline.delete())
            connection.execute(timeline.insert(), [dict(row._mapping) for row in written])
