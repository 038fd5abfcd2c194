"""A demonstration in a process of its own, driven as people drive it: through the workspace, and through nothing else.

The store is opened for reading only, to count how often each step ran.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import psutil

from bot.store.records import RunRecord
from bot.store.store import Store
from demo.host.layout import Layout, read_layout
from demo.host.panel import press
from demo.workspace.client import WorkspaceClient
from demo.workspace.transcript import ButtonNotFound, ReadMessage

START_S = 60


class Incident:
    """The running demonstration, with hands for people and eyes for the test."""

    def __init__(self, layout: Layout, client: WorkspaceClient) -> None:
        self.layout = layout
        self.client = client
        self.store = Store(f"sqlite:///{layout.state_dir}/bot/gpu-oncall.sqlite")

    async def command(self, text: str, *, user: str = "oncall") -> None:
        """Type a slash command in #incidents; it must be acknowledged."""
        result = await self.client.say(user, "incidents", text)
        assert result.ok, f"{text} was not acknowledged: {result}"

    async def press(self, button: str, *, user: str = "oncall", run: str | None = None) -> None:
        deadline = time.monotonic() + 15
        while True:  # the message with the button follows the run's rows by an edit interval
            try:
                result = await self.client.press(user, button, run=run)
                break
            except ButtonNotFound:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)
        assert result.ok, f"the button {button} was not acknowledged: {result}"

    async def break_(self, button: str) -> str:
        return await press(self.layout.state_dir, button)

    async def messages(self) -> list[ReadMessage]:
        """Every message and reply of #incidents."""
        found: list[ReadMessage] = []
        for message in await self.client.read("incidents"):
            found += [message, *message.replies]
        return found

    async def message_of(self, run_id: str) -> ReadMessage:
        """The one live message of a run."""
        mine = [
            m
            for m in await self.messages()
            if (m.metadata or {}).get("event_type") == "gpu_oncall_run"
            and (m.metadata or {}).get("event_payload", {}).get("run_id") == run_id
        ]
        assert len(mine) == 1, f"{run_id} has {len(mine)} messages"
        return mine[0]

    async def run(
        self, action: str, *, until: Callable[[RunRecord], bool], timeout_s: float = 240, after: float = 0
    ) -> RunRecord:
        """The newest run of an action once `until` holds."""
        deadline = time.monotonic() + timeout_s
        run: RunRecord | None = None
        while time.monotonic() < deadline:
            run = next((r for r in self.store.list(action=action, limit=1) if r.created_at >= after), None)
            if run is not None and until(run):
                return run
            await asyncio.sleep(0.1)
        raise AssertionError(f"{action} did not get there in {timeout_s} s: {describe(run)}")

    async def ended(self, action: str, *, timeout_s: float = 240, after: float = 0) -> RunRecord:
        return await self.run(action, until=lambda run: run.status.final, timeout_s=timeout_s, after=after)

    async def says(self, text: str, *, timeout_s: float = 15) -> ReadMessage:
        """The first message that contains a text, in its text or its blocks."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for message in await self.messages():
                if text in message.text or text in str(message.blocks):
                    return message
            await asyncio.sleep(0.1)
        raise AssertionError(
            f"nobody said {text!r}: {[message.fallback for message in await self.messages()]}"
        )

    async def generate(self) -> str:
        """A completion through the router; gives its text."""
        body = {"model": "demo", "prompt": "hello", "max_tokens": 4, "ignore_eos": True}
        timeout = aiohttp.ClientTimeout(total=10)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(f"{self.layout.router_url}/v1/completions", json=body) as response,
        ):
            answer = await response.json()
            assert response.status == 200, answer
            assert answer["usage"]["completion_tokens"] == 4
            return str(answer["choices"][0]["text"])

    def kill_bot(self) -> None:
        """SIGKILL to the bot's process; the demonstration starts it again."""
        os.kill(int((self.layout.state_dir / "bot.pid").read_text()), signal.SIGKILL)


def describe(run: RunRecord | None) -> str:
    if run is None:
        return "no such run"
    steps = "; ".join(f"{s.step_id} {s.status.value}: {s.summary}" for s in run.steps)
    return f"{run.id} {run.status.value} {run.outcome} {run.problems} [{steps}]"


def processes_of(folder: Path) -> list[str]:
    """Processes that belong to a demonstration, by the folder in their command line or as where they work."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = " ".join(process.cmdline())
            if process.pid != os.getpid() and (str(folder) in words or str(folder) in process.cwd()):
                found.append(f"{process.pid} {words[:150]}")
    return found


@contextlib.asynccontextmanager
async def incident(folder: Path, *, monitors: bool = False) -> AsyncIterator[Incident]:
    """Start a demonstration; at the end press Ctrl-C and see that nothing is left of it. Without monitors, only people act."""
    with (folder / "demo.out").open("wb") as out:
        process = subprocess.Popen(  # noqa: ASYNC220  (it is waited for in a thread)
            [
                sys.executable,
                "-m",
                "bot.cli",
                "demo",
                "--state",
                str(folder / "demo"),
                "--free-ports",
                "--quick",
                "--monitors" if monitors else "--no-monitors",
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_S
        while "The demonstration is up" not in (folder / "demo.out").read_text():
            assert process.poll() is None, (folder / "demo.out").read_text()
            assert time.monotonic() < deadline, (folder / "demo.out").read_text()
            await asyncio.sleep(0.1)
        layout = read_layout(folder / "demo")
        async with WorkspaceClient(layout.workspace_url) as client:
            yield Incident(layout, client)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = await asyncio.to_thread(process.wait, 60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert code == 0, (folder / "demo.out").read_text()
    assert processes_of(folder / "demo") == []
