"""What "Break something" does: real faults in real processes, which last until they are removed.

`frozen-rank` stops rank 1 of the `tp` tier with SIGSTOP, so that the collective of the other rank truly hangs. While it is
broken, a newly started rank 1 is stopped too: a sick GPU does not heal because its tier or the demonstration was started
again.
"""

import asyncio
import contextlib
import itertools
import signal
from pathlib import Path

import psutil

from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import Unit
from gpu_actions.system.files import write_atomically

WATCH_PERIOD_S = 0.5


class Fault(Frozen):
    """A fault to inject, as the page shows it."""

    id: str
    label: str
    help: str


FAULTS = (
    Fault(
        id="frozen-rank",
        label="Freeze a rank",
        help="SIGSTOP to rank 1 of the tp tier: its collective hangs and requests stall",
    ),
    Fault(
        id="dead-rank",
        label="Kill a rank",
        help="SIGKILL to rank 1 of the tp tier: the engine dies, and dies again when restarted",
    ),
)


class Breaker:
    """Injects faults into the tier behind `unit` and removes them. `file` keeps the fault for the next start."""

    def __init__(self, unit: Unit, file: Path) -> None:
        self._unit = unit
        self._file = file
        self._watch: asyncio.Task[None] | None = None
        self.broken: str | None = None

    @property
    def remembered(self) -> str | None:
        """The fault that was active when the last demonstration ended."""
        text = self._file.read_text(errors="replace").strip() if self._file.exists() else ""
        return next((fault.id for fault in FAULTS if fault.id == text), None)

    async def resume(self) -> None:
        """Inject the remembered fault again."""
        if (fault := self.remembered) is not None:
            await self._inject(fault)

    async def close(self) -> None:
        """Stop watching. The fault is remembered."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None

    async def break_(self, fault_id: str) -> str:
        """Inject a fault. Return one line for the person. Raises ValueError for an unknown fault."""
        known = {fault.id: fault for fault in FAULTS}
        if fault_id not in known:
            raise ValueError(f"no fault is called {fault_id!r}; choose one of: {', '.join(known)}")
        await self.mend()
        if not await self._ranks():
            return "The tp tier is not running, so there is nothing to break."
        hit = await self._inject(fault_id)
        return f"Broken: {known[fault_id].help} (pid {', '.join(map(str, hit))}). Now try /triage."

    async def mend(self) -> str:
        """Remove the fault. Return one line for the person."""
        await self.close()
        was, self.broken = self.broken, None
        self._file.unlink(missing_ok=True)
        for rank in await self._ranks():
            with contextlib.suppress(psutil.NoSuchProcess):
                if rank.status() == psutil.STATUS_STOPPED:
                    rank.send_signal(signal.SIGCONT)
        if was is None:
            return "Nothing was broken."
        return f"Mended: {was} is gone. If the service has fallen back, try /restore start."

    async def _inject(self, fault_id: str) -> list[int]:
        self.broken = fault_id
        write_atomically(self._file, fault_id)
        hit = self._hit(await self._ranks())
        self._watch = asyncio.create_task(self._keep_broken())
        return hit

    async def _keep_broken(self) -> None:
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            self._hit(await self._ranks())

    def _hit(self, ranks: list[psutil.Process]) -> list[int]:
        signum = signal.SIGSTOP if self.broken == "frozen-rank" else signal.SIGKILL
        hit = []
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                if rank.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                    rank.send_signal(signum)
                    hit.append(rank.pid)
        return hit

    async def _ranks(self) -> list[psutil.Process]:
        """Return the rank 1 processes of the tier, by their command line."""
        found = []
        for pid in (await self._unit.state()).pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                command = process.cmdline()
                if any(pair == ("--rank", "1") for pair in itertools.pairwise(command)):
                    found.append(process)
        return found
