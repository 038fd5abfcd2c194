"""The poll for changes of another process misses nothing between the first read and the first poll."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import bot.store.run_changes
from bot.store.run_changes import poll_changes
from bot.store.store import Store
from tests.bot.store.test_store import add_run
from tests.bot.toys import store_of


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    ours, theirs = store_of(tmp_path), store_of(tmp_path)
    yield ours, theirs
    ours.close()
    theirs.close()


async def test_changes_before_the_first_poll_are_notified(
    stores: tuple[Store, Store],
) -> None:
    ours, theirs = stores
    add_run(theirs, "toy-0001")
    since = ours.version()
    add_run(theirs, "toy-0002")  # this process has announced itself, and the poll has not begun
    changed: asyncio.Queue[str] = asyncio.Queue()
    ours.subscribe(changed.put_nowait)
    polling = asyncio.create_task(poll_changes(ours, since=since))
    try:
        assert await asyncio.wait_for(changed.get(), 5) == "toy-0002"
        add_run(theirs, "toy-0003")
        assert await asyncio.wait_for(changed.get(), 5) == "toy-0003"
        theirs.update_run("toy-0001", outcome="changed")
        assert await asyncio.wait_for(changed.get(), 5) == "toy-0001"
    finally:
        polling.cancel()


async def test_a_quiet_sqlite_database_is_not_asked_and_a_commit_is_found_all_the_same(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = stores
    monkeypatch.setattr(bot.store.run_changes, "FRESH_S", 0.0)
    monkeypatch.setattr(bot.store.run_changes, "ANYWAY_S", 3600.0)
    monkeypatch.setattr(bot.store.run_changes, "POLL_S", 0.02)
    asked = []
    ask = ours.changed_since
    monkeypatch.setattr(ours, "changed_since", lambda seen: asked.append(seen) or ask(seen))
    add_run(theirs, "toy-0001")
    changed: asyncio.Queue[str] = asyncio.Queue()
    ours.subscribe(changed.put_nowait)
    polling = asyncio.create_task(poll_changes(ours, since=ours.version()))
    try:
        await asyncio.sleep(0.5)
        assert len(asked) <= 2, "the first poll asks, and perhaps one more after the commit of the set-up"
        for outcome in "abc":
            await asyncio.sleep(0.05)
            theirs.update_run("toy-0001", outcome=outcome)
            assert await asyncio.wait_for(changed.get(), 5) == "toy-0001"
    finally:
        polling.cancel()
