"""The managed router: a HAProxy of ours, rendered from the settings and kept as a supervised process named `router`.

Weights and administrative states survive its death through the server-state file, limits through the configuration and
the map, which are written before they are set over the socket.
"""

import asyncio
import json
import logging
import shutil
import time
from pathlib import Path

from gpu_actions.serving.http import HttpFailure, fetch
from gpu_actions.serving.interfaces import RouterError, UnitError
from gpu_actions.serving.routers import haproxy_config
from gpu_actions.serving.routers.base import RoutedHost
from gpu_actions.serving.routers.haproxy_config import (
    HaproxySettings,
    Limits,
    configuration_fingerprint,
    map_entries,
)
from gpu_actions.serving.routers.haproxy_router import HaproxyRouter, quoted_value
from gpu_actions.serving.units.process import ProcessUnit, SupervisedProcess
from gpu_actions.system.files import write_atomically, write_json
from gpu_actions.system.folder_lock import make_private_folder
from gpu_actions.system.listening import listener_of
from gpu_actions.system.processes import run_process
from gpu_actions.system.urls import port_of

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 15.0
"""HAProxy answers 30 ms after its start; the rest is for a host in trouble."""

GIVE_UP_RESTARTS = 2
"""A first start may lose its port to a process that is just ending; a third one has no such excuse."""

SOCKET_TIMEOUT_S = 2.0
"""A router that just started binds its admin socket within 30 ms."""

STOP_GRACE_S = 3.0


