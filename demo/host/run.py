"""The running demonstration: start every part, keep the bot and the workspace alive, and leave no process behind.

The workspace and the bot are children of this process. The tiers and the router are units, started through the same drivers
as on a real host, and stopped at the end. The incident stays in the folder, also when the demonstration is killed, and the
next start continues it there.
"""

import asyncio
import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import sqlalchemy as sa
from aiohttp import web

from bot.hosts import Hosts
from bot.settings.load import load_settings
from bot.settings.model import Settings
from bot.slack.manifest import manifest
from bot.store.store import Store
from demo.host import leftovers
from demo.host.children import Children
from demo.host.layout import (
    DRILLS,
    QUICK,
    Layout,
    Pace,
    busy_ports,
    new_layout,
    read_layout,
    with_free_ports,
    write_config,
)
from demo.host.panel import panel_app
from demo.host.serving import ServingHost
from demo.host.traffic import Traffic
from demo.workspace.client import WorkspaceClient, WorkspaceError
from gpu_actions.drill.faults import Breaker
from gpu_actions.serving.interfaces import EngineError, RouterError, UnitError
from gpu_actions.system.files import write_atomically
from handlers import SLASH_COMMANDS

CONNECT_TIMEOUT_S = 30
STATE = (
    "bot", "profiles", "demo.json", "gpu-oncall.toml", "manifest.json", "serving.json", "fault",
    "workspace.sqlite", "workspace.sqlite-wal", "workspace.sqlite-shm",
    "bot.pid", "workspace.pid", "bot.log", "workspace.log",
)  # fmt: skip
"""Everything that a demonstration writes into its folder; `--fresh` removes it and nothing else."""


class CannotDemonstrate(Exception):
    """Raised when the demonstration cannot run. The message says why and what to do."""


async def demonstrate(
    state_dir: Path,
    *,
    fresh: bool = False,
    free_ports: bool = False,
    quick: bool = False,
    monitors: bool = True,
    drills: bool = False,
) -> int:
    """Run until SIGINT, SIGTERM or SIGHUP. Return 0, or 1 when it cannot start; the reason is then on stderr."""
    state_dir = state_dir.absolute()

    async def run() -> None:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with leftovers.only_demonstration_of(state_dir):
            if fresh:
                await asyncio.to_thread(_remove_state, state_dir)
            pace = QUICK if quick else Pace()
            if drills:
                pace = pace.model_copy(update=DRILLS)
            async with demonstration(
                state_dir, free_ports=free_ports, pace=pace, monitors=monitors
            ) as layout:
                print(_welcome(layout), flush=True)
                await asyncio.Event().wait()

    running = asyncio.create_task(run())
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:  # a second Ctrl-C must not interrupt the stop
            stopping = True
            print("Stopping ...", flush=True)
            running.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        await running
    except asyncio.CancelledError:
        print("Stopped; no process is left. The next start continues from here.", flush=True)
        return 0
    except (CannotDemonstrate, leftovers.AlreadyRunning, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
    return 1


@contextlib.asynccontextmanager
async def demonstration(
    state_dir: Path, *, free_ports: bool, pace: Pace, monitors: bool
) -> AsyncIterator[Layout]:
    """Run everything for the length of the block. Raises CannotDemonstrate."""
    left = await asyncio.to_thread(leftovers.processes_of, state_dir, programs=("bot", "workspace"))
    await asyncio.to_thread(leftovers.end_processes, left)
    previous = await asyncio.to_thread(_previous_layout, state_dir)
    layout, serving = await _prepare(
        previous or new_layout(state_dir, free_ports=free_ports),
        free_ports=free_ports,
        pace=pace,
        monitors=monitors,
    )
    settings = load_settings(layout.config_path, env_file=None)
    open_runs = _open_runs(settings)
    children = Children(layout.state_dir)
    breaker = Breaker(serving.host.tp.unit, layout.state_dir / "fault")
    traffic = Traffic(layout.router_url, pace.traffic)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_stop_everything, serving, state_dir)
        stack.push_async_callback(children.end)
        tokens = {"SLACK_BOT_TOKEN": layout.bot_token, "SLACK_APP_TOKEN": layout.app_token}
        await children.start("workspace", _workspace_argv(layout), env=tokens)
        serves = await _start_serving(serving, fault=breaker.remembered, open_runs=open_runs)
        panel = web.AppRunner(panel_app(breaker, traffic), access_log=None)
        stack.push_async_callback(panel.cleanup)
        await panel.setup()
        await web.TCPSite(panel, "127.0.0.1", layout.ports.panel).start()
        await children.start(
            "bot", [sys.executable, "-m", "bot.cli", "up", "--config", str(layout.config_path)]
        )
        await _wait_for_bot(layout, children)
        stack.push_async_callback(breaker.close)
        await breaker.resume()
        await stack.enter_async_context(traffic.running())
        for keeper in (children.keep("bot"), children.keep("workspace"), serving.keep_remembering()):
            stack.callback(asyncio.create_task(keeper).cancel)
        if previous is not None:
            print(_continued(layout, serves, open_runs, breaker.broken), flush=True)
        yield layout


