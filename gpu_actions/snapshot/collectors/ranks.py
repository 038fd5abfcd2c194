"""The tier's processes as the kernel sees them: state, wait channel, and CPU time used within the window.

Read from /proc (proc(5)): a stopped or dead rank is visible there within milliseconds, long before a collective's watchdog
fires (300-600 s).
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.serving.registry import rank_in_title
from gpu_actions.snapshot.collector import Collector, CollectorFailed, CollectorSkipped, Source
from gpu_actions.snapshot.target import TriageTarget

MAX_PROCESSES = 256
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_LIMIT = 64 * 1024
STAT_BYTES = 4096


class RankProcess(Frozen):
    """One process of the tier. States are the kernel's letters (R, S, D, T, t, Z, X, I); `gone` = it ended."""

    pid: int
    parent: int | None = None
    name: str = ""
    rank: int | None = Field(default=None, description="its rank, if command line or environment name it")
    root: bool = False
    state_first: str | None = None
    state_last: str | None = None
    wchan: str | None = None
    cpu_s: float | None = Field(default=None, description="CPU time used within the window")
    age_s: float | None = None

    @property
    def is_alive(self) -> bool:
        """True unless it ended, or is a zombie, at the end of the window."""
        return self.state_last not in ("Z", "X", "gone", None)


class RanksReading(Frozen):
    """The tier's process tree over the window."""

    roots: tuple[int, ...] = ()
    missing_roots: tuple[int, ...] = Field(default=(), description="main processes that do not exist")
    processes: tuple[RankProcess, ...] = ()
    more_processes: int = 0
    unit_active: bool | None = None


class ProcRow(NamedTuple):
    """The fields of /proc/PID/stat in use."""

    pid: int
    parent: int
    name: str
    state: str
    cpu_ticks: int
    start_ticks: int


def parse_stat(text: str) -> ProcRow | None:
    """Parse /proc/PID/stat. Return None for other text. The name may hold blanks and parentheses."""
    opening, closing = text.find("("), text.rfind(")")
    fields = text[closing + 1 :].split() if closing > opening >= 0 else []
    if len(fields) < 20:
        return None
    try:
        return ProcRow(
            pid=int(text[:opening]),
            parent=int(fields[1]),
            name=text[opening + 1 : closing],
            state=fields[0][:1],
            cpu_ticks=int(fields[11]) + int(fields[12]),
            start_ticks=int(fields[19]),
        )
    except ValueError:
        return None


def process_table(proc: Path = Path("/proc")) -> dict[int, ProcRow]:
    """Read all processes of the machine (about 12 us each)."""
    rows: dict[int, ProcRow] = {}
    for name in os.listdir(proc):  # noqa: PTH208  (a Path for each costs more than the read)
        if name.isdigit() and (row := read_stat(int(name), proc)) is not None:
            rows[row.pid] = row
    return rows


def read_stat(pid: int, proc: Path = Path("/proc")) -> ProcRow | None:
    """Read one process. Return None if it is gone."""
    try:  # os.open: Path.read_text costs twice as much, and a big host has thousands of processes
        descriptor = os.open(f"{proc}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    try:
        return parse_stat(os.read(descriptor, STAT_BYTES).decode(errors="replace"))
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)


def tree_of(roots: Iterable[int], table: dict[int, ProcRow]) -> list[ProcRow]:
    """Return the processes of the trees below `roots`, parents first."""
    children: dict[int, list[int]] = {}
    for row in table.values():
        children.setdefault(row.parent, []).append(row.pid)
    found: list[ProcRow] = []
    seen: set[int] = set()
    waiting = [pid for pid in roots if pid in table]
    while waiting:
        pid = waiting.pop(0)
        if pid not in seen:
            seen.add(pid)
            found.append(table[pid])
            waiting += sorted(children.get(pid, ()))
    return found


def rank_of(name: str, command: list[str], environment: dict[str, str]) -> int | None:
    """Return a process's rank: from `--rank N`, else from the worker's title, else from torchrun's RANK."""
    for position, part in enumerate(command):
        value = command[position + 1] if part == "--rank" and position + 1 < len(command) else None
        if part.startswith("--rank="):
            value = part.partition("=")[2]
        if value is not None and value.isdigit():
            return int(value)
    title = command[0] if command else name
    if (rank := rank_in_title(title)) is not None:
        return rank
    if "WORLD_SIZE" in environment and environment.get("RANK", "").isdigit():
        return int(environment["RANK"])
    return None


