"""Rank 0's process: listen, start the ranks, load, serve, drain on SIGTERM, and exit.

Exit codes: 0 drained; 1 the engine failed, or a drain had to abort requests; 2 wrong usage.
"""

import asyncio
import logging
import signal
import socket
import time

from demo.engine.engine import Engine
from demo.engine.options import Options
from demo.engine.rank_processes import RankProcesses
from demo.engine.startup import timed_phase

log = logging.getLogger(__name__)

DRAIN_POLL_S = 0.02
LAST_WORDS_S = 0.5
"""Time for the error answers of a failed engine to go out before the process ends."""
RANK_GRACE_S = 2.0


def serve(options: Options, arguments: list[str]) -> int:
    """Run rank 0 to its end. Return the exit code."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        http = socket.create_server((options.host, options.port), family=family, backlog=1024)
    except OSError as error:
        where = f"{options.host}:{options.port}"
        log.error("cannot listen on %s: %s. Stop what listens there, or pass --port", where, error.strerror)
        return 1
    ranks = RankProcesses()
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

    def __init__(self, options: Options, http: socket.socket, ranks: RankProcesses) -> None:
        self._options = options
        self._http = http
        self._ranks = ranks
        self._failure: str | None = None
        self._end_now = False

    async def run(self, port: int, listener: socket.socket | None) -> int:
        """Serve until SIGTERM or a failure. Return the exit code."""
        with timed_phase("import aiohttp"):
            from aiohttp import web

            from demo.engine.http_api import HttpApi
        loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        engine = Engine(self._options, on_ready=self._log_ready, on_failure=self._fail)
        runner = web.AppRunner(
            HttpApi(engine, self._options).application(),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=LAST_WORDS_S,
        )
        await runner.setup()
        await web.SockSite(runner, self._http).start()
        host, bound = self._http.getsockname()[:2]
        log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, bound)
        engine.start(port=port, listener=listener)
        self._ranks.watch(lambda message: loop.call_soon_threadsafe(self._fail, message))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, engine, number)
        await self._ended.wait()
        if self._failure is None:
            await self._drain(engine)
        if self._failure is None:
            code = 0
            aborted = engine.abort_all(
                503, "shutting_down", "the engine shut down before the request was done"
            )
        else:
            log.error("the engine has failed and exits with 1: %s", self._failure)
            code = 1
            aborted = engine.abort_all(500, "engine_failed", f"the engine has failed: {self._failure}")
        if aborted:
            log.warning("%d unfinished request(s) were aborted", aborted)
            code = 1
            await asyncio.sleep(LAST_WORDS_S / 2)
        self._ranks.expect_end()
        engine.stop()
        await runner.cleanup()
        log.info("exit %d", code)
        return code

    def _log_ready(self) -> None:
        log.info("ready: generated its first tokens")

    def _fail(self, message: str) -> None:
        if self._failure is None:
            self._failure = message
            self._ended.set()
        else:  # a dead rank breaks the collective too, and either may be reported first
            log.error("the engine had failed already: %s", message)

    def _on_signal(self, engine: Engine, number: int) -> None:
        self._end_now = engine.draining  # the second signal ends the drain
        engine.draining = True
        log.info("%s: %s", signal.Signals(number).name, "ending now" if self._end_now else "draining")
        self._ended.set()

    async def _drain(self, engine: Engine) -> None:
        """Let requests finish until the time-out, a second signal or a failure."""
        deadline = time.monotonic() + self._options.shutdown_timeout
        while (  # noqa: ASYNC110  (polled: the batch empties on another thread)
            engine.unfinished()
            and time.monotonic() < deadline
            and not self._end_now
            and self._failure is None
        ):
            await asyncio.sleep(DRAIN_POLL_S)
