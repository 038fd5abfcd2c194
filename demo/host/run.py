"""The demonstration at work: starts every part, keeps the bot alive, and leaves no process behind.

The workspace and the bot are children of this process; the tiers and the router are units, started through the same drivers
as on a real host, and stopped at the end. A demonstration that was killed is cleaned up by the next one.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from bot.hosts import Hosts
from bot.settings.load import load_settings
from demo.host.breaker import Breaker
from demo.host.layout import QUICK, Layout, Pace, busy_ports, new_layout, read_layout, write_config
from demo.host.panel import panel_app
from demo.host.traffic import Traffic
from gpu_actions.host import Host
from gpu_actions.serving.interfaces import EngineError, RouterError, UnitError
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from gpu_actions.system.files import write_atomically
from gpu_actions.system.processes import child_environment, end_group

WORKSPACE_START_S = 30
RESTART_PAUSE_S = 1.0
END_GRACE_S = 15.0


class CannotDemonstrate(Exception):
    """The demonstration cannot run here. The message says why and what to do."""


def _say(text: str) -> None:
    print(text, flush=True)


async def demonstrate(
    state_dir: Path, *, free_ports: bool = False, quick: bool = False, monitors: bool = True
) -> int:
    """Run until SIGINT or SIGTERM. Exit 0; 1 when it could not start, said in one line."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        pace = QUICK if quick else Pace()
        async with demonstration(state_dir, free_ports=free_ports, pace=pace, monitors=monitors) as layout:
            if not stop.is_set():
                _say(_welcome(layout))
            await stop.wait()
            _say("Stopping ...")
    except CannotDemonstrate as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    _say("Stopped; no process is left.")
    return 0


@contextlib.asynccontextmanager
async def demonstration(
    state_dir: Path, *, free_ports: bool, pace: Pace, monitors: bool
) -> AsyncIterator[Layout]:
    """Everything at work for the length of the block. Raises CannotDemonstrate."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    await _clean_up(state_dir)
    layout = new_layout(state_dir, free_ports=free_ports)
    if busy := busy_ports(layout):
        taken = ", ".join(f"{port} ({name})" for name, port in busy.items())
        raise CannotDemonstrate(f"something listens on {taken} already: stop it, or use --free-ports")
    write_config(layout, pace=pace, monitors=monitors)
    settings = load_settings(layout.config_path, env_file=None)
    host = Hosts(settings).get(settings.default_host.name)
    children = Children(layout)
    breaker = Breaker(host.tp.unit)
    traffic = Traffic(layout.router_url)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_stop_host, host)
        stack.push_async_callback(children.end)
        await children.start("workspace", _workspace_argv(layout), env=_workspace_env(layout))
        await _start_host(host)
        panel = await _serve_panel(layout, breaker, traffic)
        stack.push_async_callback(panel.cleanup)
        await children.start(
            "bot", [sys.executable, "-m", "bot.cli", "up", "--config", str(layout.config_path)]
        )
        await _wait_for_bot(layout, children)
        stack.push_async_callback(breaker.mend)
        await stack.enter_async_context(traffic.running())
        keeper = asyncio.create_task(children.keep("bot"))
        stack.callback(keeper.cancel)
        yield layout


def _welcome(layout: Layout) -> str:
    cli = ".venv/bin/gpu-oncall" if Path(".venv/bin/gpu-oncall").exists() else "gpu-oncall"
    page = layout.workspace_url
    return f"""
The demonstration is up: {page}

  1. Open {page} as the user oncall and type /triage
  2. Press "Freeze a rank" under Break something (or: {cli} demo break frozen-rank);
     the bot alerts by itself within seconds, and /triage says the same
  3. Press "Start fallback" on the verdict card, and watch the thread; kill -9 the bot meanwhile if you like
  4. /loadtest start qps=5 duration=10   and   /trace start
  5. Press "Mend it", then /restore start; switch the user to lead to approve it
  6. From a terminal: {cli} workspace say --user oncall --channel incidents "/triage"

