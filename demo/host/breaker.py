"""What "Break something" does: real faults in real processes, kept up until they are mended.

`frozen-rank` stops rank 1 of the `tp` tier with SIGSTOP, so that the collective of the other rank truly hangs. While it is
broken, a newly started rank 1 is stopped too: a sick GPU does not heal because the tier was started again.
"""

import asyncio
import contextlib
import itertools
import signal

import psutil

from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import Unit

WATCH_PERIOD_S = 0.5


class Fault(Frozen):
    """A fault that can be put in, as the page shows it."""

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
    """Puts faults into the tier behind `unit` and takes them out again."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._watch: asyncio.Task[None] | None = None
        self.broken: str | None = None

    async def break_(self, fault_id: str) -> str:
        """Put a fault in; gives one line for the person. Raises ValueError for an unknown fault."""
        known = {fault.id: fault for fault in FAULTS}
        if fault_id not in known:
            raise ValueError(f"no fault is called {fault_id!r}; there are: {', '.join(known)}")
        await self.mend()
        ranks = await self._ranks()
        if not ranks:
            return "The tp tier is not running, so there is nothing to break."
        self.broken = fault_id
        hit = self._hit(ranks)
        self._watch = asyncio.create_task(self._keep_broken())
        return f"Broken: {known[fault_id].help} (pid {', '.join(map(str, hit))}). Now try /triage."

    async def mend(self) -> str:
        """Take the fault out; gives one line for the person."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        was, self.broken = self.broken, None
        for rank in await self._ranks():
            with contextlib.suppress(psutil.NoSuchProcess):
                if rank.status() == psutil.STATUS_STOPPED:
                    rank.send_signal(signal.SIGCONT)
        return (
            f"Mended: {was} is gone. If the service had fallen back, try /restore start."
            if was
            else "Nothing was broken."
        )

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
        """The processes of the tier that are rank 1, by their command line."""
        found = []
        for pid in (await self._unit.state()).pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                command = process.cmdline()
                if any(pair == ("--rank", "1") for pair in itertools.pairwise(command)):
                    found.append(process)
        return found
