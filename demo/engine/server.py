"""Rank 0's process: listen, start the ranks, load, serve, drain on SIGTERM, and exit so that a supervisor learns the truth.

Exit codes: 0 drained; 1 the engine failed, or a drain had to cut requests; 2 wrong usage.
"""

import asyncio
import logging
import os
import signal
import socket
import time
from pathlib import Path

from demo.engine.engine import Engine
from demo.engine.options import Options
from demo.engine.ranks import Ranks
from demo.engine.request import Rejection

log = logging.getLogger(__name__)

IDLE_POLL_S = 0.02
LAST_WORDS_S = 0.5
"""How long a failed engine's requests get to be told before the process ends."""
RANK_GRACE_S = 2.0


def process_age_s() -> float:
    """Seconds since the kernel started this process (10 ms resolution), so that the interpreter's own start counts."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):  # no Linux: counted from here on
        return time.process_time()
    return uptime_s - started / os.sysconf("SC_CLK_TCK")


def log_phase(name: str, seconds: float) -> None:
    """Say how long a part of the start-up took."""
    log.info("start-up: %s took %.2f s (%.2f s since the process began)", name, seconds, process_age_s())


def serve(options: Options, arguments: list[str]) -> int:
    """Run rank 0 to its end; gives the exit code."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        http = socket.create_server((options.host, options.port), family=family, backlog=1024)
    except OSError as error:
        where = f"{options.host}:{options.port}"
        log.error("cannot listen on %s: %s. Stop what listens there, or give --port", where, error.strerror)
        return 1
    ranks = Ranks()
    try:
        port, listener = ranks.spawn(options, arguments)
    except OSError as error:
        log.error("cannot listen on --dist-port %d: %s", options.dist_port, error.strerror)
        return 1
    code = asyncio.run(Server(options, http, ranks).run(port, listener))
    ranks.end(grace_s=RANK_GRACE_S if code == 0 else 0)
    return code


class Server:
    """The process around one engine."""

    def __init__(self, options: Options, http: socket.socket, ranks: Ranks) -> None:
        self._options = options
        self._http = http
        self._ranks = ranks
        self._failure: str | None = None
        self._cut_short = False

    async def run(self, port: int, listener: socket.socket | None) -> int:
        """Serve until SIGTERM or a failure; gives the exit code."""
        began = time.monotonic()
        from aiohttp import web

        from demo.engine.api import Api

        log_phase("import aiohttp", time.monotonic() - began)
        loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        engine = Engine(self._options, phase=log_phase, on_ready=self._say_ready, on_failure=self._fail)
        runner = web.AppRunner(
            Api(engine, self._options).application(),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=LAST_WORDS_S,
        )
        await runner.setup()
        await web.SockSite(runner, self._http).start()
        host, bound = self._http.getsockname()[:2]
        log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, bound)
        engine.start(port=port, listener=listener)

        def on_death(message: str) -> None:
            loop.call_soon_threadsafe(self._fail, message)

        self._ranks.watch(on_death)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, engine, number)
        await self._ended.wait()
        if self._failure is not None:
            log.error("the engine has failed and exits with 1: %s", self._failure)
            code, reason = 1, Rejection(500, "engine_failed", f"the engine has failed: {self._failure}")
        else:
            code = await self._drain(engine)
            reason = Rejection(503, "shutting_down", "the engine shut down before the request was done")
        cut = engine.cut(reason)
        if cut:
            log.warning("%d unfinished request(s) were cut", cut)
            code = 1
            await asyncio.sleep(LAST_WORDS_S / 2)
        self._ranks.expect_end()
        engine.stop()
        await runner.cleanup()
        log.info("exit %d", code)
        return code

    def _say_ready(self) -> None:
        age_s = process_age_s()
        log.info("ready: generated its first tokens; %.2f s since the process began", age_s)

    def _fail(self, message: str) -> None:
        if self._failure is None:
            self._failure = message
            self._cut_short = True
            self._ended.set()
        else:  # a dead rank breaks the collective too, and either may be told first
            log.error("the engine had failed already: %s", message)

    def _on_signal(self, engine: Engine, number: int) -> None:
        self._cut_short = engine.draining  # the second signal ends the drain
        engine.draining = True
        log.info("%s: %s", signal.Signals(number).name, "ending now" if self._cut_short else "draining")
        self._ended.set()

    async def _drain(self, engine: Engine) -> int:
        """Let requests finish up to the time-out; gives 0."""
        deadline = time.monotonic() + self._options.shutdown_timeout
        # polled: the batch empties on another thread
        while engine.unfinished() and time.monotonic() < deadline and not self._cut_short:  # noqa: ASYNC110
            await asyncio.sleep(IDLE_POLL_S)
        if self._failure is not None:
            log.error("the engine failed in its drain: %s", self._failure)
            return 1
        return 0
