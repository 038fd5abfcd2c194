"""Faults that a rank injects into itself before a collective, so that drills and benchmarks can hang an engine on purpose.

`--drill-folder DIR`: while the file `DIR/rank-K` exists, rank K does what the file says instead of joining its next all-reduce,
and joins it once the file is gone. The others wait inside theirs, as in a real hang. (While `DIR/report-idle` exists, the
engine's metrics report no request: an engine that lost its requests.)
"""

import logging
import os
import threading
import time
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from demo.engine.options import Options

log = logging.getLogger(__name__)

POLL_S = 0.05


class Drills:
    """The faults of one rank."""

    def __init__(self, options: Options, rank: int) -> None:
        self._options = options
        self._rank = rank
        self._sleep_due_s: float | None = None
        self._sleep_is_pending = options.drill_sleep_rank == rank and options.drill_sleep_s > 0
        folder = options.drill_folder
        self._order = None if folder is None else folder / f"rank-{rank}"

    def start_clock(self) -> None:
        """Start the clock of the sleeping-rank drill, at the rank's first step."""
        if self._sleep_due_s is None:
            self._sleep_due_s = time.monotonic() + self._options.drill_sleep_after_s

    def before_all_reduce(self, values: Tensor) -> None:
        """Do what a drill asks of this rank now."""
        if self._sleep_is_pending and self._sleep_due_s is not None and time.monotonic() >= self._sleep_due_s:
            self._sleep_is_pending = False
            log.warning(
                "drill: rank %d sleeps %g s before its all-reduce", self._rank, self._options.drill_sleep_s
            )
            time.sleep(self._options.drill_sleep_s)
            log.warning("drill: rank %d continues", self._rank)
        if self._order is not None and self._order.exists():
            self._obey(self._order, values)

    def _obey(self, order: Path, values: Tensor) -> None:
        match order.read_text().split():
            case ["sleep"]:
                sleep_until_gone(order)
            case ["lock"]:
                wait_for_lock(order)
            case ["read", fifo]:
                read_slow_file(fifo)
            case ["spawn", fifo]:
                start_program(fifo)
            case ["spin"]:
                spin_until_gone(order)
            case ["slow", milliseconds]:
                time.sleep(float(milliseconds) / 1000)
            case ["broadcast"]:
                dist.broadcast(values.clone(), src=(self._rank + 1) % dist.get_world_size())
            case ["size"]:
                dist.all_reduce(values.repeat(2, *[1] * (values.dim() - 1)))
            case other:
                log.error("drill: rank %d does not know %s", self._rank, other)
                sleep_until_gone(order)


def sleep_until_gone(order: Path) -> None:
    """Sleep until the file is gone."""
    while order.exists():
        time.sleep(POLL_S)


def spin_until_gone(order: Path) -> None:
    """Compute without end, as a loop whose condition never comes true. A look at the file is rare."""
    steps = 0
    while steps % 1_000_000 or order.exists():
        steps += 1


def wait_for_lock(order: Path) -> None:
    """Wait for a lock that another thread holds until the file is gone."""
    lock = threading.Lock()
    lock.acquire()

    def release() -> None:
        sleep_until_gone(order)
        lock.release()

    threading.Thread(target=release, name="drill", daemon=True).start()
    lock.acquire()


def read_slow_file(path: str) -> None:
    """Open a file that nobody writes, as one of a file system that does not answer."""
    Path(path).read_bytes()


def start_program(path: str) -> None:
    """Start a program that waits for a file before its first instruction: the kernel blocks its parent (state D) meanwhile."""
    actions = [(os.POSIX_SPAWN_OPEN, 3, path, os.O_RDONLY, 0)]
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}, file_actions=actions), 0)
