"""The open loop: sends each request when it is due, whatever happened to the others, and watches deadlines.

A request never waits for a free slot: without an idle connection a new one is opened. Nothing is dropped or moved, and the
client's own lateness is in the record.
"""

import asyncio
import ssl
from dataclasses import dataclass, field
from time import monotonic

from gpu_actions.loadtest.connection import IDLE, Connection
from gpu_actions.loadtest.outcomes import DEAD_ENGINE, Outcome
from gpu_actions.loadtest.prompts import PromptMaker
from gpu_actions.loadtest.records import LogHistogram, Records
from gpu_actions.loadtest.schedule import Schedule
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import Target

MAX_BATCH = 32
"""Requests sent in one turn of the event loop when many are due, so that reads get their turn in between."""
_CLIENT_ERRNOS = frozenset(
    {11, 23, 24, 99, 105, 12}
)  # EAGAIN, ENFILE, EMFILE, EADDRNOTAVAIL, ENOBUFS, ENOMEM


@dataclass(slots=True)
class Counters:
    """Running totals, warm-up included, for progress, the watch for a dead engine and the cross-check."""

    sent: int = 0
    ok: int = 0
    failed: int = 0
    dead: int = 0
    retried: int = 0
    connections: int = 0
    chunks: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    in_flight: int = 0
    first_error: dict[str, tuple[float, str]] = field(default_factory=dict)