class ManagedRouter(HaproxyRouter):
    """Our own HAProxy. Its files lie in `state_dir/router`, its process unit in `state_dir/units/router`."""

    def __init__(self, host: RoutedHost, config: HaproxySettings, *, state_dir: Path) -> None:
        folder = state_dir / "router"
        super().__init__(config, folder=folder, socket=config.socket or folder / haproxy_config.SOCKET_NAME)
        self.host = host
        self.unit = SupervisedProcess(
            "router",
            ProcessUnit(
                argv=(config.binary, "-db", "-f", haproxy_config.CONFIG_NAME),
                cwd=folder,
                stop_grace_s=STOP_GRACE_S,
            ),
            state_dir=state_dir / "units",
        )

    async def ensure_running(self) -> None:
        """Start it when it is down. With changed settings it is restarted when idle, else left alone with a warning.
        Without its admin socket, from which nothing could be changed any more, it is restarted too.

        Raises RouterError when the program is missing, refuses its configuration, or cannot have its port.
        """
        if (await self.unit.state()).active:
            loaded = await self._loaded_configuration()
            if loaded == configuration_fingerprint(self.host):
                await self._answers()
                return
            if loaded is None:
                logger.warning(
                    "the router runs, but its admin socket %s is gone: it is started again", self.admin.path
                )
            elif any(row.sessions or row.queued for row in await self.servers()):
                logger.warning(
                    "the router runs with older settings and is busy: it keeps them until it is restarted"
                )
                return
            await self.stop()
        self._write_files(self.limited())
        await self._check_configuration()
        try:
            await self.unit.start()
        except UnitError as error:
            raise RouterError(f"the router could not start: {error}") from error
        await self._wait_until_up()

    async def obstacle(self) -> str:
        """Return why it cannot be started; empty if it runs or nothing prevents a start."""
        if (await self.unit.state()).active:  # without its socket it is started again
            return ""
        if shutil.which(self.config.binary) is None:
            return f"{self.config.binary} is not on this machine: install it, or set router.binary"
        port = port_of(self.url)
        owner = await asyncio.to_thread(listener_of, port)
        return (
            ""
            if owner is None
            else f"port {port} of the router is taken by {owner}: end it, or change router.url"
        )

    async def stop(self) -> None:
        """End it, open streams included. Weights and limits stay for the next start."""
        await self._saved()
        await self.unit.stop()

    async def apply_back_pressure(self, server: str) -> dict[str, float]:
        """Put the server under the configured limits; gives what the running router reports, by name.

        Raises RouterError when concurrency, queue length or window read back differently. Times and sizes that HAProxy
        fixes at its start are reported as it has them.
        """
        async with self._changing():
            lines = self._lines(await self.servers(), server)
            pressure = self.config.back_pressure
            limits = Limits.of(pressure)
            self._keep_limited(self.limited() | {server})
            in_force = await self._set_limits(
                lines,
                {
                    self.config.backend: limits.short_concurrent,
                    self.config.long_backend: limits.long_concurrent,
                },
            )
            entries = map_entries(server, pressure)
            await self._set_map(entries)
            read = {key.removeprefix(f"{server}."): await self._map_value(key) for key in entries}
            return {
                "max_concurrent": float(sum(in_force.values())),
                "short_concurrent": float(in_force[self.config.backend]),
                "long_concurrent": float(in_force[self.config.long_backend]),
                "max_queue": float(read["max_queue"]),
                "long_window_s": read["window_ms"] / 1000,
                "queue_timeout_s": float(await self._variable("queue_timeout_ms") or "nan") / 1000,
                "long_body_bytes": float(await self._variable("long_body_bytes") or "nan"),
                "retry_after_s": float(await self._variable("retry_after_s") or "nan"),
            }

    async def clear_back_pressure(self, server: str) -> None:
        """Lift the limits; waiting requests go on at once."""
        async with self._changing():
            lines = self._lines(await self.servers(), server)
            self._keep_limited(self.limited() - {server})
            await self._set_limits(lines, {self.config.backend: 0, self.config.long_backend: 0})
            await self._set_map(map_entries(server, None))

    def limited(self) -> frozenset[str]:
        """Give the servers under back-pressure, as kept on disk."""
        file = self.folder / "back_pressure.json"
        return frozenset(json.loads(file.read_text())["servers"]) if file.exists() else frozenset()

    # -- files ---------------------------------------------------------------------------------------------------

    def _write_files(self, limited: frozenset[str]) -> None:
        make_private_folder(self.folder)
        socket = self.config.socket
        if socket is not None:
            socket = socket.absolute()
        lua = Path(__file__).with_name("long_windows.lua").absolute()
        text = haproxy_config.render_config(self.host, self.config, lua=lua, limited=limited, socket=socket)
        self._replace(haproxy_config.CONFIG_NAME, text)
        self._replace(haproxy_config.MAP_NAME, haproxy_config.render_map(self.host, limited))
        if not (self.folder / haproxy_config.STATE_NAME).exists():
            self._replace(haproxy_config.STATE_NAME, haproxy_config.EMPTY_STATE)

    def _keep_limited(self, limited: frozenset[str]) -> None:
        """Write the limits down before they are set, so that a router killed between the two comes back with them."""
        write_json(self.folder / "back_pressure.json", {"servers": sorted(limited)})
        self._write_files(limited)

    async def _saved(self) -> None:
        """Keep weights and administrative states for the next start. A router that is away keeps the last ones."""
        try:
            text = await self.admin.ask("show servers state")
        except RouterError as error:
            logger.warning("the router's state was not saved, the last one stays: %s", error)
            return
        if text.startswith("1\n"):
            self._replace(haproxy_config.STATE_NAME, text + "\n")

    def _replace(self, name: str, text: str) -> None:
        write_atomically(self.folder / name, text, durable=False)

    # -- the running instance ------------------------------------------------------------------------------------

    async def _check_configuration(self) -> None:
        try:
            result = await run_process(
                (self.config.binary, "-c", "-f", haproxy_config.CONFIG_NAME), timeout_s=20, cwd=self.folder
            )
        except FileNotFoundError:
            raise RouterError(
                f"the router's program {self.config.binary!r} was not found: install HAProxy 2.6 or newer "
                "(apt install haproxy), or set router.binary"
            ) from None
        if result.exit_code != 0:
            alerts = _alerts(result.stderr + result.stdout)
            raise RouterError(f"HAProxy refuses {self.folder / haproxy_config.CONFIG_NAME}: {alerts}")

    async def _wait_until_up(self) -> None:
        """Wait for its answers. One that dies is started again by its supervisor; one that dies again and again is given up."""
        began, restarts = time.monotonic(), (await self.unit.state()).restarts
        deadline = began + START_TIMEOUT_S
        trouble = "it did not answer"
        while time.monotonic() < deadline:
            try:
                await self._answers()
            except RouterError as error:
                trouble = str(error)
            else:
                return
            state = await self.unit.state()
            if state.restarts - restarts >= GIVE_UP_RESTARTS:
                log = _alerts(await self.unit.log_tail(4096))
                await self.unit.stop()
                raise RouterError(
                    f"the router ended right after its start, {GIVE_UP_RESTARTS + 1} times: {log}; "
                    f"if {self.url} is taken, free that port or change router.url"
                )
            await asyncio.sleep(0.02)
        raise RouterError(f"the router did not come up within {START_TIMEOUT_S:.0f} s: {trouble}")

    async def _loaded_configuration(self) -> str | None:
        """Give the fingerprint that the running instance was started with; None when its socket stays silent."""
        deadline = time.monotonic() + SOCKET_TIMEOUT_S
        while True:
            try:
                return await self._variable("configuration") or ""
            except RouterError:
                if time.monotonic() >= deadline:
                    return None
            await asyncio.sleep(0.02)  # it was just started, by its supervisor too

    async def _answers(self) -> None:
        """Check that the admin socket and the clients' address both belong to this instance."""
        if await self._variable("configuration") is None:
            raise RouterError(f"the router behind {self.admin.path} is not one of ours")
        url = f"{self.url}/_router/alive"
        try:
            status = (await fetch(url, timeout_s=3)).status
        except HttpFailure as error:
            raise RouterError(f"the router does not answer: {error}") from error
        if status != 200:
            port = port_of(self.url)
            raise RouterError(f"{url} answered {status}: something else listens on port {port}")

    async def _variable(self, name: str) -> str | None:
        return quoted_value(await self.admin.ask(f"get var proc.{name}"))

    async def _set_map(self, entries: dict[str, int]) -> None:
        for key, value in entries.items():
            await self.admin.set(f"set map {haproxy_config.MAP_NAME} {key} {value}")
            if (now := await self._map_value(key)) != value:
                raise RouterError(f"{key} was set to {value} in the router's map, but it reports {now}")

    async def _map_value(self, key: str) -> int:
        reply = await self.admin.ask(f"get map {haproxy_config.MAP_NAME} {key}")
        if (value := quoted_value(reply)) is None:
            raise RouterError(f"the router's map has no {key}: {reply}")
        return int(value)


def _alerts(log: str) -> str:
    """Give HAProxy's own words for what went wrong, one line."""
    lines = [line for line in log.splitlines() if "[ALERT]" in line] or log.splitlines()[-3:]
    return "; ".join(line.strip() for line in lines[-3:]) or "it said nothing"
