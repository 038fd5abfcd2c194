"""One bot and two workers over a real PostgreSQL and the local workspace, as processes of the product.

The same in one process, in seconds: tests/bot/fleet.
"""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bot.fleet import enrolment
from bot.fleet.orders import Signer
from demo.workspace import Workspace, WorkspaceClient
from tests.ports import free_port
from tests.postgres import postgresql
from tests.scenarios.test_procfile import ROOT, hears

BOT = """
state_dir = "{folder}/{name}"
[slack]
bot_token = "{bot_token}"
app_token = "{app_token}"
api_url = "{url}/api/"
edit_interval_s = 0.3
[access.roles]
responder = ["@oncall-engineers"]
approver = ["@gpu-leads"]
[web]
port = {web}
[fleet]
url = "{box}"
signing_key = "{key}"
"""
WORKER = """
state_dir = "{folder}/{name}"
[monitors]
enabled = false
[fleet]
url = "{box}"
bot_keys = ["{public}"]
[[hosts]]
name = "{name}"
gpus = 0
ras_address = ""
[hosts.router]
url = "http://127.0.0.1:9"
[hosts.tiers.tp]
server = "tp"
engine = {{ url = "http://127.0.0.1:9", model = "m" }}
unit = {{ driver = "process", argv = ["sleep", "300"] }}
[hosts.tiers.fallback]
server = "fallback"
engine = {{ url = "http://127.0.0.1:9", model = "m" }}
unit = {{ driver = "process", argv = ["sleep", "300"] }}
"""


SLOW_TOOL = """#!/bin/sh
echo began >> {folder}/began
while [ ! -e {folder}/go ]; do sleep 0.05; done
echo report > "$3.log"
"""
"""In place of NVIDIA's tool: it works until the file `go` exists, and notes each time it began."""


class Fleet:
    """The processes `bot`, `a` and `b`, each with its own settings file and state folder."""

    def __init__(self, folder: Path, admin: str, workspace: Workspace, *, database_url: str = "") -> None:
        self.folder, self.admin = folder, admin
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        kept = enrolment.init(admin, folder / "keys")
        for name in ("a", "b"):
            enrolment.add(admin, folder / "keys", name, [f"zone={name}1", "pool=chat"])
        public = Signer.load(kept.signing_key).public_key
        self.box_of_bot = enrolment.bot_url(admin, kept)
        for name in ("bot", "bot2") if database_url else ("bot",):
            text = BOT.format(
                folder=folder,
                name=name,
                bot_token=workspace.bot_token,
                app_token=workspace.app_token,
                url=workspace.url,
                web=free_port(),
                box=self.box_of_bot,
                key=kept.signing_key,
            )
            (folder / f"{name}.toml").write_text(f'database_url = "{database_url}"\n{text}')
        for name in ("a", "b"):
            (folder / name).mkdir()
            tool = folder / name / "nvidia-bug-report.sh"
            tool.write_text(SLOW_TOOL.format(folder=folder / name))
            tool.chmod(0o755)
            box = self.box_of_bot.replace(enrolment.BOT_ROLE, enrolment.HOST_ROLE + name)
            settings = WORKER.format(folder=folder, name=name, box=box, public=public)
            (folder / f"{name}.toml").write_text(settings)

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def spawn(self, name: str) -> None:
        command = "bot" if name.startswith("bot") else "worker"
        env = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "bot.cli", command],
                env={
                    **env,
                    "GPU_ONCALL_CONFIG": str(self.folder / f"{name}.toml"),
                    "PYTHONPATH": str(ROOT),
                    "PATH": f"{self.folder / name}:{env['PATH']}",
                },
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def start(self, *names: str) -> None:
        """Start processes and wait until they are up."""
        seen = {name: self.log(name).count(" is up") for name in names}
        for name in names:
            self.spawn(name)
        deadline = time.monotonic() + 60
        while any(self.log(name).count(" is up") == count for name, count in seen.items()):
            for name in names:
                assert self.running[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, [self.log(name) for name in names]
            await asyncio.sleep(0.1)

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.wait(30)

    def end(self, name: str) -> int:
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(30)

    def began(self, name: str) -> int:
        path = self.folder / name / "began"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def _rows(self, name: str, query: str) -> list[tuple[str, int]]:
        with contextlib.closing(sqlite3.connect(self.folder / name / "gpu-oncall.sqlite")) as connection:
            return connection.execute(query).fetchall()

    def statuses(self, name: str) -> list[str]:
        return [status for status, _ in self._rows(name, "SELECT status, 0 FROM runs ORDER BY created_at")]

    def steps(self, name: str) -> dict[str, int]:
        """Return how often each step was executed."""
        return dict(self._rows(name, "SELECT step_id, executions FROM run_steps"))

    def runs(self, name: str) -> list[Path]:
        """Return the folders of the runs that a host has carried out."""
        return sorted((self.folder / name / "hosts" / name / "runs").glob("*"))


@pytest.fixture(scope="module")
def admin() -> Iterator[str]:
    with postgresql() as url:
        yield url


@pytest.fixture
async def workspace() -> AsyncIterator[Workspace]:
    async with Workspace(port=0) as running:
        yield running


@pytest.fixture
async def fleet(tmp_path: Path, admin: str, workspace: Workspace) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path, admin, workspace)
    yield made
    for name in tuple(made.running):
        made.kill(name)


async def until(true: object, *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@pytest.mark.heavy
@pytest.mark.timeout(240)
async def test_a_command_runs_on_the_named_host_only_and_both_survive_the_death_of_the_other(
    fleet: Fleet, workspace: Workspace
) -> None:
    await fleet.start("bot", "a", "b")
    async with WorkspaceClient(workspace.url) as people:
        # the host is named, since there are two
        assert (await people.say("oncall", "incidents", "/triage")).ok
        await hears(people, "Say which host: a, b.")
        assert (await people.say("oncall", "incidents", "/triage host=b")).ok
        await hears(people, "on b")
        await until(lambda: len(fleet.runs("b")) == 1)
        assert fleet.runs("a") == []
        assert (await people.say("oncall", "incidents", "/gpu hosts")).ok
        await hears(people, "2 hosts, every worker is alive")
        await hears(people, "0 of at most 1 are being changed")

        # the worker is killed in the middle of a step and goes on where it stood
        assert (await people.say("oncall", "incidents", "/forensics a bug_report=true")).ok
        await until(lambda: fleet.began("a") == 1)
        fleet.kill("a")
        (fleet.folder / "a" / "go").touch()
        await fleet.start("a")
        await hears(people, "Forensics on a: done")
        assert len(fleet.runs("a")) == 1
        assert fleet.began("a") == 2
        steps = fleet.steps("a")
        assert {name: count for name, count in steps.items() if name == "bug_report"} == {"bug_report": 2}
        assert all(count == 1 for name, count in steps.items() if name != "bug_report")

        # the bot is away: the worker finishes, and the bot hears of it when it is back
        (fleet.folder / "a" / "go").unlink()
        assert (await people.say("oncall", "incidents", "/forensics host=a bug_report=true")).ok
        await until(lambda: fleet.began("a") == 3)
        fleet.kill("bot")
        (fleet.folder / "a" / "go").touch()
        await until(lambda: fleet.statuses("a") == ["succeeded", "succeeded"])
        await fleet.start("bot")
        await until(lambda: fleet.statuses("bot").count("succeeded") == 3)
        assert len(fleet.runs("b")) == 1
        assert [fleet.end(name) for name in ("a", "b", "bot")] == [0, 0, 0]
