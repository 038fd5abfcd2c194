"""Drive HAProxy through its admin socket: weights, drain, aborted sessions, back-pressure.

`ManagedRouter` (haproxy_managed.py) runs our own instance; `ExistingRouter` drives an existing one and refuses names that it
does not have. Both set absolute weights (0-256), read them back, and never leave a total usable weight of 0.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from gpu_actions.serving.interfaces import BackendUnknown, RequestsUnknown, RouterError, ServerState
from gpu_actions.serving.request_account import RequestAccount
from gpu_actions.serving.routers.base import BackPressure
from gpu_actions.serving.routers.haproxy_config import HaproxySettings
from gpu_actions.serving.routers.haproxy_socket import ASK_TIMEOUT_S, HaproxySocket
from gpu_actions.system.files import write_json
from gpu_actions.system.folder_lock import locked_folder

logger = logging.getLogger(__name__)

LARGEST_WEIGHT = 256
"""HAProxy's own limit for absolute weights."""

LIMITS_NAME = "limits_given.json"

AMPLE_LIMIT = 100_000
"""A limit that is never reached: HAProxy runs out of file descriptors first."""

LOCK_TIMEOUT_S = 20.0
SETTLE_TIMEOUT_S = 2.0
"""How long the router may still count aborted sessions (2 ms measured), and how long a queue may take to empty."""


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


