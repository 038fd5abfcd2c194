"""Moments that outlive a process and that a wall clock which is set does not move.

Of one boot they count on the kernel's own clock (CLOCK_BOOTTIME, the same for all processes and the one that process start
times in /proc are given in); only across a reboot the wall clock has to do.
"""

import time
from typing import Self

from gpu_actions.models import Frozen
from gpu_actions.system.proc import TICKS_PER_S, boot_id, read_process

TICK_S = 1 / TICKS_PER_S


def boot_clock_s() -> float:
    """Seconds since this machine's boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def process_age_s(pid: int) -> float | None:
    """Seconds since a process was started, to the kernel's tick (10 ms); None when there is no such process."""
    row = read_process(pid)
    return None if row is None else max(0.0, boot_clock_s() - row.started * TICK_S)


class Moment(Frozen):
    """A moment as it is kept in a file, to be compared with later ones by any process of this machine."""

    boot_id: str
    boot_s: float
    wall_s: float

    @classmethod
    def now(cls) -> Self:
        return cls(boot_id=boot_id(), boot_s=boot_clock_s(), wall_s=time.time())

    def seconds_ago(self) -> float:
        """How long ago it was; never negative. Across a reboot it is the wall clock's word."""
        if self.boot_id == boot_id():
            return max(0.0, boot_clock_s() - self.boot_s)
        return max(0.0, time.time() - self.wall_s)

    def precedes_process(self, pid: int) -> bool:
        """Say whether a living process was started after this moment, to the kernel's tick (10 ms)."""
        row = read_process(pid)
        if row is None:
            return False
        return self.boot_id != boot_id() or row.started * TICK_S >= self.boot_s - TICK_S
