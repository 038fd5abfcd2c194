"""A demonstration in a process of its own, which a test stops, kills and starts again on one folder."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil

from bot.store.records import RunRecord
from demo.host.layout import Layout, read_layout
from demo.host.leftovers import processes_of
from demo.workspace.client import WorkspaceClient
from tests.scenarios.incident import Incident, describe

START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 60


class Demonstration:
    """One folder, and the `gpu-oncall demo` process that runs on it, if any."""

    def __init__(self, folder: Path) -> None:
        self.state_dir = folder / "demo"
        self._out = folder / "demo.out"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def layout(self) -> Layout:
        return read_layout(self.state_dir)

    @property
    def output(self) -> str:
        """What the last started process printed."""
        return self._out.read_text()

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def spawn(self, *flags: str) -> None:
        """Start the process without waiting for it."""
        assert not self.is_up
        argv = [sys.executable, "-m", "bot.cli", "demo", "--state", str(self.state_dir), "--quick"]
        with self._out.open("wb") as out:
            self._process = subprocess.Popen(
                [*argv, "--no-monitors", *flags],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def start(self, *flags: str) -> str:
        """Start it and wait until it is up. Return what it printed."""
        self.spawn(*flags)
        await self.prints("The demonstration is up")
        return self.output

    async def fails_to_start(self, *flags: str) -> str:
        """Start it, and return the message with which it ended."""
        self.spawn(*flags)
        assert self._process is not None
        code = await asyncio.to_thread(self._process.wait, START_TIMEOUT_S)
        assert code == 1, self.output
        assert "Traceback" not in self.output
        return self.output

    async def prints(self, text: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not re.search(text, self.output):
            assert self.is_up, self.output
            assert time.monotonic() < deadline, self.output
            await asyncio.sleep(0.05)

    async def interrupt(self) -> None:
        """Press Ctrl-C, and see that no process is left."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        code = await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)
        assert code == 0, self.output
        assert processes_of(self.state_dir) == []

    def kill_demonstration(self) -> None:
        """Kill the `gpu-oncall demo` process alone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def kill_everything(self, *, but: Callable[[psutil.Process], bool] = lambda _: False) -> None:
        """Kill the demonstration with every process of it."""
        self.kill_demonstration()
        victims = [process for process in processes_of(self.state_dir) if not but(process)]
        for process in [*victims, *victims]:  # twice: a supervisor may just have started its program again
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(victims, timeout=10)

    def close(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.is_up:
            self.kill_demonstration()
        while left := processes_of(self.state_dir):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=10)

    @contextlib.asynccontextmanager
    async def incident(self) -> AsyncIterator[Incident]:
        async with WorkspaceClient(self.layout.workspace_url) as client:
            yield Incident(self.layout, client)

    async def serves(self) -> None:
        """Wait until a completion comes through the router."""
        deadline = time.monotonic() + 30
        async with self.incident() as incident:
            while True:
                try:
                    await incident.generate()
                    return
                except Exception:
                    if time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(0.2)

    async def run_succeeds(self, action: str) -> RunRecord:
        async with self.incident() as incident:
            run = await incident.ended(action, timeout_s=150)
        assert run.status.value == "succeeded", describe(run)
        return run

    def pid_of(self, child: str) -> int:
        return int((self.state_dir / f"{child}.pid").read_text())


def os_kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