def read_command(pid: int) -> list[str]:
    """Return a process's arguments: none for a zombie, a kernel thread or one that is gone."""
    return [part.decode(errors="replace") for part in _read(pid, "cmdline").split(b"\0") if part]


def read_environment(pid: int) -> dict[str, str]:
    """Return a process's initial environment. Raises PermissionError for another user's process."""
    raw = Path(f"/proc/{pid}/environ").read_bytes()[: 1024 * 1024]
    pairs = (part.decode(errors="replace").partition("=") for part in raw.split(b"\0") if b"=" in part)
    return {name: value for name, _, value in pairs}


def _read(pid: int, name: str) -> bytes:
    try:
        with (Path("/proc") / str(pid) / name).open("rb") as file:
            return file.read(PAGE_LIMIT)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def roots_of(target: TriageTarget) -> tuple[int, ...]:
    """Return the tier's main processes. Raises CollectorSkipped without any, CollectorFailed for an unreadable pid file."""
    if not target.tier_expected:
        raise CollectorSkipped("the tier is stopped on purpose")
    if target.pid_file is None:
        if not target.pids:
            raise CollectorSkipped("no process of the tier is known")
        return target.pids
    try:
        numbers = [int(word) for word in target.pid_file.read_text()[:4096].split()]
    except FileNotFoundError:
        raise CollectorFailed(f"the pid file {target.pid_file} does not exist") from None
    except (OSError, ValueError) as error:
        raise CollectorFailed(f"the pid file {target.pid_file} holds no process ids: {error}") from None
    return (*target.pids, *numbers)


async def collect_ranks(
    roots: tuple[int, ...], *, unit_active: bool | None, window_s: float, began: float
) -> RanksReading:
    """Read the trees below `roots` now and `window_s` seconds later."""
    table = process_table()
    uptime_ticks = time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS_PER_S
    read_at = time.monotonic()
    rows = tree_of(roots, table)
    details = {row.pid: _identify(row) for row in rows[:MAX_PROCESSES]}
    await asyncio.sleep(max(0.0, window_s - (time.monotonic() - began)))
    processes = []
    for row in rows[:MAX_PROCESSES]:
        again = read_stat(row.pid)
        same = again is not None and again.start_ticks == row.start_ticks
        rank, wchan = details[row.pid]
        processes.append(
            RankProcess(
                pid=row.pid,
                parent=row.parent,
                name=row.name[:64],
                rank=rank,
                root=row.pid in roots,
                state_first=row.state,
                state_last=again.state if again is not None and same else "gone",
                wchan=wchan,
                cpu_s=(again.cpu_ticks - row.cpu_ticks) / TICKS_PER_S if again is not None and same else None,
                age_s=max(0.0, (uptime_ticks - row.start_ticks) / TICKS_PER_S) + (time.monotonic() - read_at),
            )
        )
    return RanksReading(
        roots=roots,
        missing_roots=tuple(pid for pid in roots if pid not in table),
        processes=tuple(processes),
        more_processes=max(0, len(rows) - MAX_PROCESSES),
        unit_active=unit_active,
    )


def _identify(row: ProcRow) -> tuple[int | None, str | None]:
    """Return a process's rank and the kernel function that it waits in, if they can be read."""
    command = read_command(row.pid)
    rank = rank_of(row.name, command, {})
    if rank is None:  # torchrun's ranks are numbered in the environment only
        with contextlib.suppress(OSError):  # another user's process, or a zombie
            rank = rank_of(row.name, command, read_environment(row.pid))
    wchan = _read(row.pid, "wchan").decode(errors="replace").strip("\0\n ")
    return rank, wchan if wchan not in ("", "0") else None


async def _collect(source: Source) -> RanksReading:
    return await collect_ranks(
        roots_of(source.target),
        unit_active=source.target.unit_active,
        window_s=source.window_s,
        began=source.began,
    )


RANKS = Collector(collect=_collect, deadline_s=lambda source: source.window_s + 3)
