"""One bot at a time over one database: the others stand by until its advisory lock is free.

The lock is on `database_url`, which only bots can reach: PostgreSQL's advisory locks have no owner, so a lock on the
post box could be taken by a host's role. The server releases it when the connection of a killed bot closes.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import psycopg
import structlog

from bot.fleet.postbox import Away, conninfo
from bot.runs.process_lock import AlreadyRunning
from bot.settings.model import Settings
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

LOCK_KEY = 7_310_002
LOOK_S = 1.0
QUICK_LOSS = "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3"
"""The server notices within about 11 s that the machine of the first bot is gone."""


class LockLost(AlreadyRunning):
    """Another bot holds the lock. The message says so."""


class StandbyLock:
    """The lock of the bot that is connected to Slack."""

    def __init__(self, url: str) -> None:
        self._conninfo = conninfo(url, application="gpu-oncall-bot-lock", options=QUICK_LOSS)
        self._connection: psycopg.AsyncConnection[tuple[bool]] | None = None

    async def try_take(self) -> bool:
        """Return True if this process now holds the lock. Raise Away if the database does not answer."""
        try:
            if self._connection is None:
                self._connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
            cursor = await self._connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_KEY,))
            row = await cursor.fetchone()
        except Away:
            await self.release()
            raise
        return row is not None and row[0]

    async def take(self) -> None:
        """Wait until the lock is ours."""
        told = ""
        while True:
            try:
                if await self.try_take():
                    return
                state = "another bot serves this database: this one stands by"
            except Away as error:
                state = f"the database does not answer, waiting for it: {redacted_head(str(error), 200)}"
            if state != told:
                log.warning(state)
                told = state
            await asyncio.sleep(LOOK_S)

    async def keep(self) -> None:
        """Watch the lock for ever; take it again if the connection was lost. Raise LockLost if another bot has it now."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if self._connection is not None:
                    await self._connection.execute("SELECT 1")
                elif not await self.try_take():
                    raise LockLost(
                        "another bot has taken over: this one ends, and stands by when it is started again"
                    )
            except Away as error:
                log.warning("the bot's lock is uncertain", error=redacted_head(str(error), 200))
                await self.release()

    async def release(self) -> None:
        """Close the connection, which frees the lock."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                await self._connection.close()
        self._connection = None


@contextlib.asynccontextmanager
async def first_bot(settings: Settings, stop: asyncio.Event) -> AsyncIterator[bool]:
    """Hold the lock during the block, once it is free. Yield False if `stop` was set before.

    Set `stop` if another bot takes over meanwhile, and raise LockLost at the end of the block.
    """
    lock = StandbyLock(settings.own_database_url)
    keeping: asyncio.Task[None] | None = None
    try:
        taking, stopped = asyncio.create_task(lock.take()), asyncio.create_task(stop.wait())
        await asyncio.wait({taking, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not taking.done():
            taking.cancel()
            await asyncio.wait({taking})
            yield False
            return
        taking.result()
        keeping = asyncio.create_task(lock.keep())
        keeping.add_done_callback(lambda _: stop.set())
        yield True
        if keeping.done() and not keeping.cancelled():
            keeping.result()
    finally:
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait({keeping})
        await lock.release()