class HaproxyRouter:
    """What both routers share: everything that goes over the admin socket."""

    standby_weight = 0

    def __init__(self, config: HaproxySettings, *, folder: Path, socket: Path) -> None:
        self.config = config
        self.url = config.url
        self.address = str(socket)
        self.folder = folder
        self.admin = HaproxySocket(socket)

    # -- reading -------------------------------------------------------------------------------------------------

    async def obstacle(self) -> str:
        return ""

    async def servers(self, *, timeout_s: float = ASK_TIMEOUT_S) -> tuple[ServerState, ...]:
        """Return all lines of the tiers' backends. Raises BackendUnknown if a backend of the settings is missing."""
        rows = await self.admin.servers(timeout_s=timeout_s)
        wanted = self._wanted_backends(tuple(dict.fromkeys(row.backend for row in rows)))
        return tuple(row for row in rows if row.backend in wanted)

    async def server(self, server: str) -> ServerState:
        """Return a server's state over its backends: summed counts, the worst operational and administrative state."""
        lines = self._lines(await self.servers(), server)
        order = {"maint": 0, "drain": 1, "ready": 2}
        down = [line.operational for line in lines if line.operational != "UP"]
        return ServerState(
            backend=lines[0].backend,
            server=server,
            weight=lines[0].weight,
            admin_state=min((line.admin_state for line in lines), key=order.__getitem__),
            operational=down[0] if down else "UP",
            sessions=sum(line.sessions for line in lines),
            queued=sum(line.queued for line in lines),
            requests_total=sum(line.requests_total for line in lines),
            responses_5xx=sum(line.responses_5xx for line in lines),
            responses_4xx=sum(line.responses_4xx for line in lines),
            resent=sum(line.resent for line in lines),
            streams_broken=sum(line.streams_broken for line in lines),
        )

    # -- weights -------------------------------------------------------------------------------------------------

    async def set_weight(self, server: str, weight: int, *, allow_zero_total: bool = False) -> None:
        async with self._changing():
            await self._set_weight(server, weight, allow_zero_total=allow_zero_total)

    async def shift(self, weights: Mapping[str, int]) -> None:
        """Set and read back several weights, increases first. Raises RouterError before the first change if no usable
        weight would be left at the end, and with the weights in force if a change fails."""
        async with self._changing():
            before = await self.servers()
            now = {server: self._lines(before, server)[0].weight for server in weights}
            after = before
            for server, weight in weights.items():
                self._check_weight(weight)
                after = changed(after, server, weight=weight)
            self._refuse_zero(after, f"shift to {dict(weights)}")
            for server in sorted(weights, key=lambda name: now[name] - weights[name]):
                await self._set_weight(server, weights[server])

    async def drain(self, server: str, *, allow_zero_total: bool = False) -> None:
        """Send it no new requests; running streams continue. Raises RouterError if no other server could take requests."""
        async with self._changing():
            rows = await self.servers()
            if not allow_zero_total:
                self._refuse_zero(changed(rows, server, admin_state="drain"), f"drain {server}")
            await self._set_admin_state(self._lines(rows, server), "drain")

    async def undrain(self, server: str) -> None:
        async with self._changing():
            await self._set_admin_state(self._lines(await self.servers(), server), "ready")

    async def abort_sessions(self, server: str) -> int:
        """End its open sessions and return how many there were. Their clients see a broken stream."""
        async with self._changing():
            lines = self._lines(await self.servers(), server)
            count = sum(line.sessions for line in lines)
            for line in lines:
                await self.admin.set(f"shutdown sessions server {line.backend}/{server}")
            deadline = time.monotonic() + SETTLE_TIMEOUT_S
            usable = {line.backend for line in lines if line.admin_state == "ready" and line.weight > 0}
            while not usable and (await self.server(server)).sessions:
                if time.monotonic() >= deadline:
                    raise RouterError(
                        f"the router still counts sessions on {server} {SETTLE_TIMEOUT_S:.0f} s after they were aborted"
                    )
                await asyncio.sleep(0.01)
            return count

    def _pressure(self) -> BackPressure:
        """Return the limits of a limited server: the configured ones, and what was given when they were applied."""
        file = self.folder / LIMITS_NAME
        given = json.loads(file.read_text()) if file.exists() else {}
        return BackPressure.model_validate({**self.config.back_pressure.model_dump(), **given})

    def _keep_given(self, limits: Mapping[str, int] | None) -> None:
        """Store given limits before they are set. None keeps the earlier ones."""
        if limits is not None:
            write_json(self.folder / LIMITS_NAME, dict(limits))

    def _forget_given(self) -> None:
        (self.folder / LIMITS_NAME).unlink(missing_ok=True)

    # -- details -------------------------------------------------------------------------------------------------

    async def _saved(self) -> None:
        """Runs after each change; the managed router stores its state for the next start."""

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """Hold the router's lock over reading, changing and reading back. Store the new state, also after a failure."""
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(locked_folder(self.folder, timeout_s=LOCK_TIMEOUT_S))
            except TimeoutError as error:
                raise RouterError(f"another change of the router is under way ({error}): try again") from None
            try:
                yield
            finally:
                await self._saved()

    async def _set_weight(self, server: str, weight: int, *, allow_zero_total: bool = False) -> None:
        self._check_weight(weight)
        rows = await self.servers()
        lines = self._lines(rows, server)
        if not allow_zero_total:
            self._refuse_zero(changed(rows, server, weight=weight), f"weight {weight} for {server}")
        for line in lines:
            await self.admin.set(f"set weight {line.backend}/{server} {weight}")
        in_force = {
            f"{line.backend}/{server}": line.weight for line in self._lines(await self.servers(), server)
        }
        if set(in_force.values()) != {weight}:
            raise RouterError(f"weight {weight} was set for {server}, but the router reports {in_force}")

    async def _set_admin_state(self, lines: Sequence[ServerState], state: str) -> None:
        server = lines[0].server
        for line in lines:
            await self.admin.set(f"set server {line.backend}/{server} state {state}")
        now = (await self.server(server)).admin_state
        if now != state:
            raise RouterError(f"{server} was set to {state}, but the router reports {now}")

    async def _set_limits(self, lines: Sequence[ServerState], limits: Mapping[str, int]) -> dict[str, int]:
        """Set maxconn by backend (0: no limit) and read it back.

        HAProxy 2.6 never wakes requests that wait for a server whose limit becomes 0, so a large limit is set first.
        """
        server = lines[0].server
        for line in lines:
            if limits[line.backend] == 0:
                await self.admin.set(f"set maxconn server {line.backend}/{server} {AMPLE_LIMIT}")
                await self._queue_empty(line.backend)
            await self.admin.set(f"set maxconn server {line.backend}/{server} {limits[line.backend]}")
        in_force = await self._limits(server, tuple(limits))
        if in_force != dict(limits):
            raise RouterError(
                f"limits {dict(limits)} were set for {server}, but the router reports {in_force}"
            )
        return in_force

    async def _queue_empty(self, backend: str) -> None:
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while any(row.queued for row in await self.admin.stat() if row.backend == backend):
            if time.monotonic() >= deadline:
                logger.warning("requests still wait in backend %s after its limit was lifted", backend)
                return
            await asyncio.sleep(0.01)

    async def _limits(self, server: str, backends: Sequence[str]) -> dict[str, int]:
        stat = await self.admin.stat()
        return {
            row.backend: row.limit or 0 for row in stat if row.server == server and row.backend in backends
        }

    def _wanted_backends(self, present: tuple[str, ...]) -> tuple[str, ...]:
        wanted = (self.config.backend, self.config.long_backend)
        missing = [name for name in wanted if name not in present]
        if missing:
            raise BackendUnknown(
                f"the router has no backend {missing[0]!r}; it has: {', '.join(present) or 'none'}"
            )
        return wanted

    @staticmethod
    def _lines(rows: Sequence[ServerState], server: str) -> list[ServerState]:
        backends = dict.fromkeys(row.backend for row in rows)
        lines = [row for row in rows if row.server == server]
        missing = set(backends) - {row.backend for row in lines}
        if missing:
            known = ", ".join(f"{row.backend}/{row.server}" for row in rows)
            raise RouterError(f"the router has no server {sorted(missing)[0]}/{server}; it has: {known}")
        return lines

    @staticmethod
    def _check_weight(weight: int) -> None:
        if not 0 <= weight <= LARGEST_WEIGHT:
            raise RouterError(f"weight {weight} is not possible: HAProxy takes 0 to {LARGEST_WEIGHT}")

    @staticmethod
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