Settings: {layout.config_path}   Logs: {layout.state_dir}/*.log   Ctrl-C stops everything.
"""


def _workspace_argv(layout: Layout) -> list[str]:
    return [
        sys.executable,
        "-m",
        "demo.workspace",
        *("--port", str(layout.ports.workspace)),
        *("--state", str(layout.state_dir / "workspace.sqlite")),
        *("--manifest", str(_manifest_file(layout))),
        *("--panel-url", layout.panel_url),
    ]


def _manifest_file(layout: Layout) -> Path:
    import json

    from bot.slack.manifest import manifest
    from handlers import SLASH_COMMANDS

    settings = load_settings(layout.config_path, env_file=None)
    return write_atomically(
        layout.state_dir / "manifest.json", json.dumps(manifest(settings.slack, SLASH_COMMANDS))
    )


def _workspace_env(layout: Layout) -> dict[str, str]:
    return {"SLACK_BOT_TOKEN": layout.bot_token, "SLACK_APP_TOKEN": layout.app_token}


async def _start_host(host: Host) -> None:
    _say("Starting the tier tp: two ranks of the reference engine ...")
    started = time.monotonic()
    try:
        await host.router.ensure_running()
        await host.tp.unit.start()

        async def alive() -> bool:
            return (await host.tp.unit.state()).active

        first = await host.tp.engine.wait_ready(
            timeout_s=host.tp.config.engine.ready_timeout_s, still_starting=alive
        )
        await host.router.shift(
            {host.tp.config.server: host.tp.config.weight, host.fallback.config.server: 0}
        )
    except (UnitError, EngineError, RouterError) as error:
        tail = await host.tp.unit.log_tail(2000)
        raise CannotDemonstrate(f"the demonstration host did not start: {error}\n{tail}") from None
    _say(
        f"The tier tp serves after {time.monotonic() - started:.1f} s (first token in {first.ttft_ms:.0f} ms)."
    )


async def _stop_host(host: Host) -> None:
    for tier in (host.tp, host.fallback):
        with contextlib.suppress(UnitError):
            await tier.unit.stop(grace_s=3)
    if isinstance(host.router, ManagedRouter):
        with contextlib.suppress(UnitError, RouterError):
            await host.router.stop()


async def _serve_panel(layout: Layout, breaker: Breaker, traffic: Traffic) -> web.AppRunner:
    runner = web.AppRunner(panel_app(breaker, traffic), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", layout.ports.panel).start()
    return runner


async def _wait_for_bot(layout: Layout, children: "Children") -> None:
    from demo.workspace.client import WorkspaceClient, WorkspaceError

    deadline = time.monotonic() + WORKSPACE_START_S
    async with WorkspaceClient(layout.workspace_url) as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(WorkspaceError):
                if (await client.state("oncall"))["app"]["connected"]:
                    return
            for name in ("workspace", "bot"):
                if not children.alive(name):
                    raise CannotDemonstrate(
                        f"the {name} ended at once: see {layout.state_dir / f'{name}.log'}"
                    )
            await asyncio.sleep(0.1)
    raise CannotDemonstrate(
        f"the bot did not connect in {WORKSPACE_START_S} s: see {layout.state_dir}/bot.log"
    )


async def _clean_up(state_dir: Path) -> None:
    """End what a killed demonstration left: its children by their recorded pids, its units through their drivers."""
    try:
        layout = read_layout(state_dir)
        settings = load_settings(layout.config_path, env_file=None)
    except (OSError, ValueError):
        return
    children = Children(layout)
    await children.end_predecessors()
    await _stop_host(Hosts(settings).get(settings.default_host.name))
    # Old rows would show runs of a host that is new now.
    for name in ("gpu-oncall.sqlite", "dbos.sqlite"):
        for leftover in settings.state_dir.glob(f"{name}*"):
            leftover.unlink(missing_ok=True)
    for leftover in state_dir.glob("workspace.sqlite*"):
        leftover.unlink(missing_ok=True)


class Children:
    """The workspace and the bot as children, each in a session of its own, with its log file."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._argv: dict[str, tuple[list[str], dict[str, str]]] = {}

    async def start(self, name: str, argv: list[str], *, env: dict[str, str] | None = None) -> None:
        """Start one child; its output goes to NAME.log in the demonstration's folder."""
        self._argv[name] = (argv, env or {})
        log = (self._layout.state_dir / f"{name}.log").open("ab")
        with contextlib.closing(log):
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(env),
                start_new_session=True,
            )
        self._processes[name] = process
        write_atomically(self._layout.state_dir / f"{name}.pid", f"{process.pid}\n")

    def alive(self, name: str) -> bool:
        """Whether a started child still runs; True for one that was not started yet."""
        process = self._processes.get(name)
        return process is None or process.returncode is None

    async def keep(self, name: str) -> None:
        """Start a child again whenever it ends by itself, as its supervisor would on a host."""
        while True:
            code = await self._processes[name].wait()
            _say(f"The {name} ended ({code}); starting it again.")
            await asyncio.sleep(RESTART_PAUSE_S)
            argv, env = self._argv[name]
            await self.start(name, argv, env=env)

    async def end(self) -> None:
        """End all children, the bot before the workspace."""
        for name in ("bot", "workspace"):
            process = self._processes.pop(name, None)
            if process is not None:
                await end_group(process.pid, grace_s=END_GRACE_S)
                await process.wait()
            (self._layout.state_dir / f"{name}.pid").unlink(missing_ok=True)

    async def end_predecessors(self) -> None:
        """End the children of a demonstration that was killed, where their pids still are those processes."""
        for name, word in (("bot", "bot.cli"), ("workspace", "demo.workspace")):
            path = self._layout.state_dir / f"{name}.pid"
            try:
                pid = int(path.read_text())
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            except (OSError, ValueError):
                continue
            if word in command and os.getpgid(pid) == pid:
                await end_group(pid, grace_s=END_GRACE_S)
            path.unlink(missing_ok=True)
