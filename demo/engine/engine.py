"""The engine on rank 0: a thread of its own for the model, so that a collective that hangs never stops HTTP.

The HTTP side submits and withdraws requests under a lock; the model thread takes the lock between steps only. Tokens go
back through the event loop, one call a step.
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
from demo.engine.options import Options, StartError
from demo.engine.request import Parameters, Rejection, Request, State, TokenEvent
from demo.engine.scheduler import QueueFull, Scheduler
from demo.engine.step_plan import Operation, StepPlan
from demo.engine.stepper import Stepper
from demo.engine.tokenizer import encode

if TYPE_CHECKING:
    from demo.engine.worker import Worker

log = logging.getLogger(__name__)

WARM_UP_PROMPT = "The quick brown fox"
WARM_UP_TOKENS = 2


class Refused(Exception):
    """A request is not taken, with what to answer."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.message)
        self.rejection = rejection


class Engine:
    """Life of the engine: loading, live (steps can run), ready (a token was generated), draining, failed."""

    def __init__(
        self,
        options: Options,
        *,
        phase: Callable[[str, float], None],
        on_ready: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        """Must be made on the event loop. `on_ready` and `on_failure` are called on it."""
        self.options = options
        self.metrics = Metrics(options.model_name)
        self.live = False
        self.ready = False
        self.draining = False
        self._phase, self._on_ready, self._on_failure = phase, on_ready, on_failure
        self._loop = asyncio.get_running_loop()
        self._wake = threading.Condition()
        self._scheduler: Scheduler | None = None
        self._commands: list[tuple[StepPlan, asyncio.Future[None]]] = []
        self._stopping = False
        self._worker: Worker | None = None
        self._profiling_stamp: int | None = None

    # -- HTTP side -----------------------------------------------------------------------------------------------

    def start(self, *, port: int, listener: socket.socket | None) -> None:
        """Start the model thread; `port` and `listener` are for the ranks' rendezvous."""
        threading.Thread(target=self._run, args=(port, listener), name="model-steps", daemon=True).start()

    def submit(self, prompt: tuple[int, ...], parameters: Parameters) -> Request:
        """Queue a request. Raises Refused: not ready, draining, or the queue is full."""
        if self.draining:
            raise Refused(Rejection(503, "shutting_down", "the engine is shutting down: ask another one"))
        if not self.ready:
            raise Refused(Rejection(503, "starting", "the engine is starting: wait until /ready answers 200"))
        return self._submit(prompt, parameters, internal=False)

    def _submit(self, prompt: tuple[int, ...], parameters: Parameters, *, internal: bool) -> Request:
        scheduler = self._scheduler
        assert scheduler is not None  # noqa: S101  (set before `live`)
        request = Request(prompt, parameters, time.monotonic(), internal)
        with self._wake:
            try:
                scheduler.submit(request)
            except QueueFull as error:
                limit = self.options.max_num_queued_reqs
                message = f"the queue is full ({limit} waiting): try again later"
                raise Refused(Rejection(503, "queue_full", message)) from error
            self._wake.notify()
        if self.options.queue_timeout_s and not internal:
            self._loop.call_later(self.options.queue_timeout_s, self._expire, request)
        return request

    def _expire(self, request: Request) -> None:
        """The queue's time limit: kept by the event loop, as the model thread may hang in a collective."""
        with self._wake:
            scheduler = self._scheduler
            if request.state is not State.WAITING or scheduler is None:
                return
            scheduler.withdraw(request)
        limit = self.options.queue_timeout_s
        message = f"the request waited longer than {limit:g} s for a place in the batch: try again later"
        request.events.put_nowait(Rejection(503, "queue_timeout", message))

    def abandon(self, request: Request) -> None:
        """The client is gone: forget the request, or free its slot before the next step."""
        with self._wake:
            if request.state is State.ENDED or self._scheduler is None:
                return
            withdrawn = self._scheduler.withdraw(request)
            self._wake.notify()
        if withdrawn:
            self.metrics.finished("abort", seconds=time.monotonic() - request.arrived_s)

    def scrape(self) -> str:
        """The text of /metrics."""
        with self._wake:
            if self._scheduler is None:
                return self.metrics.render(running=0, waiting=0, cache_usage=0.0)
            running, waiting = len(self._scheduler.running), self._scheduler.waiting
            usage = self._scheduler.cache_usage
        return self.metrics.render(running=running, waiting=waiting, cache_usage=usage)

    def unfinished(self) -> int:
        """How many requests run or wait."""
        with self._wake:
            return 0 if self._scheduler is None else len(self._scheduler.everything())

    def cut(self, rejection: Rejection) -> int:
        """Tell all requests that they end here; gives how many there were. The batch itself may hang and stays as it is."""
        with self._wake:
            requests = [] if self._scheduler is None else self._scheduler.everything()
        for request in requests:
            request.events.put_nowait(rejection)
        return len(requests)

    def stop(self) -> None:
        """Let the model thread end, and with it the other ranks, once nothing runs."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    @property
    def profiling(self) -> bool:
        """Whether a profile was started and its files were not yet asked for."""
        return self._profiling_stamp is not None

    async def start_profile(self, max_iterations: int) -> None:
        """Begin a profile on all ranks, before the next step."""
        stamp = int(time.time() * 1000)
        self._profiling_stamp = stamp
        await self._command(StepPlan(Operation.START_PROFILE, value=max_iterations, stamp=stamp))

    async def stop_profile(self) -> tuple[list[Path], bool]:
        """End the profile, if it has not ended by itself; gives the trace files, and whether all were written."""
        from demo.engine.step_profiler import trace_path

        await self._command(StepPlan(Operation.STOP_PROFILE))
        stamp, self._profiling_stamp = self._profiling_stamp, None
        folder = self.options.profiler_dir
        assert self._worker is not None  # noqa: S101  (a command was done)
        assert folder is not None  # noqa: S101  (the route answers 404 without one)
        written = dict(self._worker.finished_profiles).get(stamp or 0, False)
        ranks = range(self.options.tensor_parallel_size)
        paths = [trace_path(folder, stamp or 0, rank) for rank in ranks]
        return [path.absolute() for path in paths if path.exists()], written

    async def _command(self, plan: StepPlan) -> None:
        done: asyncio.Future[None] = self._loop.create_future()
        with self._wake:
            self._commands.append((plan, done))
            self._wake.notify()
        await done

    # -- model thread --------------------------------------------------------------------------------------------

    def _run(self, port: int, listener: socket.socket | None) -> None:
        try:
            self._load(port, listener)
            self._serve()
        except StartError as error:
            self._loop.call_soon_threadsafe(self._on_failure, str(error))
        except Exception as error:
            log.exception("the model thread ended")
            self._loop.call_soon_threadsafe(self._on_failure, f"{type(error).__name__}: {error}")

    def _load(self, port: int, listener: socket.socket | None) -> None:
        began = time.monotonic()
        from demo.engine.worker import Worker

        self._phase("import torch", time.monotonic() - began)
        worker = Worker(self.options, rank=0, phase=self._phase)
        worker.load()
        worker.connect(port=port, listener=listener)
        scheduler = Scheduler(self.options, slots=worker.model.slots, epoch_s=time.monotonic())
        self._stepper = Stepper(self.options, worker, scheduler, self.metrics)
        self._worker = worker
        with self._wake:
            self._scheduler = scheduler
            self.live = True
        began = time.monotonic()
        limit = min(WARM_UP_TOKENS, self.options.max_model_len - 1)
        prompt = tuple(encode(WARM_UP_PROMPT)[: self.options.max_model_len - limit])
        request = self._submit(prompt, Parameters(max_tokens=limit, ignore_eos=True), internal=True)
        while request.state is not State.ENDED:
            self._one_step()
        self._phase("warm-up", time.monotonic() - began)
        gc.freeze()  # what is imported stays: later collections need not look at it
        gc.enable()
        self.ready = True
        self._loop.call_soon_threadsafe(self._on_ready)

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not self._commands and not self._stopping and not self._stepper.has_work():
                    self._wake.wait(self._stepper.seconds_to_window())
                commands, self._commands = self._commands, []
                stopping = self._stopping
            for plan, done in commands:
                self._do(plan)
                self._loop.call_soon_threadsafe(_resolve, done)
            if stopping:
                break
            self._one_step()
        assert self._worker is not None  # noqa: S101
        self._worker.communicator.send(StepPlan(Operation.STOP))
        log.info("the model thread has ended; the other ranks were told to")

    def _do(self, plan: StepPlan) -> None:
        assert self._worker is not None  # noqa: S101
        if plan.operation is Operation.STOP_PROFILE and not self._worker.profiler.active:
            return  # it ended by itself
        self._worker.communicator.send(plan)
        self._worker.execute(plan)

    def _one_step(self) -> None:
        with self._wake:
            step = self._stepper.next_step()
        if step is None:
            return
        told = self._stepper.compute(step)
        with self._wake:
            self._stepper.settle(told)
        self._loop.call_soon_threadsafe(_deliver, told)
        if self.options.slow_ms:
            time.sleep(self.options.slow_ms / 1000)


def _deliver(told: list[tuple[Request, TokenEvent]]) -> None:
    for request, event in told:
        request.events.put_nowait(event)


def _resolve(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)
