"""One step on rank 0: take what the scheduler planned, run it on all ranks, pick tokens, and say what each request gets."""

import time
from typing import TYPE_CHECKING

from demo.engine.metrics import Metrics
from demo.engine.options import Options
from demo.engine.request import Request, TokenEvent
from demo.engine.scheduler import Scheduler, Step
from demo.engine.tokenizer import END_OF_TEXT

if TYPE_CHECKING:
    from torch import Tensor

    from demo.engine.sampling import SamplingRow
    from demo.engine.worker import Worker

Told = list[tuple[Request, TokenEvent]]


class Stepper:
    """Made once the worker is loaded. `next_step` and `settle` are called under the engine's lock, `compute` is not."""

    def __init__(self, options: Options, worker: "Worker", scheduler: Scheduler, metrics: Metrics) -> None:
        from demo.engine.sampling import Sampler

        printable = options.weights is None and not options.all_bytes
        self._sampler = Sampler(printable=printable, device=worker.device)
        self._rows: dict[Request, SamplingRow] = {}
        self._worker = worker
        self._scheduler = scheduler
        self._metrics = metrics

    def has_work(self) -> bool:
        """Whether a step would do something now."""
        now_s = time.monotonic()
        self._admit(now_s)
        return bool(self._scheduler.running)

    def seconds_to_window(self) -> float | None:
        """How long to sleep at most when there is nothing to do."""
        return self._scheduler.seconds_to_window(time.monotonic())

    def next_step(self) -> Step | None:
        """Free what clients left, let requests in, and plan."""
        now_s = time.monotonic()
        for request in self._scheduler.drop_abandoned():
            self._rows.pop(request, None)
            self._metrics.finished("abort", seconds=now_s - request.arrived_s)
        self._admit(now_s)
        return self._scheduler.step()

    def compute(self, step: Step) -> Told:
        """Run the step on all ranks; gives each request's new token. Waits as long as the slowest rank."""
        self._worker.communicator.send(step.plan)
        logits = self._worker.execute(step.plan)
        if logits is None:
            return []
        rows = [self._row(request) for request in step.outputs]
        tokens = self._sampler.pick(logits, rows)
        now_s = time.monotonic()
        return [
            (request, self._event(request, token, logits[number], now_s))
            for number, (request, token) in enumerate(zip(step.outputs, tokens, strict=True))
        ]

    def settle(self, told: Told) -> None:
        """Take finished requests out of the batch."""
        now_s = time.monotonic()
        for request, event in told:
            if event.finish_reason is not None:
                self._scheduler.end(request)
                self._rows.pop(request, None)
                if not request.internal:
                    self._metrics.finished(event.finish_reason, seconds=now_s - request.arrived_s)

    def _admit(self, now_s: float) -> None:
        for request in self._scheduler.admit(now_s):
            if not request.internal:
                self._metrics.admitted(waited_s=now_s - request.arrived_s)

    def _row(self, request: Request) -> "SamplingRow":
        from demo.engine.sampling import SamplingRow

        row = self._rows.get(request)
        if row is None:
            row = self._rows[request] = SamplingRow(request.parameters)
        wanted = request.parameters
        row.end_is_banned = wanted.ignore_eos or len(request.generated) < wanted.min_tokens
        return row

    def _event(self, request: Request, token: int, logits: "Tensor", now_s: float) -> TokenEvent:
        wanted = request.parameters
        request.generated.append(token)
        count = len(request.generated)
        if not request.internal:
            if count == 1:
                self._metrics.first_token(
                    prompt_tokens=len(request.prompt), seconds=now_s - request.arrived_s
                )
            else:
                self._metrics.next_token(seconds=now_s - request.last_token_s)
        request.last_token_s = now_s
        text, stopped = request.text.push(token, searching=count > wanted.min_tokens)
        reason = None
        if stopped or token == END_OF_TEXT:
            reason = "stop"
        elif count >= wanted.max_tokens:
            reason = "length"
        if reason is not None and not stopped:
            text += request.text.finish()
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if wanted.logprobs is not None:
            logprob, top = self._sampler.logprobs(logits, token, wanted.logprobs)
        return TokenEvent(token, text, reason, logprob, top)
