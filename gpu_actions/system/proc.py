"""Read processes and ports from the kernel (proc(5)).

Standard library only, because the supervisor imports this module.
"""

import contextlib
import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

STAT_BYTES = 4096
FILE_BYTES = 64 * 1024
ENVIRONMENT_BYTES = 1024 * 1024
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ProcessRow(NamedTuple):
    """The fields of /proc/PID/stat in use. `pid` and `started` (clock ticks since boot) identify a process within a boot."""

    pid: int
    parent: int
    group: int
    session: int
    name: str
    state: str
    cpu_ticks: int
    started: int

    @property
    def zombie(self) -> bool:
        return self.state in ("Z", "X")


def parse_stat(text: str) -> ProcessRow | None:
    """Parse /proc/PID/stat. Return None for other text. The name may hold blanks and parentheses."""
    opening, closing = text.find("("), text.rfind(")")
    fields = text[closing + 1 :].split() if closing > opening >= 0 else []
    if len(fields) < 20:
        return None
    try:
        return ProcessRow(
            pid=int(text[:opening]),
            parent=int(fields[1]),
            group=int(fields[2]),
            session=int(fields[3]),
            name=text[opening + 1 : closing],
            state=fields[0][:1],
            cpu_ticks=int(fields[11]) + int(fields[12]),
            started=int(fields[19]),
        )
    except ValueError:
        return None


def read_process(pid: int) -> ProcessRow | None:
    """Read one process. Return None if it does not exist."""
    try:  # os.open: Path.read_text costs twice as much, and a big host has thousands of processes
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    try:
        return parse_stat(os.read(descriptor, STAT_BYTES).decode(errors="replace"))
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)


def process_table() -> dict[int, ProcessRow]:
    """Read all processes of this machine, about 12 us each."""
    rows = (read_process(int(name)) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208
    return {row.pid: row for row in rows if row is not None}


def tree_of(roots: Iterable[int], table: dict[int, ProcessRow]) -> list[ProcessRow]:
    """Return the processes of the trees below `roots`, parents first."""
    children: dict[int, list[int]] = {}
    for row in table.values():
        children.setdefault(row.parent, []).append(row.pid)
    found: dict[int, ProcessRow] = {}
    waiting = [pid for pid in roots if pid in table]
    while waiting:
        pid = waiting.pop(0)
        if pid not in found:
            found[pid] = table[pid]
            waiting += sorted(children.get(pid, ()))
    return list(found.values())


def family(
    table: dict[int, ProcessRow], roots: Iterable[int], session: int | None = None
) -> dict[int, ProcessRow]:
    """Return the living processes that descend from `roots`, roots included, or from members of `session`."""
    members = [row.pid for row in table.values() if session is not None and row.session == session]
    return {row.pid: row for row in tree_of([*roots, *members], table) if not row.zombie}


def is_same(row: ProcessRow, now: ProcessRow | None) -> bool:
    """Return True if `now` is the process of `row`, not another one that got its pid."""
    return now is not None and now.started == row.started


def send(row: ProcessRow, signum: int) -> None:
    """Signal a process, but never another one that got its pid."""
    if is_same(row, read_process(row.pid)):
        try:
            os.kill(row.pid, signal.Signals(signum))
        except ProcessLookupError:
            return  # it ended after it was read


def read_command(pid: int) -> list[str]:
    """Return a process's arguments; empty for a zombie, a kernel thread, or a process that is gone or unreadable."""
    return [part.decode(errors="replace") for part in read_file(pid, "cmdline").split(b"\0") if part]


def read_environment(pid: int) -> dict[str, str]:
    """Return a process's initial environment. Raises OSError if it is gone or another user's."""
    with Path(f"/proc/{pid}/environ").open("rb") as file:
        raw = file.read(ENVIRONMENT_BYTES)
    pairs = (part.decode(errors="replace").partition("=") for part in raw.split(b"\0") if b"=" in part)
    return {name: value for name, _, value in pairs}


def read_file(pid: int, name: str) -> bytes:
    """Return the start of /proc/PID/NAME, or nothing if it cannot be read."""
    try:
        with Path(f"/proc/{pid}/{name}").open("rb") as file:
            return file.read(FILE_BYTES)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def blocked_threads(pid: int) -> dict[int, tuple[int, str]]:
    """Return the threads of a process that the kernel blocks (state D), with their CPU ticks and the function they wait in, if
    that can be read."""
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for name in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            row = parse_stat(read_file(pid, f"task/{name}/stat").decode(errors="replace"))
            if row is not None and row.state == "D":
                wchan = read_file(pid, f"task/{name}/wchan").decode(errors="replace").strip("\0\n ")
                found[row.pid] = (row.cpu_ticks, wchan if wchan != "0" else "")
    return found


def has_listener(port: int) -> bool:
    """Return True if this network namespace has a socket that listens on a TCP port."""
    listening = re.compile(rf":{port:04X} [0-9A-F]+:0000 0A ")
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            if listening.search(Path(f"/proc/net/{table}").read_text()):
                return True
    return False


def boot_id() -> str:
    """Return the kernel's id of this boot. Start times of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def namespace_pid(pid: int) -> int | None:
    """Return a process's pid in its own pid namespace, as its container sees it; None if it is gone."""
    for line in read_file(pid, "status").decode(errors="replace").splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return None


def disk_read_gib(pids: Iterable[int]) -> float | None:
    """Return what processes have read from disk, in GiB: what the page cache had is not counted. None if that is hidden."""
    found = re.findall(rb"^read_bytes: (\d+)", b"".join(read_file(pid, "io") for pid in pids), re.MULTILINE)
    return sum(map(int, found)) / 1024**3 if found else None


def resident_gib(pids: Iterable[int]) -> float:
    """Return the resident memory of processes in GiB. Memory that they share counts once for each."""
    pages = (read_file(pid, "statm").split() for pid in pids)
    return sum(int(row[1]) for row in pages if len(row) > 1) * os.sysconf("SC_PAGE_SIZE") / 1024**3
