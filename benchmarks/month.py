"""Play a month of the bot in less than an hour: thousands of runs and alerts, restarts, and the clock advanced hour by hour.

The bot is a real process with toy actions, connected to a local workspace over real sockets. Its wall clock (`time.time`) is
advanced an hour at a time and Slack's with it; periods of an hour or more are shortened by the same measure. Every simulated
day its memory, CPU, files and rows are recorded; the figures of the last third must be those of the third before, within
`FLAT`. Retention is shortened, because with its default of 180 days rows grow for half a year.

`python -m benchmarks.month --minutes 40 --runs 3000 --alerts 20000`
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import re
import signal
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from demo.workspace import Workspace, WorkspaceClient
from tests.ports import free_port

DAYS = 30
HOURS = DAYS * 24
RESTARTS = (3, 6, 9, 12, 15)
"""Days that begin with a kill -9 of the bot; from the last one on it lives for fifteen days."""
TOKEN = "month"  # noqa: S105  (of a bot that lives for an hour on loopback)
FLAT = 0.10
ALERTS_AT_ONCE = 10
COMMANDS = ("/forensics", "/triage", "/loadtest start", "/trace start")
SCRIPTS = {
    "forensics": "file:f count:a",
    "triage": "calm:look",
    "loadtest": "count:a count:b",
    "trace": "file:f",
}


def serve(folder: Path, minutes: float) -> int:
    """Run the bot in this process on the simulated clock: the offset is 8 bytes in the file `clock`."""
    clock = os.open(folder / "clock", os.O_RDONLY)
    real_time = time.time
    time.time = lambda: real_time() + struct.unpack("d", os.pread(clock, 8, 0))[0]
    speed = HOURS * 60 / minutes

    import bot.app
    import bot.runs.run_engine
    from bot.watch.scheduler import Schedule
    from tests.bot.desk import toy_product

    every = Schedule.every

    def faster(self: Schedule, seconds: float, name: str, work: Any, **first: float) -> None:
        if seconds >= 3600:
            seconds /= speed
            first = {name: min(after_s, seconds) for name, after_s in first.items()}
        every(self, seconds, name, work, **first)

    Schedule.every = faster  # type: ignore[method-assign]
    bot.runs.run_engine.WATCH_PERIOD_S = bot.runs.run_engine.SWEEP_PERIOD_S = 3600 * 6 / speed
    settings = _settings(folder)

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with bot.app.running(settings, stop=stop, specs=toy_product(SCRIPTS)):
            (folder / "up").touch()
            await stop.wait()

    asyncio.run(run())
    return 0


def _settings(folder: Path) -> Any:
    from bot.settings.model import (
        AccessSettings,
        ArtifactSettings,
        RetentionSettings,
        Settings,
        SlackSettings,
        WebSettings,
    )
    from tests.bot.toys import toy_settings

    given = json.loads((folder / "month.json").read_text())
    state_dir = folder / "state"
    return Settings(  # type: ignore[call-arg]
        _env_file=None,
        state_dir=state_dir,
        hosts=toy_settings(state_dir).hosts,
        slack=SlackSettings.model_validate(
            {**given["slack"], "edits_per_minute": 1000, "edit_interval_s": 0.5}
        ),
        access=AccessSettings(roles={"responder": ("@oncall-engineers",)}),
        web=WebSettings(port=given["web"], alert_token=TOKEN),  # type: ignore[arg-type]
        monitors={"enabled": False},  # type: ignore[arg-type]
        retention=RetentionSettings(days=7, engine_days=1),
        artifacts=ArtifactSettings(retention_days=3),
    )


class Month:
    """The bot's process, the people and Alertmanager around it, and what was measured."""

    def __init__(self, folder: Path, workspace: Workspace, people: WorkspaceClient, minutes: float) -> None:
        self.folder, self.workspace, self.people, self.minutes = folder, workspace, people, minutes
        self.process: subprocess.Popen[bytes] | None = None
        self.offset_s = 0.0
        self.commands = self.alerts = 0
        self.refused: Counter[str] = Counter()
        self.days: list[dict[str, float]] = []
        self.cpu_s = 0.0

    async def start(self) -> None:
        """Start the bot and wait until it is up."""
        (self.folder / "up").unlink(missing_ok=True)
        with (self.folder / "bot.log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220  (it starts in a moment)
                [sys.executable, "-m", "benchmarks.month", "--bot", str(self.folder), "--minutes", str(self.minutes)],
                stdout=log, stderr=log,
            )  # fmt: skip
        while not (self.folder / "up").exists():
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "bot.log").read_text()[-2000:])
            await asyncio.sleep(0.1)
        self.cpu_s = 0.0

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await asyncio.to_thread(self.process.wait)

    def advance(self, hours: int) -> None:
        """Set the clocks of the bot and of Slack to an hour of the month."""
        self.offset_s = hours * 3600.0
        with (self.folder / "clock").open("r+b") as clock:
            clock.write(struct.pack("d", self.offset_s))
        self.workspace.faults.clock_s = self.offset_s

    async def command(self, text: str) -> None:
        result = await self.people.say("oncall", "incidents", text)
        self.commands += 1
        if not result.ok:
            self.refused["command"] += 1

    async def notify(self, session: aiohttp.ClientSession, hour: int, count: int, *, resolved: bool) -> None:
        """Send a notification of Alertmanager; each hour fires alerts of one cause, the next one resolves them."""
        began = datetime.fromtimestamp(1_800_000_000 + hour * 3600, UTC).isoformat()
        one = {"annotations": {"summary": "a GPU is hot"}, "startsAt": began}
        alerts = [
            {
                **one,
                "status": "resolved" if resolved else "firing",
                "labels": {"alertname": f"GpuHot{hour % 5}", "severity": "warning", "instance": "toy:9400"},
                "fingerprint": f"{hour:06x}{number:06x}",
            }
            for number in range(count)
        ]
        body = {"version": "4", "groupKey": f"{hour}", "alerts": alerts}
        url = f"http://127.0.0.1:{json.loads((self.folder / 'month.json').read_text())['web']}/alerts"
        async with session.post(url, json=body, headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
            self.alerts += count
            if answer.status != 202:
                self.refused["alert"] += count

    def active(self) -> int:
        """Return how many runs have not ended, and alerts have not been delivered."""
        with contextlib.closing(sqlite3.connect(self.folder / "state/gpu-oncall.sqlite", timeout=10)) as rows:
            (runs,) = rows.execute("SELECT count(*) FROM runs WHERE ended_at IS NULL").fetchone()
            (alerts,) = rows.execute("SELECT count(*) FROM untold_alarms").fetchone()
        return int(runs) + int(alerts)

    async def quiet(self, timeout_s: float = 60) -> None:
        """Wait until nothing is at work."""
        deadline = time.monotonic() + timeout_s
        while self.active() and time.monotonic() < deadline:  # noqa: ASYNC110  (rows of another process)
            await asyncio.sleep(0.1)

    def measure(self, day: int) -> None:
        """Record and print the figures of a day."""
        assert self.process is not None
        process = psutil.Process(self.process.pid)
        cpu_s = sum(process.cpu_times()[:2])
        state = self.folder / "state"
        files = [path for path in state.rglob("*") if path.is_file()]
        memory = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{process.pid}/smaps_rollup").read_text(), re.M)
        self.days.append(
            {
                "day": day,
                "memory_mb": int(memory[1]) * 1024 / 1e6 if memory else 0.0,
                "cpu_s": cpu_s - self.cpu_s,
                "disk_mb": sum(path.stat().st_size for path in files) / 1e6,
                "files": len(files),
                "rows": sum(_rows(state / name) for name in ("gpu-oncall.sqlite", "dbos.sqlite")),
                "threads": process.num_threads(),
                "open_files": process.num_fds(),
            }
        )
        self.cpu_s = cpu_s
        print(json.dumps({name: round(value, 2) for name, value in self.days[-1].items()}), flush=True)

    async def play(self, runs: int, alerts: int) -> None:
        """Play the month."""
        began = time.monotonic()
        async with aiohttp.ClientSession() as session:
            for hour in range(HOURS):
                day, hour_of_day = divmod(hour, 24)
                if hour_of_day == 0 and day in RESTARTS:
                    await self.kill()
                    await self.start()
                self.advance(hour)
                for number in range(_share(runs, hour)):
                    await self.command(COMMANDS[(hour + number) % len(COMMANDS)])
                half = math.ceil(_share(alerts, hour) / 2)
                for first in range(0, half, ALERTS_AT_ONCE):
                    await self.notify(session, hour, min(ALERTS_AT_ONCE, half - first), resolved=False)
                await self.notify(session, hour, half, resolved=True)
                await self.quiet()
                if hour_of_day == 23:
                    self.measure(day + 1)
                ahead_s = (hour + 1) / HOURS * self.minutes * 60 - (time.monotonic() - began)
                await asyncio.sleep(max(0.0, ahead_s))


def _share(total: int, hour: int) -> int:
    """Return how many of `total` belong to an hour, so that all hours together have them all."""
    return total * (hour + 1) // HOURS - total * hour // HOURS


def _rows(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        count = 'SELECT count(*) FROM "{}"'
        return sum(database.execute(count.format(name)).fetchone()[0] for name in tables)


def drift(days: Iterable[dict[str, float]], name: str) -> float:
    """Return how much a figure grew from the middle third of the month to the last one, as a share."""
    values = [day[name] for day in days]
    third = len(values) // 3
    before, last = statistics.median(values[third : 2 * third]), statistics.median(values[2 * third :])
    return (last - before) / before if before else 0.0


async def _doubled(people: WorkspaceClient) -> int:
    """Return how many runs have more than one live message, and print when those were posted."""
    seen: defaultdict[str, list[str]] = defaultdict(list)
    for root in await people.read("incidents"):
        for message in (root, *root.replies):
            about = message.metadata or {}
            if about.get("event_type") == "gpu_oncall_run":
                seen[str(about["event_payload"]["run_id"])].append(message.ts)
    print(f"{len(seen)} runs have a message in Slack")
    doubled = {run_id: times for run_id, times in seen.items() if len(times) > 1}
    for run_id, times in doubled.items():
        print(f"{run_id} has messages {', '.join(times)}")
    return len(doubled)


async def main(minutes: float, runs: int, alerts: int) -> int:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with Workspace(port=0) as workspace, WorkspaceClient(workspace.url) as people:
            slack = {"bot_token": workspace.bot_token, "app_token": workspace.app_token}
            given = {"slack": {**slack, "api_url": f"{workspace.url}/api/"}, "web": free_port()}
            (folder / "month.json").write_text(json.dumps(given))
            (folder / "clock").write_bytes(struct.pack("d", 0.0))
            month = Month(folder, workspace, people, minutes)
            began = time.monotonic()
            await month.start()
            try:
                await month.play(runs, alerts)
                doubled = await _doubled(people)
            finally:
                await month.kill()
                trouble = Counter(
                    re.findall(r"\[(?:error|critical)\s*\] (.{0,80})", (folder / "bot.log").read_text())
                )
    took = (time.monotonic() - began) / 60
    print(
        f"{DAYS} days in {took:.0f} minutes: {month.commands} commands, {month.alerts} alerts, {len(RESTARTS)} kills; "
        f"not accepted: {dict(month.refused)}; runs with two messages: {doubled}; errors logged: {dict(trouble)}"
    )
    drifts = {name: drift(month.days, name) for name in ("memory_mb", "cpu_s", "disk_mb", "files", "rows")}
    for name, change in drifts.items():
        print(f"{name:10} {change:+.1%} from days 11-20 to days 21-30 {'' if change < FLAT else 'NOT FLAT'}")
    return 0 if all(change < FLAT for change in drifts.values()) and not doubled and not month.refused else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--runs", type=int, default=3000)
    parser.add_argument("--alerts", type=int, default=20_000)
    parser.add_argument("--bot", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bot:
        raise SystemExit(serve(given.bot, given.minutes))
    raise SystemExit(asyncio.run(main(given.minutes, given.runs, given.alerts)))
