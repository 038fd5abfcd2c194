"""A host of real parts (tiny engines, HAProxy) under the bot's settings, for tests that kill the bot's processes."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil

from bot.hosts import Hosts
from bot.incidents.artifacts import ArtifactStore
from bot.runs.approvals import Approvals
from bot.runs.runs import Runs
from bot.settings.model import AccessSettings, ApprovalRule, Settings
from bot.store.records import RunRecord, RunStatus
from bot.store.store import Store
from gpu_actions.config.host import HostConfig
from gpu_actions.registry import actions
from tests.bot.toys import HERE, LEAD, ONCALL
from tests.gpu_actions.site import Site, host_config

ROOT = Path(__file__).parents[2]


def settings_of(folder: Path) -> Settings:
    """Load the bot settings of the host in this folder."""
    host = HostConfig.model_validate_json((folder / "host.json").read_text())
    return Settings(
        _env_file=None,
        state_dir=folder / "bot",
        access=AccessSettings(roles={}, approvals={"restore": ApprovalRule(expires_s=300)}),
        hosts=(host,),
    )


class RealHost:
    """A host, its store, a bot without a worker in this process, and worker processes to kill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        settings = settings_of(folder)
        self.site = Site(Hosts(settings).get(settings.default_host.name), folder)
        self.store = Store(settings.own_database_url)
        artifacts = ArtifactStore(settings, self.store)
        self.bot_process = Runs(
            settings, store=self.store, artifacts=artifacts, actions=actions(), role="bot"
        )
        self.workers: list[subprocess.Popen[bytes]] = []

    def worker(self, mode: str) -> subprocess.Popen[bytes]:
        """Start a worker that kills itself once at every step; with the mode `none` it never does."""
        with (self.folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.worker_process", str(self.folder), mode],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.workers.append(process)
        return process

    async def ready(self, worker: subprocess.Popen[bytes]) -> None:
        """Wait until a worker holds the lock."""
        while not self.bot_process.engine.has_worker():
            assert worker.poll() is None, (self.folder / "worker.log").read_text()[-3000:]
            await asyncio.sleep(0.05)

    async def start(self, action: str, **options: str) -> RunRecord:
        started = await self.bot_process.start(
            action=action,
            host=None,
            options=options,
            requester=ONCALL,
            place=HERE,
            dedupe_key=os.urandom(8).hex(),
        )
        return started.run

    async def approve(self, run_id: str) -> None:
        """Approve the run as soon as it waits. No worker is needed."""
        run = await self.until(run_id, lambda run: run.status is RunStatus.WAITING)
        answer = await Approvals(self.store).decide(
            run_id=run_id, user=LEAD, decision="approve", plan_hash=run.plan_hash, reason=""
        )
        assert answer.accepted, answer

    async def until(self, run_id: str, what: Callable[[RunRecord], bool], timeout_s: float = 60) -> RunRecord:
        deadline = time.monotonic() + timeout_s
        while True:
            run = self.store.get(run_id)
            assert run is not None
            if what(run):
                return run
            assert time.monotonic() < deadline, (run, (self.folder / "worker.log").read_text()[-2000:])
            await asyncio.sleep(0.05)

    async def ended_among_kills(
        self, run_id: str, mode: str, *, timeout_s: float = 150
    ) -> tuple[RunRecord, int]:
        """Restart the worker each time it dies, until the run has ended. Return the run and the number of kills."""
        deadline = time.monotonic() + timeout_s
        died = 0
        while True:
            run = self.store.get(run_id)
            assert run is not None
            if run.status.final:
                return run, died
            if (code := self.workers[-1].poll()) is not None:
                died += code == -signal.SIGKILL
                self.worker(mode)
            assert time.monotonic() < deadline, (run, (self.folder / "worker.log").read_text()[-2000:])
            await asyncio.sleep(0.05)

    def end_workers(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
                worker.wait(20)

    async def check_end(self, tier: str) -> None:
        """Check that a tier serves, and that no process is left of the workers once they have ended."""
        await self.site.check_serving(tier)
        self.end_workers()
        assert await self.strays() == []

    async def strays(self) -> list[str]:
        """Return the processes of this host that belong to neither a tier nor the router; there should be none."""
        known: set[int] = {os.getpid()}
        units = [tier.unit for tier in self.site.host.tiers.values()]
        units.append(self.site.host.router.unit)  # type: ignore[attr-defined]
        for unit in units:
            known |= set((await unit.state()).pids)
            known |= {int(pid) for pid in unit._record().get("supervisor", ())[:1]}  # type: ignore[attr-defined]
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                words = " ".join(process.cmdline())
                here = str(self.folder) in words or process.cwd().startswith(str(self.folder))
                if here and process.pid not in known and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {words[:160]}")
        return found


@contextlib.asynccontextmanager
async def real_host(folder: Path, **changes: object) -> AsyncIterator[RealHost]:
    """Provide a host whose tp tier serves, and stop everything at the end."""
    (folder / "host.json").write_text(host_config(folder, **changes).model_dump_json())
    it = RealHost(folder)
    try:
        await it.bot_process.engine.launch()
        await it.site.up()
        yield it
    finally:
        it.end_workers()
        await it.bot_process.engine.close()
        await it.site.down()
        it.store.close()