async def _prepare(
    layout: Layout, *, free_ports: bool, pace: Pace, monitors: bool
) -> tuple[Layout, ServingHost]:
    """Write the settings and build the host on ports that are free or its own. Raises CannotDemonstrate."""

    def built() -> ServingHost:
        write_config(layout, pace=pace, monitors=monitors)
        settings = load_settings(layout.config_path, env_file=None)
        return ServingHost(Hosts(settings).get(settings.default_host.name), layout.state_dir)

    serving = built()
    own = await serving.process_ids()
    left = await asyncio.to_thread(leftovers.processes_of, layout.state_dir)
    unknown = [process for process in left if process.pid not in own and not leftovers.is_supervisor(process)]
    if unknown:  # the units' own records of them are lost or damaged
        await _stop_everything(serving, layout.state_dir)
        own = set()
    busy = await asyncio.to_thread(leftovers.ports_of_strangers, busy_ports(layout), own)
    if busy and free_ports:
        await _stop_everything(serving, layout.state_dir)
        layout = with_free_ports(layout, busy)
        serving = built()
    elif busy:
        raise CannotDemonstrate("\ndemo: ".join(busy.values()))
    return layout, serving


async def _start_serving(serving: ServingHost, *, fault: str | None, open_runs: list[str]) -> str:
    print(
        "Starting the serving host: the router and what served last (at first two ranks of tp) ...",
        flush=True,
    )
    try:
        return await serving.start(fault=fault, open_runs=open_runs)
    except (UnitError, EngineError, RouterError) as error:
        raise CannotDemonstrate(
            f"the serving host did not start: {error}\n"
            f"Its logs are in {serving.host.state_dir}/units/*/log. `gpu-oncall demo --fresh` starts anew."
        ) from None


async def _stop_everything(serving: ServingHost, state_dir: Path) -> None:
    """Stop the tiers and the router, and end what no unit knows of."""
    await serving.remember()
    for problem in await serving.stop():
        print(f"demo: {problem}", file=sys.stderr)
    left = await asyncio.to_thread(leftovers.processes_of, state_dir)
    await asyncio.to_thread(leftovers.end_processes, left)


def _previous_layout(state_dir: Path) -> Layout | None:
    """Return the layout of the folder's last demonstration. Remove a damaged or half-made one and return None."""
    try:
        return read_layout(state_dir)
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        print(f"The state in {state_dir} is damaged: starting anew.", flush=True)
    _remove_state(state_dir)
    return None


def _remove_state(state_dir: Path) -> None:
    """End the processes of an earlier demonstration in the folder, and remove its files."""
    leftovers.end_processes(leftovers.processes_of(state_dir))
    for name in STATE:
        path = state_dir / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _open_runs(settings: Settings) -> list[str]:
    """Return the ids of the fallback and restore runs that have not ended."""
    path = settings.state_dir / "gpu-oncall.sqlite"
    if not path.exists():
        return []
    store = Store(f"sqlite:///{path}")
    try:
        return [row.id for row in store.active() if row.action in ("fallback", "restore")]
    except sa.exc.SQLAlchemyError:  # it was killed before the tables were made; the bot makes them
        return []
    finally:
        store.close()


def _continued(layout: Layout, serves: str, open_runs: list[str], fault: str | None) -> str:
    parts = [f"\nContinuing where the last demonstration of {layout.state_dir} ended: {serves}."]
    parts += [f"Run {run} continues." for run in open_runs]
    if fault is not None:
        parts.append(f"The fault {fault} is still active.")
    return " ".join([*parts, "Its threads are in the workspace. `gpu-oncall demo --fresh` starts anew."])


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

Settings: {layout.config_path}   Logs: {layout.state_dir}/*.log
Ctrl-C stops everything; the next start continues the incident, or starts anew with --fresh.
"""


def _workspace_argv(layout: Layout) -> list[str]:
    settings = load_settings(layout.config_path, env_file=None)
    text = json.dumps(manifest(settings.slack, SLASH_COMMANDS))
    app = write_atomically(layout.state_dir / "manifest.json", text)
    return [
        *(sys.executable, "-m", "demo.workspace"),
        *("--port", str(layout.ports.workspace)),
        *("--state", str(layout.state_dir / "workspace.sqlite")),
        *("--manifest", str(app)),
        *("--panel-url", layout.panel_url),
        "--no-rate-limits",  # the demonstration edits its messages more often than Slack allows
    ]


async def _wait_for_bot(layout: Layout, children: Children) -> None:
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    async with WorkspaceClient(layout.workspace_url) as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(WorkspaceError):
                if (await client.state("oncall"))["app"]["connected"]:
                    return
            if (name := children.ended()) is not None:
                log = children.log_path(name)
                last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
                raise CannotDemonstrate(
                    f"the {name} ended at once: {last}\nSee {log}. `gpu-oncall demo --fresh` starts anew."
                )
            await asyncio.sleep(0.1)
    log = children.log_path("bot")
    raise CannotDemonstrate(f"the bot did not connect in {CONNECT_TIMEOUT_S} s: see {log}")
