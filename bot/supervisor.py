"""`gpu-oncall up`: the bot and the worker of this host as two processes, each restarted alone.

The supervisor imports nothing but a little of the standard library, so that it stays small beside them. A nursery
(`bot.nursery`) imports what the two share, forks those that are to start, and ends: they become children of the supervisor
(PR_SET_CHILD_SUBREAPER), and no copy of the nursery's memory is left but theirs. They report that they are up and that they
live, in the words of sd_notify(3); one that hangs is killed and started again. If the supervisor is killed, the kernel kills
them (PR_SET_PDEATHSIG).
"""

import ctypes
import json
import os
import selectors
import signal
import sys
import time

from bot.web.service_notify import CANNOT_START, keep_alive_period_s, notify

FIRST_PAUSE_S = 0.5
LAST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A process that lived for this long restarts after the first pause."""
SIGN_S = 20.0
"""How often a process reports that it lives."""
HANGS_S = 60.0
START_S = 600.0
"""Time until the first report: a migration of a large database takes minutes."""
END_S = 20.0
"""Time for an orderly end, before SIGKILL. The worker's runs continue at the next start either way."""
RUN = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from {module} import main; main()"
"""Starts a module in a new interpreter that finds the same packages as this one."""
WITHOUT_RICH = "import sys; sys.modules['rich'] = None; "
"""structlog imports rich, 5 MB, if it is there, for colours that a log of a service does not have."""
PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36
"""From linux/prctl.h."""


class Log:
    """Writes lines on stderr as `bot.settings.logs` does, without its libraries."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def __call__(self, level: str, event: str, **values: object) -> None:
        now = time.time()
        at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1e6):06d}Z"
        values["process"] = "supervisor"
        if self._as_json:
            line = json.dumps({**values, "event": event, "level": level, "timestamp": at})
        else:
            line = f"{at} [{level:<9}] {event:<30} {' '.join(f'{name}={value}' for name, value in values.items())}"
        sys.stderr.write(f"{line}\n")


class Process:
    """One supervised process. `pid` is 0 until the nursery has forked it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = 0
        self.reports = -1
        self.is_starting = self.is_up = self.was_up = False
        self.exit_code: int | None = None
        self.started_at = self.heard_at = self.due_at = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._said = b""

    def begin(self) -> int:
        """Begin its start. Return the end of a pipe where it reports."""
        self.reports, writing = os.pipe()
        os.set_blocking(self.reports, False)
        self.started_at = self.heard_at = time.monotonic()
        self.is_starting, self.is_up, self._said = True, False, b""
        return writing

    def hear(self) -> None:
        """Read its reports, and its process id from the nursery."""
        try:
            said = os.read(self.reports, 4096)
        except BlockingIOError:
            return
        if said:
            self.heard_at = time.monotonic()
        *lines, self._said = (self._said + said).split(b"\n")
        for line in lines:
            if line.startswith(b"PID="):
                self.pid, self.is_starting = int(line[4:]), False
            elif line == b"READY=1":
                self.is_up = self.was_up = True

    def hangs(self) -> bool:
        """Return True if it has not reported for too long."""
        return time.monotonic() - self.heard_at > (HANGS_S if self.is_up else START_S)

    def ended(self, exit_code: int) -> float:
        """Note its end. Return the pause before its next start."""
        now = time.monotonic()
        os.close(self.reports)
        self.pid, self.exit_code, self.is_starting, self.is_up = 0, exit_code, False, False
        if now - self.started_at > STEADY_S:
            self._pause_s = FIRST_PAUSE_S
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, LAST_PAUSE_S)
        self.due_at = now + pause_s
        return pause_s

    def send(self, number: signal.Signals) -> None:
        if self.pid:
            os.kill(self.pid, number)  # it is not reaped yet, so the pid is its own


