"""The lock by which one bot of several serves a database: over a real PostgreSQL."""

import asyncio
from pathlib import Path

import psycopg
import pytest

from bot.fleet.standby import LOCK_KEY, LockLost, StandbyLock, first_bot
from bot.settings.model import FleetSettings, Settings

HOLDER = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND granted"


def holder(admin: str) -> int | None:
    with psycopg.connect(admin) as connection:
        found = connection.execute(HOLDER, (LOCK_KEY,)).fetchone()
    return found[0] if found else None


def end_connection(admin: str, pid: int | None) -> None:
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def settings_of(admin: str, folder: Path) -> Settings:
    fleet = FleetSettings(url=admin, signing_key=folder / "key")
    url = admin.replace("postgresql://", "postgresql+psycopg://")
    return Settings(_env_file=None, state_dir=folder, database_url=url, fleet=fleet)


async def test_the_second_bot_gets_the_lock_when_the_first_ones_connection_ends(admin: str) -> None:
    first, second = StandbyLock(admin), StandbyLock(admin)
    try:
        assert await first.try_take()
        assert not await second.try_take()
        waiting = asyncio.create_task(second.take())
        end_connection(admin, holder(admin))  # what the server does when a killed bot's socket closes
        async with asyncio.timeout(30):
            await waiting
            # the first has lost it, notices, and gives up
            with pytest.raises(LockLost, match="another bot has taken over"):
                await first.keep()
    finally:
        await first.release()
        await second.release()


async def test_a_bot_whose_connection_broke_takes_its_lock_again_and_goes_on(
    admin: str, tmp_path: Path
) -> None:
    stop = asyncio.Event()
    async with first_bot(settings_of(admin, tmp_path), stop) as is_first:
        assert is_first
        before = holder(admin)
        end_connection(admin, before)
        async with asyncio.timeout(30):
            while holder(admin) in (None, before):
                await asyncio.sleep(0.05)
        assert not stop.is_set()
    assert holder(admin) is None


async def test_a_bot_that_stands_by_can_be_stopped(admin: str, tmp_path: Path) -> None:
    stop = asyncio.Event()
    first = StandbyLock(admin)
    try:
        assert await first.try_take()
        asyncio.get_running_loop().call_later(0.2, stop.set)
        async with first_bot(settings_of(admin, tmp_path), stop) as is_first:
            assert not is_first
    finally:
        await first.release()


async def test_the_bot_that_was_overtaken_is_told_to_stop(admin: str, tmp_path: Path) -> None:
    stop = asyncio.Event()
    second = StandbyLock(admin)
    try:
        with pytest.raises(LockLost):
            async with first_bot(settings_of(admin, tmp_path), stop), asyncio.timeout(30):
                waiting = asyncio.create_task(second.take())
                while not waiting.done():
                    end_connection(admin, holder(admin))
                    await asyncio.sleep(0.3)
                await stop.wait()
    finally:
        await second.release()
