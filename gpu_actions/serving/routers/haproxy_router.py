"""Drive HAProxy through its admin socket: weights, drain, aborted sessions, back-pressure.

`ManagedRouter` (haproxy_managed.py) runs our own instance; `ExistingRouter` drives an existing one and refuses names that it
does not have.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from gpu_actions.serving.interfaces import BackendUnknown, RouterError, ServerState
from gpu_actions.serving.routers.base import BackPressure
from gpu_actions.serving.routers.driver import RouterDriver, lines_of
from gpu_actions.serving.routers.haproxy_config import HaproxySettings
from gpu_actions.serving.routers.haproxy_socket import ASK_TIMEOUT_S, HaproxySocket
from gpu_actions.system.files import write_json
from gpu_actions.system.folder_lock import locked_folder

logger = logging.getLogger(__name__)

LIMITS_NAME = "limits_given.json"

AMPLE_LIMIT = 100_000
"""A limit that is never reached: HAProxy runs out of file descriptors first."""

LOCK_TIMEOUT_S = 20.0
SETTLE_TIMEOUT_S = 2.0
"""How long the router may still count aborted sessions (2 ms measured), and how long a queue may take to empty."""


class HaproxyRouter(RouterDriver):
    """What both routers share: everything that goes over the admin socket."""

    def __init__(self, config: HaproxySettings, *, folder: Path, socket: Path) -> None:
        self.config = config
        self.url = config.url
        self.address = str(socket)
        self.folder = folder
        self.admin = HaproxySocket(socket)

    # -- reading -------------------------------------------------------------------------------------------------

    async def servers(self, *, timeout_s: float = ASK_TIMEOUT_S) -> tuple[ServerState, ...]:
        """Return all lines of the tiers' backends. Raises BackendUnknown if a backend of the settings is missing."""
        rows = await self.admin.servers(timeout_s=timeout_s)
        wanted = self._wanted_backends(tuple(dict.fromkeys(row.backend for row in rows)))
        return tuple(row for row in rows if row.backend in wanted)

    # -- changing ------------------------------------------------------------------------------------------------

    async def write_weight(self, line: ServerState, weight: int) -> None:
        await self.admin.set(f"set weight {line.backend}/{line.server} {weight}")

    async def write_admin_state(self, line: ServerState, state: str) -> None:
        await self.admin.set(f"set server {line.backend}/{line.server} state {state}")

    async def abort_sessions(self, server: str) -> int:
        """End its open sessions and return how many there were. Their clients see a broken stream."""
        async with self.changing():
            lines = lines_of(await self.servers(), server)
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
    async def changing(self) -> AsyncIterator[None]:
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
            lines_of(rows, server)

    def _wanted_backends(self, present: tuple[str, ...]) -> tuple[str, ...]:
        """Its long backend is optional; without it all requests go through one."""
        if self.config.long_backend not in present and self.config.backend in present:
            return (self.config.backend,)
        return super()._wanted_backends(present)

    async def apply_back_pressure(
        self, server: str, limits: Mapping[str, int] | None = None
    ) -> dict[str, float]:
        """Limit the concurrent requests and return the limits in force. `clear_back_pressure` restores the earlier ones."""
        async with self.changing():
            lines = lines_of(await self.servers(), server)
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
        async with self.changing():
            kept = self._kept()
            if server not in kept:
                return
            await self._set_limits(lines_of(await self.servers(), server), kept.pop(server))
            write_json(self.folder / "limits_before.json", kept)
            self._forget_given()

    def _kept(self) -> dict[str, dict[str, int]]:
        file = self.folder / "limits_before.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}


def quoted_value(reply: str) -> str | None:
    """Return the value in an answer of "get map" or "get var", or None."""
    match = re.search(r'value="([^"]*)"|value=<([^>]*)>', reply)
    return None if match is None else match.group(1) or match.group(2)
