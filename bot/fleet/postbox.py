"""Both ends of the post box in PostgreSQL (`postbox.sql`): the bot's and a host's.

Each end keeps one connection, made when it is first needed and again after it was lost. A caller waits at most
CONNECT_S and LOCK_S for it and then sees a `psycopg.OperationalError`: nothing here blocks for as long as the database is away.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, NoReturn

import psycopg
import structlog
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from bot.fleet.orders import SignedOrder
from gpu_actions.models import Frozen, JsonObject
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

CONNECT_S = 5
RETRY_S = 2.0
STATEMENT_TIMEOUT_MS = 15_000
BOT_CHANNEL = "oncall_bot"
HOST_CHANNEL = "oncall_host_"

Away = psycopg.OperationalError
"""What every method raises while the database does not answer."""


class Enrolled(Frozen):
    """An enrolled host: its labels, what its worker last said, and how long ago that was (None: never)."""

    name: str
    labels: dict[str, str]
    sign: JsonObject | None = None
    age_s: float | None = None


class PendingOrder(Frozen):
    """An order that waits for its host. `taken` is True if the worker began with it and was interrupted."""

    id: int
    signed: SignedOrder
    taken: bool


class Report(Frozen):
    """What a host says about a run, a file of it, or an alert."""

    host: str
    kind: str
    key: str
    seq: int
    body: JsonObject


def conninfo(url: str, *, application: str, options: str) -> str:
    """Return how to connect so that a lost peer is noticed within seconds."""
    return make_conninfo(
        url.replace("postgresql+psycopg://", "postgresql://", 1),
        connect_timeout=CONNECT_S,
        application_name=application,
        options=options,
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
        tcp_user_timeout=10_000,
    )


async def keep_trying(name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> NoReturn:
    """Run a loop for ever; begin it anew when the database is back."""
    away = False
    while True:
        try:
            await loop()
        except Away as error:
            if not away:
                log.warning(
                    "the fleet's database is away, retrying", loop=name, error=redacted_head(str(error), 200)
                )
            away = True
        except Exception:
            log.exception("a loop of the fleet failed, retrying", loop=name)
        else:
            away = False
        await asyncio.sleep(RETRY_S)


class _End:
    """One connection with its lock, in autocommit mode."""

    def __init__(self, url: str, *, application: str) -> None:
        self._conninfo = conninfo(
            url, application=application, options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS}"
        )
        self._connection: psycopg.AsyncConnection[dict[str, Any]] | None = None
        self._lock = asyncio.Lock()

    async def connect(self) -> "psycopg.AsyncConnection[dict[str, Any]]":
        """Return a new connection."""
        return await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True, row_factory=dict_row)

    async def _all(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Run one statement. A connection that was lost while idle is replaced once."""
        async with self._lock:
            for last in (False, True):
                try:
                    if self._connection is None or self._connection.closed:
                        self._connection = await self.connect()
                    cursor = await self._connection.execute(query.encode(), values)
                    return await cursor.fetchall() if cursor.description else []
                except Away:
                    await self._drop()
                    if last:
                        raise
        raise AssertionError

    async def listen(self, channel: str, *, every_s: float) -> AsyncGenerator[None, None]:
        """Yield at once, at each notification, and every `every_s` seconds. Raise `Away` when the connection is lost."""
        connection = await self.connect()
        try:
            await connection.execute(f'LISTEN "{channel}"'.encode())
            while True:
                yield
                async for _ in connection.notifies(timeout=every_s, stop_after=1):
                    pass
                if connection.closed:
                    raise Away("the connection is closed")
        finally:
            await connection.close()

    async def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):
                await self._connection.close()
        self._connection = None

    async def close(self) -> None:
        await self._drop()


