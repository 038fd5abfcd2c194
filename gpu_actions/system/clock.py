"""Moments that can be compared by any process and do not move if the wall clock is set.

Within one boot they use CLOCK_BOOTTIME, which all processes share and which process start times in /proc use. Only across a
reboot is the wall clock used.
"""

import time
from typing import Self

from gpu_actions.models import Frozen
from gpu_actions.system.proc import TICKS_PER_S, boot_id, read_process

TICK_S = 1 / TICKS_PER_S


def boot_clock_s() -> float:
    """Return the seconds since this machine booted."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def process_age_s(pid: int) -> float | None:
    """Return the age of a process, to the kernel's tick (10 ms), or None if it does not exist."""
    row = read_process(pid)
    return None if row is None else max(0.0, boot_clock_s() - row.started * TICK_S)


def utc_clock(moment_s: float) -> str:
    """Return the time of day of a moment (seconds since 1970) for people: `10:04:05`, in UTC."""
    return time.strftime("%H:%M:%S", time.gmtime(moment_s))


class Moment(Frozen):
    """A moment that is kept in a file and compared with later ones by any process of this machine."""

    boot_id: str
    boot_s: float
    wall_s: float

    @classmethod
    def now(cls) -> Self:
        return cls(boot_id=boot_id(), boot_s=boot_clock_s(), wall_s=time.time())

    def seconds_ago(self) -> float:
        """Return how long ago it was, never negative. Across a reboot the wall clock decides."""
        if self.boot_id == boot_id():
            return max(0.0, boot_clock_s() - self.boot_s)
        return max(0.0, time.time() - self.wall_s)

    def precedes_process(self, pid: int) -> bool:
        """Return True if a living process started after this moment, to the kernel's tick (10 ms)."""
        row = read_process(pid)
        if row is None:
            return False
        return self.boot_id != boot_id() or row.started * TICK_S >= self.boot_s - TICK_S