class ExistingRouter(HaproxyRouter):
    """An existing HAProxy: only its admin socket and only names that it has are used.

    The socket can set the concurrency alone. Queue timeout, 429 and windows belong in its own configuration
    (docs/serving.md has the lines), so they are not reported as in force.
    """

    def __init__(self, config: HaproxySettings, *, servers: Sequence[str], state_dir: Path) -> None:
        if config.socket is None:
            raise RouterError("an existing router needs the path of its admin socket: set router.socket")
        super().__init__(config, folder=state_dir / "router", socket=config.socket)
        self._tier_servers = tuple(servers)

    async def ensure_running(self) -> None:
        """Check that it answers and has the tiers' servers. Raises RouterError with those that it has."""
        rows = await self.servers()
        for server in self._tier_servers:
            self._lines(rows, server)

    def _wanted_backends(self, present: tuple[str, ...]) -> tuple[str, ...]:
        """Its long backend is optional; without it all requests go through one."""
        if self.config.long_backend not in present and self.config.backend in present:
            return (self.config.backend,)
        return super()._wanted_backends(present)

    async def apply_back_pressure(
        self, server: str, limits: Mapping[str, int] | None = None
    ) -> dict[str, float]:
        """Limit the concurrent requests and return the limits in force. `clear_back_pressure` restores the earlier ones."""
        async with self._changing():
            lines = self._lines(await self.servers(), server)
            backends = [line.backend for line in lines]
            kept = self._kept()
            if server not in kept:
                write_json(
                    self.folder / "limits_before.json",
                    {**kept, server: await self._limits(server, backends)},
                )
            self._keep_given(limits)
            pressure = self._pressure()
            wanted = {self.config.backend: pressure.max_concurrent}
            if self.config.long_backend in backends:
                wanted = self.config.concurrency(pressure)
            return self.config.as_limits(await self._set_limits(lines, wanted))

    async def clear_back_pressure(self, server: str) -> None:
        """Restore the earlier limits. Does nothing if none were applied."""
        async with self._changing():
            kept = self._kept()
            if server not in kept:
                return
            await self._set_limits(self._lines(await self.servers(), server), kept.pop(server))
            write_json(self.folder / "limits_before.json", kept)
            self._forget_given()

    async def requests(self, since_s: float, until_s: float) -> RequestAccount:
        raise RequestsUnknown("an existing router's record of requests is not read")

    def _kept(self) -> dict[str, dict[str, int]]:
        file = self.folder / "limits_before.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}


def quoted_value(reply: str) -> str | None:
    """Return the value in an answer of "get map" or "get var", or None."""
    match = re.search(r'value="([^"]*)"|value=<([^>]*)>', reply)
    return None if match is None else match.group(1) or match.group(2)