class BotEnd(_End):
    """The bot's end: it sends orders and reads what the hosts report."""

    def __init__(self, url: str) -> None:
        super().__init__(url, application="gpu-oncall-bot")

    async def hosts(self) -> list[Enrolled]:
        """Return the enrolled hosts by name."""
        rows = await self._all(
            "SELECT h.name, h.labels, s.body AS sign, extract(epoch FROM now() - s.at)::float8 AS age_s "
            "FROM fleet.hosts h LEFT JOIN fleet.signs s ON s.host = h.name WHERE h.revoked_at IS NULL ORDER BY h.name"
        )
        return [Enrolled.model_validate(row) for row in rows]

    async def send(self, host: str, signed: SignedOrder) -> int:
        """Put an order into the box. Return its id."""
        query = "INSERT INTO fleet.orders (host, envelope, signature) VALUES (%s, %s, %s) RETURNING id"
        return int((await self._all(query, host, signed.envelope, signed.signature))[0]["id"])

    async def answers(self) -> list[tuple[int, str, JsonObject]]:
        """Return the answered orders as `(id, envelope, answer)`. Each stays until `forget`, so that a kill loses none."""
        rows = await self._all(
            "SELECT id, envelope, answer FROM fleet.orders WHERE answered_at IS NOT NULL ORDER BY id LIMIT 100"
        )
        return [(row["id"], row["envelope"], _object(row["answer"])) for row in rows]

    async def forget(self, order_id: int) -> None:
        """Remove an order whose answer was acted on."""
        await self._all("DELETE FROM fleet.orders WHERE id = %s", order_id)

    async def withdraw(self, *, older_than_s: float) -> None:
        """Answer the orders that no worker has taken for so long: from then on no worker takes them."""
        await self._all(
            "UPDATE fleet.orders SET answered_at = now(), answer = %s WHERE taken_at IS NULL AND answered_at IS NULL "
            "AND created_at < now() - make_interval(secs => %s)",
            Jsonb(
                {
                    "refused": f"its worker did not take the order within {older_than_s:.0f} s",
                    "withdrawn": True,
                }
            ),
            older_than_s,
        )

    async def reports(self, *, limit: int = 50) -> list[Report]:
        """Return the oldest unread reports."""
        query = "SELECT host, kind, key, seq, body FROM fleet.reports ORDER BY seq LIMIT %s"
        return [Report.model_validate(row) for row in await self._all(query, limit)]

    async def content(self, report: Report) -> bytes:
        """Return the content of a reported file."""
        query = "SELECT content FROM fleet.reports WHERE host = %s AND kind = %s AND key = %s"
        rows = await self._all(query, report.host, report.kind, report.key)
        return bytes(rows[0]["content"] or b"") if rows else b""

    async def read(self, report: Report) -> None:
        """Remove a report that was read, unless its host has replaced it meanwhile."""
        await self._all(
            "DELETE FROM fleet.reports WHERE host = %s AND kind = %s AND key = %s AND seq = %s",
            report.host,
            report.kind,
            report.key,
            report.seq,
        )


class HostEnd(_End):
    """A host's end: it takes its orders, and reports. `host` is the name under which it is enrolled."""

    def __init__(self, url: str, *, host: str) -> None:
        super().__init__(url, application=f"gpu-oncall-worker-{host}")
        self.host = host

    async def enrolled_as(self) -> str | None:
        """Return the host that this role belongs to, or None if it is not enrolled or was revoked."""
        found = (await self._all("SELECT fleet.me() AS me"))[0]["me"]
        return None if found is None else str(found)

    async def clock_difference_s(self) -> float:
        """Return by how many seconds the database's clock is ahead of `now` on this host, give or take the round trip."""
        import time

        before = time.time()
        row = (await self._all("SELECT extract(epoch FROM clock_timestamp())::float8 AS now"))[0]
        return float(row["now"]) - (before + time.time()) / 2

    async def beat(self, body: JsonObject) -> None:
        """Leave a sign of life."""
        await self._all(
            "INSERT INTO fleet.signs (host, at, body) VALUES (%s, now(), %s) "
            "ON CONFLICT (host) DO UPDATE SET at = now(), body = excluded.body",
            self.host,
            Jsonb(body),
        )

    async def pending(self) -> Sequence[PendingOrder]:
        """Return the unanswered orders, oldest first."""
        rows = await self._all(
            "SELECT id, envelope, signature, taken_at IS NOT NULL AS taken FROM fleet.orders "
            "WHERE host = %s AND answered_at IS NULL ORDER BY id LIMIT 100",
            self.host,
        )
        return [
            PendingOrder(
                id=row["id"],
                signed=SignedOrder(envelope=row["envelope"], signature=row["signature"]),
                taken=row["taken"],
            )
            for row in rows
        ]

    async def take(self, order_id: int) -> bool:
        """Mark an order as taken. Return False if the bot has withdrawn it."""
        query = (
            "UPDATE fleet.orders SET taken_at = coalesce(taken_at, now()) "
            "WHERE id = %s AND answered_at IS NULL RETURNING id"
        )
        return bool(await self._all(query, order_id))

    async def answer(self, order_id: int, answer: JsonObject) -> None:
        """Answer an order, which ends it."""
        await self._all(
            "UPDATE fleet.orders SET answer = %s, answered_at = now() WHERE id = %s",
            Jsonb(answer),
            order_id,
        )

    async def report(self, kind: str, key: str, body: JsonObject, content: bytes | None = None) -> None:
        """Report the newest state of a thing; an unread earlier one is replaced."""
        await self._all(
            "INSERT INTO fleet.reports (host, kind, key, body, content) VALUES (%s, %s, %s, %s, %s) "
            "ON CONFLICT (host, kind, key) DO UPDATE SET seq = nextval('fleet.report_seq'), "
            "body = excluded.body, content = excluded.content",
            self.host,
            kind,
            key,
            Jsonb(_without_nul(body)),
            content,
        )

    async def is_unread(self, kind: str, key: str) -> bool:
        """Return True while the bot has not read a report."""
        query = "SELECT 1 AS one FROM fleet.reports WHERE host = %s AND kind = %s AND key = %s"
        return bool(await self._all(query, self.host, kind, key))


def _without_nul(body: JsonObject) -> JsonObject:
    """Replace NUL characters, which PostgreSQL's JSON cannot hold and a log line may contain."""
    text = json.dumps(body)
    return dict(json.loads(text.replace("\\u0000", "\\ufffd"))) if "\\u0000" in text else body


def _object(answer: Any) -> JsonObject:
    """Return a host's answer, which may be any JSON, as an object."""
    return answer if isinstance(answer, dict) else {"refused": "its worker gave no readable answer"}