class Supervisor:
    """Starts the processes, restarts each alone, and ends them together."""

    def __init__(self, processes: list[Process], *, config: str | None, log: Log) -> None:
        self._processes = processes
        self._config = config
        self._log = log
        self._nursery = 0
        self._selector = selectors.DefaultSelector()
        self._stopping_since = 0.0
        self._announced = False

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT. Return 0, or 1 if no process can start."""
        woken, waking = os.pipe()
        for end in (woken, waking):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(woken, selectors.EVENT_READ)
        period_s = keep_alive_period_s()
        told_at = time.monotonic()
        while True:
            self._start_due()
            for key, _ in self._selector.select(timeout=self._patience_s(period_s)):
                if key.data is None:
                    os.read(woken, 4096)
                else:
                    key.data.hear()
            self._reap()
            living = [process for process in self._processes if process.pid or process.is_starting]
            if self._stopping_since and not living:
                return 0
            if self._cannot_start():
                return CANNOT_START
            self._end_hanging(living)
            if not self._announced and any(process.name == "worker" and process.is_up for process in living):
                self._announced = True  # the host's work needs no Slack: the bot may come later
                notify("READY=1")
            if period_s and time.monotonic() - told_at >= period_s:
                told_at = time.monotonic()
                notify("WATCHDOG=1")

    def _stop(self, *_: object) -> None:
        if not self._stopping_since:
            self._stopping_since = time.monotonic()
            notify("STOPPING=1")
            for process in self._processes:
                process.send(signal.SIGTERM)

    def _patience_s(self, period_s: float) -> float:
        waits = [5.0, period_s or 5.0]
        if self._stopping_since:
            waits.append(0.5)
        elif not self._nursery:
            waits += [process.due_at - time.monotonic() for process in self._processes if not process.pid]
        return max(0.0, min(waits))

    def _start_due(self) -> None:
        """Start a nursery for the processes that are due, one nursery at a time."""
        now = time.monotonic()
        due = [process for process in self._processes if not process.pid and now >= process.due_at]
        if not due or self._nursery or self._stopping_since:
            return
        writing = {process.name: process.begin() for process in due}
        for process in due:
            self._selector.register(process.reports, selectors.EVENT_READ, process)
            os.set_inheritable(writing[process.name], True)
        _adopt(True)
        orders: dict[str, object] = {"config": self._config, "reports": writing, "sign_s": SIGN_S}
        env = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        code = WITHOUT_RICH + RUN.format(module="bot.nursery")
        self._nursery = os.posix_spawn(sys.executable, _argv(code, self._config, orders), env)
        for end in writing.values():
            os.close(end)

    def _reap(self) -> None:
        """Note the end of the nursery and of processes. What the nursery forked becomes our child when it ends."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            for process in self._processes:
                if process.reports >= 0 and (process.pid or process.is_starting):
                    process.hear()
            if pid == self._nursery:
                self._nursery = 0
                _adopt(False)
                for process in self._processes:
                    if process.is_starting:  # it was not forked
                        self._ended(process, code or CANNOT_START)
                    elif self._stopping_since:
                        process.send(signal.SIGTERM)  # it was forked after the others were told
            for process in self._processes:
                if process.pid == pid:
                    self._ended(process, code)

    def _ended(self, process: Process, code: int) -> None:
        self._selector.unregister(process.reports)
        pause_s = process.ended(code)
        if not self._stopping_since:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._log("warning", f"the {process.name} ended; it starts again alone", how=how, pause_s=pause_s)

    def _cannot_start(self) -> bool:
        """Return True if every process has said that it cannot start, and none ever did."""
        return all(
            not process.pid
            and not process.is_starting
            and not process.was_up
            and process.exit_code == CANNOT_START
            for process in self._processes
        )

    def _end_hanging(self, living: list[Process]) -> None:
        for process in living:
            if self._stopping_since:
                if time.monotonic() - self._stopping_since > END_S:
                    process.send(signal.SIGKILL)
            elif process.hangs():
                self._log(
                    "error", f"the {process.name} does not report any more; it is killed and started again"
                )
                process.heard_at = time.monotonic()
                process.send(signal.SIGKILL)
        ends_late = self._stopping_since and time.monotonic() - self._stopping_since > END_S
        if self._nursery and (ends_late or any(one.is_starting and one.hangs() for one in living)):
            os.kill(self._nursery, signal.SIGKILL)


def _adopt(orphans: bool) -> None:
    """Become the parent of orphans among our descendants, or no longer: what a run leaves behind is not ours."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(orphans), 0, 0, 0)


def _argv(code: str, config: str | None, orders: dict[str, object]) -> list[str]:
    """Return the command line of a module started with `RUN`: its orders, behind the words that people know."""
    shown = ["bot.cli", "up", *(["--config", config] if config is not None else [])]
    return [sys.executable, "-c", code, json.dumps(sys.path), *shown, json.dumps(orders)]


def become_supervisor(config: str | None, *, log_json: bool) -> None:
    """Replace this process, with all that it has imported, by the supervisor. The settings were checked."""
    orders: dict[str, object] = {"config": config, "log_json": log_json}
    argv = _argv(RUN.format(module="bot.supervisor"), config, orders)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, argv)  # noqa: S606  (no shell is wanted)


def main() -> None:
    """Run the supervisor with the orders of `become_supervisor`."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, b"gpu-oncall", 0, 0, 0)
    orders = json.loads(sys.argv[-1])
    processes = [Process("worker"), Process("bot")]
    sys.exit(Supervisor(processes, config=orders["config"], log=Log(orders["log_json"])).run())
