"""The supervisor of one process: it starts a tier's program, restarts it when it dies, and outlives the bot.

Run as `python -S -m gpu_actions.system.supervisor FOLDER` with a JSON order on standard input. It forks into a session of its
own, answers one JSON line (`{"pid": ...}` or `{"error": ...}`) and closes its standard streams. It imports the standard library
only, so that it starts in tens of milliseconds and stays near 12 MB. `serving/units/process.py` writes the order and reads the
state.
"""

import ctypes
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from gpu_actions.system.files import write_json
from gpu_actions.system.output_file import OutputFile, open_for_program
from gpu_actions.system.proc import ProcessRow, boot_id, family, is_same, process_table, read_process, send

TICK_S = 1.0
"""How often the log's size is checked while nothing happens."""

FIRST_SCAN_S = 0.5
LAST_SCAN_S = 30.0
"""Gaps between scans of the process table: a tier starts its workers early, and a scan takes 5-40 ms."""

FIRST_BACKOFF_S = 0.25
LAST_BACKOFF_S = 30.0
RESTART_TIMES_KEPT = 20
STEADY_AFTER_S = 60.0
"""A process that ran this long restarts with the first backoff."""

PR_SET_CHILD_SUBREAPER = 36
"""From linux/prctl.h. Orphaned descendants become our children, so a double fork does not hide them."""


class Supervisor:
    """Keeps one program running. Its state is in `folder`. It ends once the program has ended and must not restart."""

    def __init__(self, folder: Path, order: dict[str, Any]) -> None:
        self.folder = folder
        self.argv: list[str] = order["argv"]
        self.environment: dict[str, str] = order["environment"]
        self.cwd: str | None = order["cwd"]
        self.restart: bool = order["restart"]
        self.leftover_grace_s: float = order["leftover_grace_s"]
        self.log_cap_bytes: int = order["log_cap_bytes"]
        output = order.get("output")
        self.output = output and OutputFile(Path(output["path"]), output["cap_bytes"])
        self.child: ProcessRow | None = None
        self.adopted = False
        self.restarts = 0
        self.restarted_at_s: list[float] = []
        self.started_at_s = 0.0
        self.last_exit = ""
        self._known: list[list[int]] = []
        self._scan_gap_s = FIRST_SCAN_S
        self._next_scan = 0.0

    # -- the program ---------------------------------------------------------------------------------------------

    def launch(self) -> str:
        """Start the program in a process group of its own. Return an error text, empty if it runs."""
        if self.output:
            self.output.mark("started")
        report_read, report_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become_program(report_write)
        os.close(report_write)
        with os.fdopen(report_read, "rb") as report:
            error = report.read().decode(errors="replace")
        if error:
            os.waitpid(pid, 0)
            self.child = None
            return error
        self.child = read_process(pid)
        self.started_at_s = time.time()
        self._scan_gap_s, self._next_scan = FIRST_SCAN_S, 0.0
        self.save()
        return ""

    def _become_program(self, report: int) -> None:
        """Turn the forked child into the program, or write to `report` why that failed. Never returns."""
        try:
            os.setpgid(0, 0)
            log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(open_for_program(self.output.path) if self.output else log, 1)
            os.dup2(log, 2)
            if self.cwd is not None:
                os.chdir(self.cwd)
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
            for signum in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
                signal.signal(signum, signal.SIG_DFL)
            os.execvpe(self.argv[0], self.argv, self.environment)  # noqa: S606
        except OSError as error:
            os.write(report, f"{error.strerror}: {error.filename or self.argv[0]}".encode())
        os._exit(127)

    def adopt(self, row: ProcessRow, started_at_s: float, restarts: int) -> None:
        """Take over a program that a killed supervisor left behind."""
        if self.output:
            self.output.mark("adopted")
        self.child, self.adopted = row, True
        self.started_at_s, self.restarts = started_at_s, restarts
        self.save()

    def reap(self) -> None:
        """Reap ended children. Clear `child` if the program itself is among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if self.child is not None and pid == self.child.pid:
                code = os.waitstatus_to_exitcode(status)
                self.last_exit = f"signal {-code}" if code < 0 else f"exit code {code}"
                self.child = None
        if self.adopted and self.child is not None:
            now = read_process(self.child.pid)
            if now is None or now.zombie or not is_same(self.child, now):
                self.last_exit = "ended (adopted, so its exit code is unknown)"
                self.child, self.adopted = None, False

    # -- what is left of it --------------------------------------------------------------------------------------

    def tree(self) -> dict[int, ProcessRow]:
        """Return the program's living processes: our descendants, our session, and strays seen earlier."""
        table = process_table()
        strays = {pid for pid, started in self._known if pid in table and table[pid].started == started}
        members = family(table, [*strays, os.getpid()], os.getpid())
        members.pop(os.getpid(), None)
        return members

    def end_leftovers(self) -> None:
        """End the processes of a dead program, which would keep GPU memory and ports from the next start.

        During a stop of the unit they have the grace of that stop.
        """
        deadline = time.monotonic() + self.leftover_grace_s
        signalled: set[tuple[int, int]] = set()
        while left := self.tree():
            expired = time.monotonic() >= (stopping_deadline(self.folder) or deadline)
            for row in left.values():
                identity = (row.pid, row.started)
                if expired:
                    send(row, signal.SIGKILL)
                elif identity not in signalled:
                    send(row, signal.SIGTERM)
                    send(row, signal.SIGCONT)
                    signalled.add(identity)
            time.sleep(0.02)
            self.reap()

    # -- keeping -------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the state. `known` lets a stop find strays even if this supervisor has been killed."""
        write_json(
            self.folder / "state.json",
            {
                "boot_id": boot_id(),
                "supervisor": list(identity_of(os.getpid())),
                "main": None if self.child is None else [self.child.pid, self.child.started],
                "session": os.getpid(),
                "started_at_s": self.started_at_s,
                "restarts": self.restarts,
                "restarted_at_s": self.restarted_at_s,
                "last_exit": self.last_exit,
                "known": self._known,
            },
        )

    def may_start(self) -> bool:
        """Return True unless the unit is frozen or being stopped."""
        return not (self.folder / "frozen").exists() and not (self.folder / "stopping").exists()

    def tick(self) -> None:
        """Keep the log under its cap and the list of known processes up to date."""
        rotate(self.folder / "log", self.log_cap_bytes)
        if time.monotonic() < self._next_scan:
            return
        self._next_scan = time.monotonic() + self._scan_gap_s
        self._scan_gap_s = min(self._scan_gap_s * 2, LAST_SCAN_S)
        known = sorted([row.pid, row.started] for row in self.tree().values())
        if known != self._known:
            self._known = known
            self.save()

    def run(self, watched: set[signal.Signals]) -> None:
        """Supervise until the program has ended and must not restart."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            while self.child is not None:
                signal.sigtimedwait(watched, TICK_S)
                self.reap()
                self.tick()
            self.save()
            self.end_leftovers()
            if not self.restart or not self.may_start():
                break
            if time.time() - self.started_at_s >= STEADY_AFTER_S:
                backoff_s = FIRST_BACKOFF_S
            woken = self._wait(backoff_s, watched)
            backoff_s = FIRST_BACKOFF_S if woken else min(backoff_s * 2, LAST_BACKOFF_S)
            if not self.may_start():
                break
            self.restarts += 1
            self.restarted_at_s = [*self.restarted_at_s, time.time()][-RESTART_TIMES_KEPT:]
            error = self.launch()
            if error:
                self.last_exit = f"could not start: {error}"
                self.started_at_s = time.time()
        self._known = []
        self.save()
        if self.output:
            self.output.drain()

    def _wait(self, seconds: float, watched: set[signal.Signals]) -> bool:
        """Wait for the backoff. Return True if SIGUSR1 asked for a start now. A stop or a freeze ends the wait too."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and self.may_start():
            got = signal.sigtimedwait(watched, min(left, TICK_S))
            if got is not None and got.si_signo == signal.SIGUSR1:
                return True
        return False


