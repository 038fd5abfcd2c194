"""`gpu-oncall up`: two real processes under one supervisor, killed, frozen and stopped."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from demo.workspace import Workspace, WorkspaceClient
from tests.ports import free_port
from tests.scenarios.test_procfile import CONFIG, ROOT, hears

SHORT_LIMITS = "import bot.supervisor as s; s.HANGS_S, s.SIGN_S, s.FIRST_PAUSE_S = 4.0, 0.5, 0.2; s.main()"
"""What `gpu-oncall up` becomes, less patient."""


class Up:
    """A running `gpu-oncall up`, with what it has logged and said to systemd."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.log = folder / "up.log"
        self.systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.systemd.bind(f"\0gpu-oncall-test-{os.getpid()}-{id(self)}")
        self.systemd.setblocking(False)
        self.said: list[str] = []
        env = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        env |= {
            "NOTIFY_SOCKET": "@" + self.systemd.getsockname()[1:].decode(),
            "WATCHDOG_USEC": "1000000",
            "PYTHONPATH": str(ROOT),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SHORT_LIMITS, json.dumps({"config": str(config), "log_json": False})],
                env=env, cwd=folder, stdout=log, stderr=log,
            )  # fmt: skip

    def listen(self) -> None:
        """Read what systemd is told; its queue holds 10 messages."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.said.append(self.systemd.recv(100).decode())

    def pids(self) -> dict[str, int]:
        """The processes under the supervisor, by name."""
        children = psutil.Process(self.process.pid).children()
        return {child.name().removeprefix("oncall-"): child.pid for child in children}

    async def until(self, true: Callable[[], object], *, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            self.listen()
            if true():
                return
            assert time.monotonic() < deadline, self.log.read_text()
            await asyncio.sleep(0.05)

    def times_up(self, name: str) -> int:
        return self.log.read_text().count(f"the {name} is up")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(30)
        self.systemd.close()


@pytest.fixture
def ups(tmp_path: Path) -> Iterator[list[Up]]:
    made: list[Up] = []
    yield made
    for up in made:
        up.close()


def gone(pids: dict[str, int]) -> bool:
    return not any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids.values()
    )


@pytest.mark.timeout(180)
async def test_the_bot_and_the_worker_are_restarted_alone_and_end_with_their_supervisor(
    tmp_path: Path, ups: list[Up]
) -> None:
    async with Workspace(port=0) as workspace, WorkspaceClient(workspace.url) as people:
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
        up = Up(tmp_path, config)
        ups.append(up)
        await up.until(lambda: up.times_up("bot") == up.times_up("worker") == 1)
        await up.until(lambda: {"READY=1", "WATCHDOG=1"} <= set(up.said))
        first = up.pids()
        assert set(first) == {"bot", "worker"}

        os.kill(first["bot"], signal.SIGKILL)
        await up.until(lambda: up.times_up("bot") == 2)
        assert up.pids()["worker"] == first["worker"], "the worker does not notice the end of the bot"

        os.kill(first["worker"], signal.SIGKILL)
        assert (await people.say("oncall", "incidents", "/forensics")).ok
        await hears(people, "Forensics on h1: done")
        assert up.times_up("bot") == 2 and up.times_up("worker") == 2

        frozen = up.pids()
        os.kill(frozen["worker"], signal.SIGSTOP)
        await up.until(lambda: up.times_up("worker") == 3)
        assert "the worker does not report any more" in up.log.read_text()
        assert up.pids()["bot"] == frozen["bot"] and gone({"worker": frozen["worker"]})

        up.said.clear()
        await up.until(lambda: "WATCHDOG=1" in up.said)
        last = up.pids()
        up.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(up.process.wait, 30) == 0
        up.listen()
        assert "STOPPING=1" in up.said and gone(last)

        again = Up(tmp_path, config)
        ups.append(again)
        await again.until(lambda: again.times_up("bot") == again.times_up("worker") == 1)
        left = again.pids()
        second = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "bot.cli", "up", "--config", str(config)],
            capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        )  # fmt: skip
        assert second.returncode == 1 and "two would run the same steps twice" in second.stderr
        again.process.kill()
        await again.until(lambda: gone(left), timeout_s=15)
