"""HAProxy's admin socket: one command per connection, answers as data.

The formats are those of HAProxy's management guide ("show stat", "show servers state" version 1), checked with 2.6. A command
takes 0.3-0.4 ms. A successful `set` answers with an empty line, a failed one with the reason.
"""

import asyncio
import csv
import io
import os
from pathlib import Path

from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import RouterDenied, RouterError, RouterGarbled, ServerState

ASK_TIMEOUT_S = 3.0

MAX_SOCKET_PATH = 107
"""sun_path holds 108 bytes including the final NUL (unix(7)). A longer path is reached through its folder's descriptor."""

SET_VERBS = ("set weight", "set server", "set maxconn", "set map", "shutdown sessions")
MAINT_BITS = 0x01 | 0x02 | 0x04 | 0x20 | 0x40
DRAIN_BITS = 0x08 | 0x10
"""srv_admin_state of "show servers state": forced, inherited, configured, DNS and resolver maintenance; drain."""

OPERATIONAL = {0: "DOWN", 1: "STARTING", 2: "UP", 3: "STOPPING"}


class StatRow(Frozen):
    """One server or backend line of "show stat". `limit` is its maxconn, or None."""

    backend: str
    server: str
    queued: int
    sessions: int
    limit: int | None
    requests_total: int
    responses_5xx: int
    responses_4xx: int
    resent: int
    streams_broken: int


class StateRow(Frozen):
    """One line of "show servers state"."""

    backend: str
    server: str
    operational: str
    admin_bits: int
    weight: int

    @property
    def admin_state(self) -> str:
        """`maint`, `drain` or `ready`, the strongest that applies."""
        return (
            "maint" if self.admin_bits & MAINT_BITS else "drain" if self.admin_bits & DRAIN_BITS else "ready"
        )


class HaproxySocket:
    """The admin socket of one HAProxy. Holds no connection, so it outlives restarts and works in any event loop."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def ask(self, command: str, *, timeout_s: float = ASK_TIMEOUT_S) -> str:
        """Send one command and return its answer without surrounding blank lines. Raises RouterError without an answer."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(command)
        except TimeoutError:
            raise RouterError(
                f"the router did not answer {command!r} on {self.path} within {timeout_s:.0f} s: it hangs or is overloaded"
            ) from None
        except PermissionError as error:
            raise RouterDenied(
                f"permission denied for {self.path}: run as its owner or in its group"
            ) from error
        except OSError as error:
            raise RouterError(
                f"the router's admin socket {self.path} does not answer ({error.strerror or error}): "
                "HAProxy is not running, or its 'stats socket' line names another path"
            ) from error

    async def set(self, command: str) -> None:
        """Send a changing command. Raises RouterError with the router's words if it answers anything."""
        if not command.startswith(SET_VERBS):
            raise ValueError(f"{command!r} is not one of the changing commands {SET_VERBS}")
        if reply := await self.ask(command):
            raise RouterError(f"the router refused {command!r}: {reply}")

    async def stat(self) -> list[StatRow]:
        """Return the counters of all backends and servers."""
        return parse_stat(await self.ask("show stat"))

    async def servers(self, *, timeout_s: float = ASK_TIMEOUT_S) -> tuple[ServerState, ...]:
        """Return every server's counters, weight and state. Raises RouterGarbled for an answer that is not HAProxy's."""
        stat = await self.ask("show stat", timeout_s=timeout_s)
        states = await self.ask("show servers state", timeout_s=timeout_s)
        try:
            return join_rows(parse_stat(stat), parse_states(states))
        except (KeyError, ValueError, TypeError) as error:
            raise RouterGarbled(
                f"{self.path} answered something that is not HAProxy's: {type(error).__name__}: {error}"
            ) from error

    async def info(self) -> dict[str, str]:
        """Return "show info": figures of the whole process by name."""
        lines = (line.partition(":") for line in (await self.ask("show info")).splitlines())
        return {name.strip(): value.strip() for name, _, value in lines}

    async def _exchange(self, command: str) -> str:
        reader, writer = await self._connect()
        try:
            writer.write(command.encode() + b"\n")
            await writer.drain()
            return (await reader.read()).decode(errors="replace").strip("\n")
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if len(os.fsencode(self.path)) <= MAX_SOCKET_PATH:
            return await asyncio.open_unix_connection(self.path)
        folder = os.open(self.path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            return await asyncio.open_unix_connection(f"/proc/self/fd/{folder}/{self.path.name}")
        finally:
            os.close(folder)


def parse_stat(text: str) -> list[StatRow]:
    """Parse "show stat" (CSV with a header that starts with "# ") without its frontends."""
    rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
    return [
        StatRow(
            backend=row["pxname"],
            server=row["svname"],
            queued=int(row["qcur"] or 0),
            sessions=int(row["scur"] or 0),
            limit=int(row["slim"]) if row["slim"] else None,
            requests_total=int(row["stot"] or 0),
            responses_5xx=int(row["hrsp_5xx"] or 0),
            responses_4xx=int(row["hrsp_4xx"] or 0),
            resent=int(row["wredis"] or 0),
            streams_broken=int(row["srv_abrt"] or 0),
        )
        for row in rows
        if row["svname"] != "FRONTEND"
    ]


def parse_states(text: str) -> list[StateRow]:
    """Parse "show servers state" (version 1: a version line, a header line, then one server per line)."""
    lines = text.splitlines()
    if not lines or lines[0].strip() != "1":
        raise RouterError(
            f"the router's 'show servers state' is not version 1: {text[:100]!r}; this HAProxy is not supported"
        )
    names = lines[1].removeprefix("# ").split()
    rows = [dict(zip(names, line.split(), strict=False)) for line in lines[2:] if line.strip()]
    return [
        StateRow(
            backend=row["be_name"],
            server=row["srv_name"],
            operational=OPERATIONAL.get(int(row["srv_op_state"]), row["srv_op_state"]),
            admin_bits=int(row["srv_admin_state"]),
            weight=int(row["srv_uweight"]),
        )
        for row in rows
    ]


def join_rows(stat: list[StatRow], states: list[StateRow]) -> tuple[ServerState, ...]:
    """Join both views of each server.

    HAProxy queues at the backend, not at the server, if any server could take the request. Only a server with a limit makes
    requests wait, so the backend's queue counts as its own.
    """
    by_name = {(row.backend, row.server): row for row in stat}
    joined: list[ServerState] = []
    for state in states:
        row = by_name.get((state.backend, state.server))
        if row is None:
            continue  # a server that was added or removed between the two reads
        pool = by_name.get((state.backend, "BACKEND"))
        waiting = pool.queued - _at_servers(stat, state.backend) if pool is not None and row.limit else 0
        joined.append(
            ServerState(
                backend=state.backend,
                server=state.server,
                weight=state.weight,
                admin_state=state.admin_state,
                operational=state.operational,
                sessions=row.sessions,
                queued=row.queued + max(0, waiting),
                requests_total=row.requests_total,
                responses_5xx=row.responses_5xx,
                responses_4xx=row.responses_4xx,
                resent=row.resent,
                streams_broken=row.streams_broken,
            )
        )
    return tuple(joined)


def _at_servers(stat: list[StatRow], backend: str) -> int:
    """Return the requests that wait at single servers; the backend's own figure includes them."""
    return sum(row.queued for row in stat if row.backend == backend and row.server != "BACKEND")
