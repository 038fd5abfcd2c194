"""The engine on rank 0. The model has a thread of its own, so that a collective that hangs never stops HTTP.

The HTTP side submits and withdraws requests under a lock, which the model thread takes between steps only. Tokens go back
through the event loop, one call per step.
"""

import asyncio
import gc
import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from demo.engine.metrics import Metrics
from demo.engine.options import Options
from demo.engine.request import (
    ApiError,
    Command,
    Request,
    Sleep,
    StartProfile,
    State,
    StepPlan,
    Stop,
    StopProfile,
    TokenEvent,
    WakeUp,
)
from demo.engine.scheduler import Scheduler
from demo.engine.startup import StartError, timed_phase
from demo.engine.tokenizer import END_OF_TEXT, encode, token_text

if TYPE_CHECKING:
    from torch import Tensor

    from demo.engine.worker import Worker

log = logging.getLogger(__name__)

WARM_UP_PROMPT = "The quick brown fox"
WARM_UP_TOKENS = 2


class Engine:
    """Life of the engine: loading, live (steps can run), ready (a token was generated), draining, failed."""

    def __init__(
        self, options: Options, *, on_ready: Callable[[], None], on_failure: Callable[[str], None]
    ) -> None:
        """Must be made on the event loop. `on_ready` and `on_failure` are called on it."""
        self.live = False
        self.ready = False
        self.draining = False
        self.asleep = False
        self._options = options
        self._metrics = Metrics(options.model_name)
        self._on_ready, self._on_failure = on_ready, on_failure
        self._loop = asyncio.get_running_loop()
        self._wake = threading.Condition()
        self._scheduler = Scheduler(options)
        self._commands: list[tuple[Command, asyncio.Future[None]]] = []
        self._stopping = False
        self._profile_stamp_ms: int | None = None
        self._worker: Worker

    # -- HTTP side -----------------------------------------------------------------------------------------------

    def start(self, *, port: int, listener: socket.socket | None) -> None:
        """Start the model thread; `port` and `listener` are for the ranks' rendezvous."""
        threading.Thread(target=self._run, args=(port, listener), name="model-steps", daemon=True).start()

    def submit(self, request: Request) -> None:
        """Queue a request. Raises ApiError when the engine is not ready or drains, or when the queue is full."""
        if self.draining:
            raise ApiError(503, "shutting_down", "the engine is shutting down: use another one")
        if not self.ready:
            raise ApiError(503, "starting", "the engine is starting: wait until /ready returns 200")
        if self.asleep:
            raise ApiError(503, "asleep", "the engine sleeps: POST /wake_up first")
        self._queue(request)
        if self._options.queue_timeout_s:
            self._loop.call_later(self._options.queue_timeout_s, self._expire, request)

    def _queue(self, request: Request) -> None:
        with self._wake:
            self._scheduler.submit(request)
            self._wake.notify()

    def _expire(self, request: Request) -> None:
        """End a request at the queue's time limit. The event loop keeps the time, as the model thread may hang."""
        with self._wake:
            if request.state is not State.WAITING:
                return
            self._scheduler.withdraw(request)
        message = f"the request waited longer than {self._options.queue_timeout_s:g} s: try again later"
        request.events.put_nowait(ApiError(503, "queue_timeout", message))

    def abandon(self, request: Request) -> None:
        """Forget a request whose client is gone, or free its slot before the next step."""
        with self._wake:
            if request.state is State.ENDED:
                return
            withdrawn = self._scheduler.withdraw(request)
            self._wake.notify()
        if withdrawn:
            self._metrics.request_ended("abort", seconds=time.monotonic() - request.arrived_s)

    def scrape(self) -> str:
        """Return the page of /metrics."""
        with self._wake:
            folder = self._options.drill_folder
            lost = folder is not None and (folder / "report-idle").exists()
            self._metrics.running.set(0 if lost else len(self._scheduler.running))
            self._metrics.waiting.set(0 if lost else self._scheduler.waiting)
            self._metrics.cache_usage.set(self._scheduler.cache_usage)
        return self._metrics.page()

    def unfinished(self) -> list[Request]:
        """Return the requests that run or wait."""
        with self._wake:
            return self._scheduler.unfinished()

    def abort_all(self, status: int, code: str, message: str) -> int:
        """End all unfinished requests with an error. Return their number. The batch itself may hang and is left alone."""
        requests = self.unfinished()
        for request in requests:
            request.events.put_nowait(ApiError(status, code, message))
        return len(requests)

    def stop(self) -> None:
        """Let the model thread end after its step, and with it the other ranks."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    @property
    def profiling(self) -> bool:
        """True from the start of a profile until its files were fetched."""
        return self._profile_stamp_ms is not None

    async def start_profile(self, max_iterations: int) -> None:
        """Begin a profile on all ranks, before the next step."""
        self._profile_stamp_ms = int(time.time() * 1000)
        await self._command(StartProfile(max_iterations, self._profile_stamp_ms))

    async def stop_profile(self) -> tuple[list[Path], bool]:
        """End the profile if it has not ended by itself. Return the trace files, and whether all ranks wrote theirs."""
        from demo.engine.step_profiler import trace_path

        stamp_ms, folder = self._profile_stamp_ms, self._options.profiler_dir
        assert stamp_ms is not None  # noqa: S101  (the caller checks `profiling`)
        assert folder is not None  # noqa: S101  (the route does not exist without one)
        await self._command(StopProfile())
        self._profile_stamp_ms = None
        paths = [
            trace_path(folder, stamp_ms, rank).absolute()
            for rank in range(self._options.tensor_parallel_size)
        ]
        return [path for path in paths if path.exists()], self._worker.all_traces_written

    async def sleep(self) -> None:
        """Free the device's memory on all ranks, before the next step. Raises ApiError while requests run."""
        if self.unfinished():
            raise ApiError(409, "conflict", "requests run: let them end before the engine sleeps")
        self.asleep = True
        await self._command(Sleep())

    async def wake_up(self) -> None:
        """Restore the device's memory on all ranks. An engine that finds no room for it fails and ends."""
        await self._command(WakeUp())
        self.asleep = False

    async def _command(self, command: Command) -> None:
        done: asyncio.Future[None] = self._loop.create_future()
        with self._wake:
            self._commands.append((command, done))
            self._wake.notify()
        await done

    # -- model thread --------------------------------------------------------------------------------------------

    def _run(self, port: int, listener: socket.socket | None) -> None:
        try:
            self._load(port, listener)
            self._warm_up()
            self._serve()
        except StartError as error:
            self._loop.call_soon_threadsafe(self._on_failure, str(error))
        except Exception as error:
            log.exception("the model thread failed")
            self._loop.call_soon_threadsafe(self._on_failure, f"{type(error).__name__}: {error}")

    def _load(self, port: int, listener: socket.socket | None) -> None:
        with timed_phase("import torch"):
            from demo.engine.worker import Worker
        self._worker = Worker(self._options, rank=0)
        self._worker.load()
        self._worker.connect(port=port, listener=listener)
        self.live = True

    def _warm_up(self) -> None:
        with timed_phase("warm-up"):
            limit = min(WARM_UP_TOKENS, self._options.max_model_len - 1)
            prompt = tuple(encode(WARM_UP_PROMPT)[: self._options.max_model_len - limit])
            request = Request(prompt, limit, ignore_eos=True, internal=True)
            self._queue(request)
            while request.state is not State.ENDED:
                self._step()
        gc.freeze()  # later collections need not look at what was imported
        gc.enable()
        self.ready = True
        self._loop.call_soon_threadsafe(self._on_ready)

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not self._commands and not self._stopping and not self._scheduler.unfinished():
                    self._wake.wait()
                commands, self._commands = self._commands, []
                stopping = self._stopping
            for command, done in commands:
                if not isinstance(command, StopProfile) or self._worker.profiler.active:
                    self._execute(command)
                self._loop.call_soon_threadsafe(_resolve, done)
            if stopping:
                break
            self._step()
        self._worker.communicator.send(Stop())
        log.info("the model thread has ended; the other ranks end too")

    def _execute(self, command: Command) -> "Tensor | None":
        self._worker.communicator.send(command)
        return self._worker.execute(command)

    def _step(self) -> None:
        """Run one step on all ranks and deliver its tokens. Takes as long as the slowest rank."""
        with self._wake:
            step = self._plan_step()
        if step is None:
            return
        plan, outputs = step
        logits = self._execute(plan)
        if logits is not None:
            events = self._events(outputs, self._score_prompts(plan, logits))
            with self._wake:
                for request, event in zip(outputs, events, strict=True):
                    if event.finish_reason is not None:
                        self._scheduler.end(request)
            self._loop.call_soon_threadsafe(_deliver, outputs, events)
        if self._options.slow_ms:
            time.sleep(self._options.slow_ms / 1000)

    def _plan_step(self) -> tuple[StepPlan, list[Request]] | None:
        """Free the slots of clients that have left, admit waiting requests, and plan."""
        now_s = time.monotonic()
        for request in self._scheduler.drop_abandoned():
            self._metrics.request_ended("abort", seconds=now_s - request.arrived_s)
        for request in self._scheduler.admit():
            if not request.internal:
                self._metrics.queue_s.observe(now_s - request.arrived_s)
        return self._scheduler.step()

    def _score_prompts(self, plan: StepPlan, logits: "Tensor") -> "Tensor":
        """Record the log-probabilities of prompt tokens in their requests. Return the rows that generate a token."""
        if not any(chunk.all_logits for chunk in plan.prefill):
            return logits
        from demo.engine.model import logprobs

        by_slot = {request.slot: request for request in self._scheduler.running}
        generating = list(range(len(plan.decode)))
        row = len(plan.decode)
        for chunk in plan.prefill:
            count = len(chunk.tokens) if chunk.all_logits else int(chunk.last)
            if chunk.all_logits:
                request = by_slot[chunk.slot]
                if not chunk.start:
                    first = request.prompt[0]  # nothing precedes it, so it has no probability
                    request.echoed.append(TokenEvent(first, token_text(first)))
                following = request.prompt[chunk.start + 1 : chunk.start + 1 + count]
                for offset, token in enumerate(following):
                    alternatives = logprobs(logits[row + offset], token, request.logprobs or 0)
                    request.echoed.append(TokenEvent(token, token_text(token), None, *alternatives))
            row += count
            if chunk.last:
                generating.append(row - 1)
        return logits[generating]

    def _events(self, requests: list[Request], logits: "Tensor") -> list[TokenEvent]:
        """Pick the next token of each request from its row of logits. Return what the clients get."""
        from demo.engine.model import logprobs, pick_tokens

        tokens = pick_tokens(logits, [not request.ignore_eos for request in requests])
        now_s = time.monotonic()
        events = []
        for request, token, row in zip(requests, tokens, logits, strict=True):
            request.generated.append(token)
            reason = "stop" if token == END_OF_TEXT else None
            if reason is None and len(request.generated) >= request.max_tokens:
                reason = "length"
            if not request.internal:
                self._count(request, reason, now_s)
            request.last_token_s = now_s
            alternatives = () if request.logprobs is None else logprobs(row, token, request.logprobs)
            events.append(TokenEvent(token, token_text(token), reason, *alternatives))
        return events

    def _count(self, request: Request, finish_reason: str | None, now_s: float) -> None:
        """Count a request's newest token in the metrics."""
        self._metrics.generation_tokens.inc()
        if len(request.generated) == 1:
            self._metrics.prompt_tokens.inc(len(request.prompt))
            self._metrics.ttft_s.observe(now_s - request.arrived_s)
        else:
            self._metrics.itl_s.observe(now_s - request.last_token_s)
        if finish_reason is not None:
            self._metrics.request_ended(finish_reason, seconds=now_s - request.arrived_s)
            self._metrics.prompt_lengths.observe(len(request.prompt))
            self._metrics.answer_lengths.observe(len(request.generated))


def _deliver(requests: list[Request], events: list[TokenEvent]) -> None:
    for request, event in zip(requests, events, strict=True):
        request.events.put_nowait(event)


def _resolve(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)