def stopping_deadline(folder: Path) -> float | None:
    """Return when the stop under way sends SIGKILL (monotonic clock, shared by all processes of a boot), or None."""
    try:
        return float((folder / "stopping").read_text())
    except (FileNotFoundError, ValueError):
        return None


def identity_of(pid: int) -> tuple[int, int]:
    """Return (pid, start time in ticks); the start time is 0 if there is no such process."""
    row = read_process(pid)
    return pid, 0 if row is None else row.started


def rotate(log: Path, cap_bytes: int) -> None:
    """Copy a log over its cap to `log.1` and truncate it, because the program keeps the file open in append mode."""
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return
    if size <= cap_bytes:
        return
    partial = log.with_name(".log.1")
    with log.open("r+b") as source, partial.open("wb") as target:
        source.seek(max(0, size - cap_bytes))
        while chunk := source.read(1 << 20):
            target.write(chunk)
        target.flush()
        partial.replace(log.with_name("log.1"))
        source.truncate(0)


def main() -> int:
    """Read the order, fork into the background, answer once the program runs or failed to, then supervise it."""
    folder = Path(sys.argv[1])
    order = json.load(sys.stdin)
    if os.fork() > 0:
        os._exit(0)  # the child answers; the caller reads until the streams close
    os.setsid()
    lock = os.open(folder / "supervisor.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        answer({"error": "another supervisor of this unit is running"})
        return 1
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    watched = {signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    keeper = Supervisor(folder, order)
    if keeper.output:
        keeper.output.start()
    adopted = order.get("adopt")
    row = read_process(adopted["pid"]) if adopted else None
    if adopted and row is not None and row.started == adopted["started"]:
        keeper.adopt(row, adopted["started_at_s"], adopted["restarts"])
    elif error := keeper.launch():
        answer({"error": error})
        return 1
    answer({"pid": keeper.child.pid if keeper.child is not None else None})
    keeper.run(watched)
    return 0


def answer(data: dict[str, Any]) -> None:
    """Write one JSON line to the caller and close its streams."""
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)


if __name__ == "__main__":
    sys.exit(main())
