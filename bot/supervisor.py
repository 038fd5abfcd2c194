"""`gpu-oncall up`: the bot and the worker of this host as two processes, each restarted alone.

Both are forked from this process, which has imported what they share, so that these pages are in memory once. They report that
they are up and that they live, in the words of sd_notify(3); one that hangs is killed and started again. If this process is
killed, the kernel kills them (PR_SET_PDEATHSIG).
"""

import asyncio
import ctypes
import gc
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NoReturn

import structlog

from bot.settings.logs import configure_logging
from bot.settings.model import Settings
from bot.slack.tokens import CannotStart, check_tokens
from bot.web.service_notify import keep_alive_period_s, notify
from bot.worker import CANNOT_START, serve_worker

log = structlog.get_logger()

Work = Callable[..., Coroutine[Any, Any, int]]

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
CRASHED = 70
"""Exit code of a process that ended with a traceback; EX_SOFTWARE of sysexits.h."""

PR_SET_NAME, PR_SET_PDEATHSIG = 15, 1
"""From linux/prctl.h."""


class Process:
    """One supervised process. `run` is what it does; it is called in the child with `tell`, and returns the exit code."""

    def __init__(self, name: str, run: Work) -> None:
        self.name, self.run = name, run
        self.pid = 0
        self.reports = -1
        self.is_up = self.was_up = False
        self.exit_code: int | None = None
        self.started_at = self.heard_at = self.due_at = 0.0
        self._pause_s = FIRST_PAUSE_S

    def start(self) -> None:
        """Fork it."""
        self.reports, writing = os.pipe()
        os.set_blocking(self.reports, False)
        self.started_at = self.heard_at = time.monotonic()
        self.is_up = False
        gc.collect()
        gc.freeze()  # the collector of the child does not write into the pages that it shares with us
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(self, writing, parent)
        os.close(writing)

    def hear(self) -> None:
        """Read its reports."""
        try:
            said = os.read(self.reports, 4096)
        except BlockingIOError:
            return
        if said:
            self.heard_at = time.monotonic()
            self.is_up = self.was_up = self.is_up or b"READY=1" in said

    def hangs(self) -> bool:
        """Return True if it has not reported for too long."""
        return time.monotonic() - self.heard_at > (HANGS_S if self.is_up else START_S)

    def ended(self, exit_code: int) -> float:
        """Note its end. Return the pause before its next start."""
        now = time.monotonic()
        os.close(self.reports)
        self.pid, self.exit_code, self.is_up = 0, exit_code, False
        if now - self.started_at > STEADY_S:
            self._pause_s = FIRST_PAUSE_S
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, LAST_PAUSE_S)
        self.due_at = now + pause_s
        return pause_s

    def send(self, number: signal.Signals) -> None:
        if self.pid:
            os.kill(self.pid, number)  # it is not reaped yet, so the pid is its own


def _become(process: Process, reports: int, parent: int) -> NoReturn:
    """Turn the forked child into the process."""
    code = CRASHED
    try:
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(PR_SET_NAME, f"oncall-{process.name}".encode(), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(CRASHED)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.environ.pop("NOTIFY_SOCKET", None)
        os.environ["WATCHDOG_USEC"] = str(int(SIGN_S * 2e6))  # `keep_alive` reports twice in it

        def tell(state: str) -> None:
            os.write(reports, f"{state}\n".encode())

        code = asyncio.run(process.run(tell=tell))
    except Exception:  # noqa: BLE001  (a child ends here, whatever it was)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


async def _serve_bot(settings: Settings, *, tell: Callable[[str], None]) -> int:
    from bot.app import serve  # only here: the worker does without Slack's libraries

    return await serve(settings, tell=tell)


class Supervisor:
    """Starts the processes, restarts each alone, and ends them together."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes
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
            living = [process for process in self._processes if process.pid]
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
        else:
            waits += [process.due_at - time.monotonic() for process in self._processes if not process.pid]
        return max(0.0, min(waits))

    def _start_due(self) -> None:
        for process in self._processes:
            if not process.pid and not self._stopping_since and time.monotonic() >= process.due_at:
                process.start()
                self._selector.register(process.reports, selectors.EVENT_READ, process)

    def _reap(self) -> None:
        for process in self._processes:
            if not process.pid:
                continue
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                process.hear()
                self._selector.unregister(process.reports)
                code = os.waitstatus_to_exitcode(status)
                pause_s = process.ended(code)
                if not self._stopping_since:
                    how = f"signal {-code}" if code < 0 else f"exit code {code}"
                    log.warning(f"the {process.name} ended; it starts again alone", how=how, pause_s=pause_s)

    def _cannot_start(self) -> bool:
        """Return True if every process has said that it cannot start, and none ever did."""
        return all(
            not process.pid and not process.was_up and process.exit_code == CANNOT_START
            for process in self._processes
        )

    def _end_hanging(self, living: list[Process]) -> None:
        for process in living:
            if self._stopping_since:
                if time.monotonic() - self._stopping_since > END_S:
                    process.send(signal.SIGKILL)
            elif process.hangs():
                log.error(f"the {process.name} does not report any more; it is killed and started again")
                process.heard_at = time.monotonic()
                process.send(signal.SIGKILL)


def supervise(settings: Settings) -> int:
    """Run the bot and the worker until SIGTERM or SIGINT. Return the exit code: 0, or 1 if they cannot start."""
    configure_logging(settings, process="supervisor")
    try:
        check_tokens(settings)
    except CannotStart as error:
        log.error(str(error))
        return CANNOT_START
    worker = Process("worker", partial(serve_worker, settings))
    return Supervisor([worker, Process("bot", partial(_serve_bot, settings))]).run()
