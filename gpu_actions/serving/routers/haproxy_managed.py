"""The managed router: our own HAProxy, rendered from the settings and supervised as a process unit named `router`.

Weights and administrative states survive a restart in the server-state file. Limits survive in the configuration and the map,
which are written before the limits are set over the socket.
"""

import asyncio
import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from gpu_actions.serving.http import HttpFailure, fetch
from gpu_actions.serving.interfaces import RequestsUnknown, RouterError, ServedAnswer, UnitError
from gpu_actions.serving.request_account import RequestAccount
from gpu_actions.serving.routers import haproxy_config
from gpu_actions.serving.routers.base import RoutedHost
from gpu_actions.serving.routers.driver import lines_of
from gpu_actions.serving.routers.haproxy_config import (
    HaproxySettings,
    configuration_fingerprint,
    map_entries,
)
from gpu_actions.serving.routers.haproxy_log import LOG_NAME, MARK_PATH, MARK_STATUS
from gpu_actions.serving.routers.haproxy_record import DroppedLines, RequestRecord
from gpu_actions.serving.routers.haproxy_router import HaproxyRouter, quoted_value
from gpu_actions.serving.units.process import ProcessUnit, SupervisedProcess
from gpu_actions.system.files import write_atomically, write_json
from gpu_actions.system.folder_lock import make_private_folder
from gpu_actions.system.listening import listener_of
from gpu_actions.system.processes import run_process
from gpu_actions.system.redact import whole_lines
from gpu_actions.system.urls import port_of

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 15.0
"""HAProxy answers 30 ms after its start; the rest is for a host in trouble."""

LOG_BYTES = 4096
GIVE_UP_RESTARTS = 2
"""The first attempts may find the port still held by a process that is ending; the third must not."""

SOCKET_TIMEOUT_S = 2.0
"""A router that has just started binds its admin socket within 30 ms."""

STOP_GRACE_S = 3.0
LUA_NAMES = ("long_windows.lua", "haproxy_hold.lua")


