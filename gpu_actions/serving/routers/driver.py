"""A router driver's own logic, over the few calls that a kind implements.

A new kind of router is a subclass of `RouterDriver` that reads its server lines and writes a weight, an administrative state
and an end of sessions. What it cannot do (limits, holding requests, a record of requests) has a default that says so.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from gpu_actions.serving.interfaces import RequestsUnknown, RouterError, ServedAnswer, ServerState
from gpu_actions.serving.request_account import RequestAccount

LARGEST_WEIGHT = 256
READ_TIMEOUT_S = 3.0

STATES = ("maint", "drain", "ready")
"""Administrative states, the worst first."""


def usable_totals(servers: Sequence[ServerState]) -> dict[str, int]:
    """Return each backend's usable weight: that of servers that are ready and not known to be down."""
    totals = dict.fromkeys((row.backend for row in servers), 0)
    for row in servers:
        if row.admin_state == "ready" and row.operational != "DOWN":
            totals[row.backend] += row.weight
    return totals


def changed(servers: Sequence[ServerState], server: str, **update: object) -> tuple[ServerState, ...]:
    """Return the servers as they would be after a change of one server's lines."""
    return tuple(row.model_copy(update=update) if row.server == server else row for row in servers)


def lines_of(rows: Sequence[ServerState], server: str) -> list[ServerState]:
    """Return the lines of a server, one in each backend. Raises RouterError if a backend does not have it."""
    backends = dict.fromkeys(row.backend for row in rows)
    lines = [row for row in rows if row.server == server]
    missing = set(backends) - {row.backend for row in lines}
    if missing or not lines:
        known = ", ".join(f"{row.backend}/{row.server}" for row in rows)
        wanted = f"{sorted(missing)[0]}/{server}" if missing else server
        raise RouterError(f"the router has no server {wanted}; it has: {known}")
    return lines


def summed(rows: Sequence[ServerState], server: str) -> ServerState:
    """Return a server's state over its backends: summed counts, the worst operational and administrative state."""
    lines = lines_of(rows, server)
    down = [line.operational for line in lines if line.operational != "UP"]
    return ServerState(
        backend=lines[0].backend,
        server=server,
        weight=lines[0].weight,
        admin_state=min((line.admin_state for line in lines), key=STATES.index),
        operational=down[0] if down else "UP",
        sessions=sum(line.sessions for line in lines),
        queued=sum(line.queued for line in lines),
        requests_total=sum(line.requests_total for line in lines),
        responses_5xx=sum(line.responses_5xx for line in lines),
        responses_4xx=sum(line.responses_4xx for line in lines),
        resent=sum(line.resent for line in lines),
        streams_broken=sum(line.streams_broken for line in lines),
    )


