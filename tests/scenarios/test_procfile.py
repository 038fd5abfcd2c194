"""The Procfile's two processes, as a supervisor starts them: one answers people, the other carries their runs."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from demo.workspace import Workspace, WorkspaceClient
from demo.workspace.transcript import ReadMessage
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
CONFIG = """
state_dir = "{folder}/state"
[slack]
bot_token = "{bot_token}"
app_token = "{app_token}"
api_url = "{url}/api/"
edit_interval_s = 0.3
[access.roles]
responder = ["@oncall-engineers"]
[web]
port = {web}
[monitors]
enabled = false
[[hosts]]
name = "h1"
gpus = 0
ras_address = ""
[hosts.router]
url = "http://127.0.0.1:{router}"
[hosts.tiers.tp]
server = "tp"
engine = {{ url = "http://127.0.0.1:9", model = "m" }}
unit = {{ driver = "process", argv = ["sleep", "300"] }}
[hosts.tiers.fallback]
server = "fallback"
engine = {{ url = "http://127.0.0.1:9", model = "m" }}
unit = {{ driver = "process", argv = ["sleep", "300"] }}
"""


class Processes:
    """The commands of the Procfile over one settings file."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder, self.config = folder, config
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        (line,) = [row for row in (ROOT / "Procfile").read_text().splitlines() if row.startswith(f"{name}:")]
        words = line.partition(":")[2].split()
        assert words[0] == "gpu-oncall"
        env = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "bot.cli", *words[1:]],
                env={**env, "GPU_ONCALL_CONFIG": str(self.config), "PYTHONPATH": str(ROOT)},
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def up(self, name: str) -> None:
        deadline = time.monotonic() + 30
        while f"the {name} is up" not in (self.folder / f"{name}.log").read_text():
            assert self.running[name].poll() is None, (self.folder / f"{name}.log").read_text()
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)

    def end(self, name: str) -> int:
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(30)


@pytest.fixture
async def workspace() -> AsyncIterator[Workspace]:
    async with Workspace(port=0) as running:
        yield running


async def hears(people: WorkspaceClient, text: str, *, timeout_s: float = 40) -> ReadMessage:
    deadline = time.monotonic() + timeout_s
    while True:
        messages = await people.read("incidents")
        for message in [one for root in messages for one in (root, *root.replies)]:
            if text in message.text:
                return message
        assert time.monotonic() < deadline, [message.text for message in messages]
        await asyncio.sleep(0.1)


@pytest.mark.timeout(150)
async def test_people_are_answered_by_the_bot_and_their_runs_carried_by_the_worker(
    workspace: Workspace, tmp_path: Path
) -> None:
    config = tmp_path / "gpu-oncall.toml"
    config.write_text(
        CONFIG.format(
            folder=tmp_path,
            bot_token=workspace.bot_token,
            app_token=workspace.app_token,
            url=workspace.url,
            web=free_port(),
            router=free_port(),
        )
    )
    processes = Processes(tmp_path, config)
    try:
        async with WorkspaceClient(workspace.url) as people:
            processes.start("bot")
            await processes.up("bot")
            assert (await people.say("oncall", "incidents", "/forensics")).ok
            await hears(people, "The worker of this host is not running, so nothing was started")
            processes.start("worker")
            await processes.up("worker")
            assert (await people.say("oncall", "incidents", "/forensics")).ok
            await hears(people, "Forensics on h1: done")
            assert processes.end("worker") == 0
            assert (await people.say("oncall", "incidents", "/forensics status")).ok
            await hears(people, "Forensics on h1: done")
            processes.start("worker")
            again = [sys.executable, "-m", "bot.cli", "bot", "--config", str(config)]
            second = await asyncio.to_thread(
                subprocess.run, again, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT
            )
            assert second.returncode == 1
            assert "two would post every message twice" in second.stdout + second.stderr
            await processes.up("worker")
            assert processes.end("bot") == 0
    finally:
        for name in tuple(processes.running):
            processes.end(name)