class ManagedRouter(HaproxyRouter):
    """Our own HAProxy. Its files are in `state_dir/router`, its process unit in `state_dir/units/router`."""

    standby_weight = 1

    def __init__(self, host: RoutedHost, config: HaproxySettings, *, state_dir: Path) -> None:
        folder = state_dir / "router"
        super().__init__(config, folder=folder, socket=config.socket or folder / haproxy_config.SOCKET_NAME)
        self.host = host
        self.record = RequestRecord(folder / LOG_NAME)
        self.unit = SupervisedProcess(
            "router",
            ProcessUnit(
                argv=(config.binary, "-db", "-f", haproxy_config.CONFIG_NAME),
                cwd=folder,
                stop_grace_s=STOP_GRACE_S,
            ),
            state_dir=state_dir / "units",
            output=(self.record.path, config.request_log_mib * 1024 * 1024),
        )

    async def ensure_running(self) -> None:
        """Start it if it is down. After a change of settings restart it if it is idle, else log a warning. Restart it
        also if its admin socket is gone, because nothing can be changed without it.

        Raises RouterError if the program is missing, refuses its configuration, or cannot bind its port.
        """
        if (await self.unit.state()).active:
            loaded = await self._loaded_configuration()
            if loaded == configuration_fingerprint(self.host):
                await self._answers()
                return
            if loaded is None:
                logger.warning(
                    "the router runs, but its admin socket %s is gone: restarting it", self.admin.path
                )
            elif any(row.sessions or row.queued for row in await self.servers()):
                logger.warning(
                    "the router runs with older settings and is busy: it keeps them until its next restart"
                )
                return
            await self.stop()
        self._write_files(self.limited())
        state = (self.folder / haproxy_config.STATE_NAME).read_text()
        self._replace(haproxy_config.STATE_NAME, haproxy_config.with_ports(state, self.host))
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
        """Stop it, with its open streams. The next start has the same weights and limits."""
        await self._saved()
        await self.unit.stop()

    async def apply_back_pressure(
        self, server: str, limits: Mapping[str, int] | None = None
    ) -> dict[str, float]:
        """Apply the configured limits to the server and return those that the running router reports, by name.

        Raises RouterError if concurrency, queue length or window read back differently. Times and sizes that HAProxy
        fixes at its start are reported as they are.
        """
        async with self.changing():
            lines = lines_of(await self.servers(), server)
            self._keep_given(limits)
            pressure = self._pressure()
            wanted = self.config.concurrency(pressure)
            self._keep_limited(self.limited() | {server})
            in_force = await self._set_limits(lines, wanted)
            entries = map_entries(server, pressure)
            await self._set_map(entries)
            read = {key.removeprefix(f"{server}."): await self._map_value(key) for key in entries}
            return {
                **self.config.as_limits(in_force),
                "max_queue": float(read["max_queue"]),
                "long_window_s": read["window_ms"] / 1000,
                "queue_timeout_s": float(await self._variable("queue_timeout_ms") or "nan") / 1000,
                "long_body_bytes": float(await self._variable("long_body_bytes") or "nan"),
                "retry_after_s": float(await self._variable("retry_after_s") or "nan"),
            }

    async def clear_back_pressure(self, server: str) -> None:
        """Lift the limits; waiting requests continue at once."""
        async with self.changing():
            lines = lines_of(await self.servers(), server)
            self._keep_limited(self.limited() - {server})
            await self._set_limits(lines, {self.config.backend: 0, self.config.long_backend: 0})
            await self._set_map(map_entries(server, None))
            self._forget_given()

    async def hold(self, *, wait_s: float, limit: int) -> bool:
        """Make new requests wait. The file is written first, so that a router that restarts holds as long, and no longer."""
        if wait_s <= 0:
            return False
        async with self.changing():
            wait_ms = round(wait_s * 1000)
            await self._set_hold(
                {"wait_ms": wait_ms, "limit": limit, "until_ms": round(time.time() * 1000) + wait_ms}
            )
        return True

    async def release(self) -> int:
        async with self.changing():
            reply = await self.admin.ask(f"get map {haproxy_config.HOLD_NAME} until_ms")
            if quoted_value(reply) in (
                None,
                "0",
            ):  # no hold, or a router that was started before there were any
                return 0
            held = await self.held()
            await self._set_hold(haproxy_config.NO_HOLD)
            return held

    async def held(self) -> int:
        """Return how many requests are held now."""
        return int(await self.admin.ask("show held"))

    async def _set_hold(self, entries: Mapping[str, int]) -> None:
        """Write and set the hold, its end last: it is the switch."""
        self._replace(haproxy_config.HOLD_NAME, haproxy_config.render_hold(entries))
        await self._set_map(entries, haproxy_config.HOLD_NAME)

    async def requests(self, since_s: float, until_s: float) -> RequestAccount:
        """Count what clients saw. The account says `incomplete` where the record may lack requests.

        Raises RequestsUnknown if the router does not run with a record, or nothing writes the file.
        """
        await self.record.wait_for_mark(self._mark)
        info = await self.admin.info()
        dropped = DroppedLines(started=info.get("Start_time_sec", ""), count=int(info.get("DroppedLogs", 0)))
        open_now = sum(row.sessions + row.queued for row in await self.servers())
        return await asyncio.to_thread(
            self.record.account, since_s, until_s, dropped=dropped, open_now=open_now
        )

    async def answers(self, since_s: float, until_s: float) -> tuple[ServedAnswer, ...]:
        """Return the answers of a span. A line is written within 0.1 s, so those that just ended come with the next span."""
        try:
            return await asyncio.to_thread(self.record.answers, since_s, until_s)
        except OSError as error:
            raise RequestsUnknown(f"the record of requests cannot be read: {error.strerror}") from error

    async def _mark(self) -> None:
        """Make the router write a mark. Raises RequestsUnknown if it does not know marks."""
        try:
            status = (await fetch(f"{self.url}{MARK_PATH}", timeout_s=3)).status
        except HttpFailure as error:
            raise RequestsUnknown(f"the router does not answer: {error}") from error
        if status != MARK_STATUS:
            raise RequestsUnknown("the router was started without a record of its requests")

    def limited(self) -> frozenset[str]:
        """Return the servers under back-pressure, as stored on disk."""
        file = self.folder / "back_pressure.json"
        return frozenset(json.loads(file.read_text())["servers"]) if file.exists() else frozenset()

    # -- files ---------------------------------------------------------------------------------------------------

    def _write_files(self, limited: frozenset[str]) -> None:
        make_private_folder(self.folder)
        socket = self.config.socket
        if socket is not None:
            socket = socket.absolute()
        lua = [Path(__file__).with_name(name).absolute() for name in LUA_NAMES]
        pressure = self._pressure()
        text = haproxy_config.render_config(
            self.host, self.config, lua=lua, limited=limited, in_force=pressure, socket=socket
        )
        self._replace(haproxy_config.CONFIG_NAME, text)
        self._replace(haproxy_config.MAP_NAME, haproxy_config.render_map(self.host, limited, pressure))
        for name, empty in (
            (haproxy_config.STATE_NAME, haproxy_config.EMPTY_STATE),
            (haproxy_config.HOLD_NAME, haproxy_config.render_hold(haproxy_config.NO_HOLD)),
        ):
            if not (self.folder / name).exists():
                self._replace(name, empty)

    def _keep_limited(self, limited: frozenset[str]) -> None:
        """Store the limits before they are set, so that a router killed in between restarts with them."""
        write_json(self.folder / "back_pressure.json", {"servers": sorted(limited)})
        self._write_files(limited)

    async def _saved(self) -> None:
        """Store weights and administrative states for the next start. If the router is down, the last ones stay."""
        try:
            text = await self.admin.ask("show servers state")
        except RouterError as error:
            logger.warning("the router's state was not saved; the last one stays: %s", error)
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
        """Wait until it answers. Its supervisor restarts it if it dies; after several deaths give up."""
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
                text = await self.unit.log_tail(LOG_BYTES)
                log = _alerts(whole_lines(text, cut=len(text) >= LOG_BYTES))
                await self.unit.stop()
                raise RouterError(
                    f"the router ended right after its start, {GIVE_UP_RESTARTS + 1} times: {log}; "
                    f"if {self.url} is taken, free that port or change router.url"
                )
            await asyncio.sleep(0.02)
        raise RouterError(f"the router did not come up within {START_TIMEOUT_S:.0f} s: {trouble}")

    async def _loaded_configuration(self) -> str | None:
        """Return the fingerprint that the running instance was started with, or None if its socket does not answer."""
        deadline = time.monotonic() + SOCKET_TIMEOUT_S
        while True:
            try:
                return await self._variable("configuration") or ""
            except RouterError:
                if time.monotonic() >= deadline:
                    return None
            await asyncio.sleep(0.02)  # it, or its supervisor, may just have been started

    async def _answers(self) -> None:
        """Check that the admin socket and the clients' address both belong to this instance."""
        if await self._variable("configuration") is None:
            raise RouterError(f"the router behind {self.admin.path} was not started by gpu-oncall")
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

    async def _set_map(self, entries: Mapping[str, int], file: str = haproxy_config.MAP_NAME) -> None:
        for key, value in entries.items():
            await self.admin.set(f"set map {file} {key} {value}")
            if (now := await self._map_value(key, file)) != value:
                raise RouterError(f"{key} was set to {value} in the router's map, but it reports {now}")

    async def _map_value(self, key: str, file: str = haproxy_config.MAP_NAME) -> int:
        reply = await self.admin.ask(f"get map {file} {key}")
        if (value := quoted_value(reply)) is None:
            raise RouterError(f"the router's map has no {key}: {reply}")
        return int(value)


def _alerts(log: str) -> str:
    """Return HAProxy's own messages about a failure, in one line."""
    lines = [line for line in log.splitlines() if "[ALERT]" in line] or log.splitlines()[-3:]
    return "; ".join(line.strip() for line in lines[-3:]) or "it printed nothing"