class RouterDriver(ABC):
    """Implements `Router`: absolute weights (0-256) that are read back, and never a total usable weight of 0."""

    url: str
    address: str
    standby_weight = 0

    # -- what a kind implements ----------------------------------------------------------------------------------

    @abstractmethod
    async def servers(self, *, timeout_s: float = READ_TIMEOUT_S) -> tuple[ServerState, ...]:
        """Return the server lines of the configured backends."""

    @abstractmethod
    async def write_weight(self, line: ServerState, weight: int) -> None:
        """Set the weight of one server line."""

    @abstractmethod
    async def write_admin_state(self, line: ServerState, state: str) -> None:
        """Make one server line `ready` or `drain` it."""

    @abstractmethod
    async def abort_sessions(self, server: str) -> int:
        """End its open sessions and return how many there were. Their clients see a broken stream."""

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Surround each change, for example with a lock."""
        yield

    # -- what it may leave as it is ------------------------------------------------------------------------------

    async def ensure_running(self) -> None:
        """Check that it answers."""
        await self.servers()

    async def obstacle(self) -> str:
        return ""

    async def apply_back_pressure(
        self, server: str, limits: Mapping[str, int] | None = None
    ) -> dict[str, float]:
        """Set no limit, and report none in force."""
        return {}

    async def clear_back_pressure(self, server: str) -> None:
        """Return at once: there are no limits."""
        return

    async def hold(self, *, wait_s: float, limit: int) -> bool:
        """Return False: this router cannot make new requests wait."""
        return False

    async def release(self) -> int:
        """Return 0: no request is held."""
        return 0

    async def requests(self, since_s: float, until_s: float) -> RequestAccount:
        raise RequestsUnknown("this router's record of requests is not read")

    async def answers(self, since_s: float, until_s: float) -> tuple[ServedAnswer, ...]:
        raise RequestsUnknown("this router's record of requests is not read")

    # -- what all kinds share ------------------------------------------------------------------------------------

    async def server(self, server: str) -> ServerState:
        """Return a server's state over its backends."""
        return summed(await self.servers(), server)

    async def set_weight(self, server: str, weight: int, *, allow_zero_total: bool = False) -> None:
        async with self.changing():
            await self._set_weight(server, weight, allow_zero_total=allow_zero_total)

    async def shift(self, weights: Mapping[str, int]) -> None:
        """Set and read back several weights, increases first. Raises RouterError before the first change if no usable
        weight would be left at the end, and with the weights in force if a change fails."""
        async with self.changing():
            before = await self.servers()
            now = {server: lines_of(before, server)[0].weight for server in weights}
            after = before
            for server, weight in weights.items():
                _check_weight(weight)
                after = changed(after, server, weight=weight)
            _refuse_zero(after, f"shift to {dict(weights)}")
            for server in sorted(weights, key=lambda name: now[name] - weights[name]):
                await self._set_weight(server, weights[server])

    async def drain(self, server: str, *, allow_zero_total: bool = False) -> None:
        """Send it no new requests; running streams continue. Raises RouterError if no other server could take requests."""
        async with self.changing():
            rows = await self.servers()
            if not allow_zero_total:
                _refuse_zero(changed(rows, server, admin_state="drain"), f"drain {server}")
            await self._set_admin_state(rows, server, "drain")

    async def undrain(self, server: str) -> None:
        async with self.changing():
            await self._set_admin_state(await self.servers(), server, "ready")

    async def _set_weight(self, server: str, weight: int, *, allow_zero_total: bool = False) -> None:
        _check_weight(weight)
        rows = await self.servers()
        lines = lines_of(rows, server)
        if not allow_zero_total:
            _refuse_zero(changed(rows, server, weight=weight), f"weight {weight} for {server}")
        for line in lines:
            await self.write_weight(line, weight)
        in_force = {
            f"{line.backend}/{server}": line.weight for line in lines_of(await self.servers(), server)
        }
        if set(in_force.values()) != {weight}:
            raise RouterError(f"weight {weight} was set for {server}, but the router reports {in_force}")

    async def _set_admin_state(self, rows: Sequence[ServerState], server: str, state: str) -> None:
        for line in lines_of(rows, server):
            await self.write_admin_state(line, state)
        now = (await self.server(server)).admin_state
        if now != state:
            raise RouterError(f"{server} was set to {state}, but the router reports {now}")


def _check_weight(weight: int) -> None:
    if not 0 <= weight <= LARGEST_WEIGHT:
        raise RouterError(f"weight {weight} is not possible: a router takes 0 to {LARGEST_WEIGHT}")


def _refuse_zero(rows: Sequence[ServerState], what: str) -> None:
    if empty := [backend for backend, total in usable_totals(rows).items() if total == 0]:
        lines = ", ".join(
            f"{row.server}: weight {row.weight}, {row.admin_state}, {row.operational}"
            for row in rows
            if row.backend == empty[0]
        )
        raise RouterError(
            f"refused: {what} would leave backend {empty[0]!r} without usable weight ({lines}), and every request "
            "would get 503; give another server weight and make it ready first"
        )