class Generator:
    """Sends its own rows of a schedule. `start_at` is the monotonic time of due time 0."""

    def __init__(
        self, spec: LoadSpec, schedule: Schedule, rows: range, target: Target, prompts: PromptMaker
    ) -> None:
        self.ignore_eos = spec.ignore_eos
        self.require_usage = spec.require_usage
        self.counters = Counters()
        self.records = Records(len(schedule))
        self.gaps = LogHistogram()
        self.ttft = LogHistogram()
        self._spec = spec
        self._due = schedule.due_s
        self._prompt_len = schedule.prompt_len
        self._new_tokens = schedule.new_tokens
        self._warmup = schedule.warmup
        self._rows = rows
        self._next = 0
        self._target = target
        self._prompts = prompts
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._connecting: dict[int, asyncio.Task[None]] = {}
        self._start_at = 0.0
        self._sent_all: asyncio.Future[None] | None = None
        self._sending = True
        self._all_ended = asyncio.Event()

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self, start_at: float, stop: asyncio.Event, *, drain_s: float) -> None:
        """Send everything that is due, then wait up to `drain_s` for what is in flight. The rest is unfinished.

        `stop` ends the sending early and starts the drain. Cancelling ends at once. The records are always complete.
        """
        from gpu_actions.loadtest.timer import PreciseTimer

        self._start_at = start_at
        loop = asyncio.get_running_loop()
        sweeper = loop.create_task(self._sweep())
        stopper = loop.create_task(stop.wait())
        self._precise = PreciseTimer(self._fire)
        sent_all = loop.create_future()
        self._sent_all = sent_all
        try:
            if len(self._rows):
                self._precise.arm(start_at + self._due[self._rows[0]])
                await asyncio.wait([sent_all, stopper], return_when=asyncio.FIRST_COMPLETED)
            self._sending = False
            if self.counters.in_flight:
                self._all_ended.clear()
                try:
                    async with asyncio.timeout(drain_s):
                        await self._all_ended.wait()
                except TimeoutError:
                    self.give_up()
        finally:
            self._sending = False
            self._precise.close()
            sweeper.cancel()
            stopper.cancel()
            self.give_up()
            for connection in self._idle:
                connection.abandon()
            self._idle.clear()
            await asyncio.sleep(0)  # let the transports close

    def give_up(self) -> None:
        """Close the connections of everything in flight, which counts as unfinished."""
        now = monotonic()
        for row, task in list(self._connecting.items()):
            task.cancel()
            self._note(row, Outcome.UNFINISHED, "no connection yet at the end of the drain", now)
        self._connecting.clear()
        for connection in list(self._busy):
            self._take_times(connection)
            row = connection.row
            self._busy.discard(connection)
            connection.abandon()
            self._note(row, Outcome.UNFINISHED, "still running at the end of the drain", now)

    # -- sending ----------------------------------------------------------------------------------------------------

    def _fire(self) -> None:
        """Send what is due, then arm the timer for the next due time."""
        if not self._sending:
            return
        rows, due, start_at = self._rows, self._due, self._start_at
        batch = 0
        while self._next < len(rows):
            row = rows[self._next]
            now = monotonic()
            due_at = start_at + due[row]
            if due_at > now or batch >= MAX_BATCH:
                self._precise.arm(due_at)
                return
            self._next += 1
            batch += 1
            self._dispatch(row, due_at, now)
        if self._sent_all is not None and not self._sent_all.done():
            self._sent_all.set_result(None)

    def _dispatch(self, row: int, due_at: float, now: float) -> None:
        self.records.dispatched_s[row] = now - self._start_at
        self.records.outcome[row] = Outcome.UNFINISHED
        self.counters.sent += 1
        self.counters.in_flight += 1
        while self._idle:
            connection = self._idle.pop()  # the most recently used one
            if connection.open:
                self._send(connection, row, due_at, retried=False)
                return
        self._open(row, due_at, retried=False)

    def _send(self, connection: Connection, row: int, due_at: float, *, retried: bool) -> None:
        tokens = self._new_tokens[row]
        request = self._target.request(self._prompts.body(row, self._prompt_len[row], tokens))
        self._busy.add(connection)
        connection.send(row, due_at, tokens, request, retried=retried)

    def _open(self, row: int, due_at: float, *, retried: bool) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(row, due_at, retried=retried))
        self._connecting[row] = task

    async def _connect(self, row: int, due_at: float, *, retried: bool) -> None:
        target = self._target
        outcome, detail = Outcome.CONNECT_FAILED, ""
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self),
                target.address,
                target.port,
                ssl=target.tls,
                server_hostname=target.host if target.tls else None,
            )
        except ConnectionRefusedError:
            outcome, detail = Outcome.CONNECTION_REFUSED, f"nothing listens at {target.address}:{target.port}"
        except ssl.SSLError as error:
            outcome, detail = Outcome.TLS_ERROR, str(error)
        except OSError as error:
            own_fault = error.errno in _CLIENT_ERRNOS
            outcome, detail = (Outcome.CLIENT_RESOURCE if own_fault else Outcome.CONNECT_FAILED), str(error)
        else:
            if self._connecting.pop(row, None) is None:  # given up in the meantime
                connection.abandon()
                return
            self.counters.connections += 1
            self._send(connection, row, due_at, retried=retried)
            return
        if self._connecting.pop(row, None) is not None:
            self._note(row, outcome, detail, monotonic())

    # -- the connections' owner -------------------------------------------------------------------------------------

    def request_ended(self, connection: Connection, outcome: Outcome, detail: str, at_s: float) -> None:
        """Record the verdict on a connection's request and take the connection back."""
        row = connection.row
        self._busy.discard(connection)
        if (
            outcome is Outcome.CONNECTION_RESET
            and connection.served > 1  # with this request: the server had closed an idle connection
            and not connection.got_bytes
            and not connection.retried
        ):
            due_at = connection.due_at
            connection.row = IDLE
            self.counters.retried += 1
            self._open(row, due_at, retried=True)
            return
        self._take_times(connection)
        if outcome is Outcome.OK and row >= self._warmup:
            self.gaps.extend(connection.gaps)
            self.ttft.add(connection.first_at - connection.due_at)
        connection.row = IDLE
        self._note(row, outcome, detail, at_s)
        if connection.open:
            self._idle.append(connection)

    def connection_gone(self, connection: Connection) -> None:
        """Forget a connection that closed. The idle list drops it at its next use."""
        self._busy.discard(connection)

    def _take_times(self, connection: Connection) -> None:
        row, start_at, records = connection.row, self._start_at, self.records
        if row == IDLE:
            return
        records.written_s[row] = connection.written_at - start_at
        if connection.chunks:
            records.first_s[row] = connection.first_at - start_at
            records.last_token_s[row] = connection.last_token_at - start_at
        records.chunks[row] = connection.chunks
        records.tokens[row] = connection.usage_tokens if connection.usage_tokens >= 0 else connection.chunks
        records.prompt_tokens[row] = max(0, connection.usage_prompt)
        self.counters.chunks += connection.chunks
        self.counters.tokens += records.tokens[row]
        self.counters.prompt_tokens += records.prompt_tokens[row]

    def _note(self, row: int, outcome: Outcome, detail: str, at_s: float) -> None:
        self.records.ended_s[row] = at_s - self._start_at
        self.records.outcome[row] = outcome
        counters = self.counters
        counters.in_flight -= 1
        if outcome is Outcome.OK:
            counters.ok += 1
        else:
            counters.failed += 1
            counters.dead += outcome in DEAD_ENGINE
            counters.first_error.setdefault(outcome.label, (at_s - self._start_at, detail))
        if counters.in_flight == 0:
            self._all_ended.set()

    # -- deadlines --------------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """End requests that are past their deadline or silent in mid-stream. One pass for all instead of a timer each."""
        spec = self._spec
        while True:
            await asyncio.sleep(0.5 if len(self._busy) > 2000 else 0.1)
            now = monotonic()
            overdue = [
                c for c in self._busy if now - c.due_at > spec.timeout_s or now - c.heard_at > spec.stall_s
            ]
            for connection in overdue:
                if connection.row == IDLE:
                    continue
                if connection.done_at:  # a whole answer, but the server never ends its body
                    outcome, detail = connection.judge()
                elif connection.chunks and now - connection.heard_at > spec.stall_s:
                    outcome, detail = (
                        Outcome.STALL,
                        f"silent for {spec.stall_s:g} s after {connection.chunks} chunks",
                    )
                elif now - connection.due_at > spec.timeout_s:
                    outcome, detail = (
                        Outcome.TIMEOUT,
                        f"no full answer in {spec.timeout_s:g} s ({connection.chunks} chunks)",
                    )
                else:
                    continue  # waiting for its first token, within its deadline
                connection.open = False
                self.request_ended(connection, outcome, detail, connection.done_at or now)
                connection.abandon()
            for row, task in list(self._connecting.items()):
                if now - self._start_at - self._due[row] > spec.timeout_s:
                    del self._connecting[row]
                    task.cancel()
                    self._note(row, Outcome.TIMEOUT, f"no connection in {spec.timeout_s:g} s", now)


def own_rows(schedule_size: int, worker: int, workers: int) -> range:
    """Return the rows of one of several generator processes: every n-th, so that each sends the same flow."""
    return range(worker, schedule_size, workers)
