"""Hearing of what another process writes: nothing that comes between the first look and the first poll is missed."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.store.notifications import follow_changes
from bot.store.store import Store
from tests.bot.store.test_store import add_run
from tests.bot.toys import store_of


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    ours, theirs = store_of(tmp_path), store_of(tmp_path)
    yield ours, theirs
    ours.close()
    theirs.close()


async def test_what_was_written_before_the_following_began_to_run_is_told(
    stores: tuple[Store, Store],
) -> None:
    ours, theirs = stores
    add_run(theirs, "toy-0001")
    since = ours.version()
    add_run(theirs, "toy-0002")  # the other process is told that we are there, and this task has not run yet
    told: asyncio.Queue[str] = asyncio.Queue()
    following = asyncio.create_task(follow_changes(ours, told.put_nowait, since=since))
    try:
        assert await asyncio.wait_for(told.get(), 5) == "toy-0002"
        add_run(theirs, "toy-0003")
        assert await asyncio.wait_for(told.get(), 5) == "toy-0003"
        theirs.update_run("toy-0001", outcome="changed")
        assert await asyncio.wait_for(told.get(), 5) == "toy-0001"
    finally:
        following.cancel()
