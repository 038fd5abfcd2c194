"""Continuous batching: which requests are in the batch, what each step computes, and who waits.

Pure: the clock is passed in, nothing here waits or computes, and the engine holds its lock around every call. Long prompts
have a queue and a share of the batch of their own, and start together at window boundaries, so that short requests meet a
prefill stall at known moments instead of at any.
"""

from collections import deque
from dataclasses import dataclass

from demo.engine.options import Options
from demo.engine.request import Request, State
from demo.engine.step_plan import DecodeRow, PrefillChunk, StepPlan


class QueueFull(Exception):
    """As many requests wait as may."""


@dataclass(frozen=True, slots=True)
class Step:
    """A plan, and the requests that its rows of logits belong to, in order."""

    plan: StepPlan
    outputs: tuple[Request, ...]


class Scheduler:
    """Slots, queues and windows. `slots` is what the KV cache holds."""

    def __init__(self, options: Options, *, slots: int, epoch_s: float) -> None:
        self._options = options
        self._epoch_s = epoch_s
        self._capacity = min(slots, options.max_num_seqs)
        self._long_share = min(options.max_long_seqs, self._capacity - 1) if options.long_windows else 0
        self._cache_tokens = slots * options.max_model_len
        self._free = list(range(self._capacity - 1, -1, -1))
        self._short: deque[Request] = deque()
        self._long: deque[Request] = deque()
        self._opened_window = -1
        self.running: list[Request] = []

    @property
    def waiting(self) -> int:
        return len(self._short) + len(self._long)

    @property
    def cache_usage(self) -> float:
        """Used share of the KV cache, 0 to 1."""
        return sum(request.cached_tokens for request in self.running) / self._cache_tokens

    def is_long(self, request: Request) -> bool:
        """Say whether a prompt is long. Where the cache holds one request only, none is: there is no share to keep."""
        return self._long_share > 0 and len(request.prompt) >= self._options.long_prompt_tokens

    def submit(self, request: Request) -> None:
        """Queue a request. Raises QueueFull when the queue has its limit already and the batch has no free place for it."""
        limit = self._options.max_num_queued_reqs
        long = self.is_long(request)
        places = self._short_places() - len(self._short)
        really_waiting = max(0, -places) + len(self._long)
        if limit is not None and really_waiting >= limit and (long or places <= 0):
            raise QueueFull
        (self._long if long else self._short).append(request)

    def withdraw(self, request: Request) -> bool:
        """Take a request out. True: it was waiting and is gone. A running one leaves before the next step."""
        if request.state is State.WAITING:
            (self._long if self.is_long(request) else self._short).remove(request)
            request.state = State.ENDED
            return True
        request.abandoned = True
        return False

    def everything(self) -> list[Request]:
        """All requests that have not ended."""
        return [*self.running, *self._short, *self._long]

    def drop_abandoned(self) -> list[Request]:
        """Free the slots of running requests whose clients are gone; gives them."""
        gone = [request for request in self.running if request.abandoned]
        for request in gone:
            self.end(request)
        return gone

    def admit(self, now_s: float) -> list[Request]:
        """Move requests from the queues into the batch, first come first served in each; gives them."""
        admitted = []
        for _ in range(min(self._short_places(), len(self._short))):
            admitted.append(self._start(self._short.popleft()))
        if self._long_share:
            window = self._window(now_s)
            if window > self._opened_window:
                self._opened_window = window
                places = self._long_share - sum(map(self.is_long, self.running))
                while places > 0 and self._long and self._window(self._long[0].arrived_s) < window:
                    admitted.append(self._start(self._long.popleft()))
                    places -= 1
        return admitted

    def seconds_to_window(self, now_s: float) -> float | None:
        """How long until the next window opens, when something waits for it."""
        if not self._long:
            return None
        next_s = self._epoch_s + (self._window(now_s) + 1) * self._options.long_window_s
        return max(0.0, next_s - now_s)

    def step(self) -> Step | None:
        """Plan the next step: a token for each request that decodes, and prompt pieces up to one step's budget.

        A prompt is cut at multiples of the chunk size, whatever else runs, so that its numbers do not depend on it.
        """
        decode, prefill, decoding, finishing = [], [], [], []
        budget = self._options.prefill_chunk
        for request in self.running:
            if request.prefilled == len(request.prompt):
                decode.append(DecodeRow(request.slot, request.cached_tokens, request.generated[-1]))
                decoding.append(request)
                continue
            start = request.prefilled
            tokens = request.prompt[start : start + self._options.prefill_chunk]
            if len(tokens) > budget:
                continue
            budget -= len(tokens)
            request.prefilled += len(tokens)
            last = request.prefilled == len(request.prompt)
            prefill.append(PrefillChunk(request.slot, start, tokens, last))
            if last:
                finishing.append(request)
        if not decode and not prefill:
            return None
        return Step(StepPlan(decode=tuple(decode), prefill=tuple(prefill)), (*decoding, *finishing))

    def end(self, request: Request) -> None:
        """Take a running request out of the batch and free its slot."""
        request.state = State.ENDED
        self.running.remove(request)
        self._free.append(request.slot)

    def _start(self, request: Request) -> Request:
        request.state = State.RUNNING
        request.slot = self._free.pop()
        self.running.append(request)
        return request

    def _short_places(self) -> int:
        short = len(self.running) - sum(map(self.is_long, self.running))
        return max(0, self._capacity - self._long_share - short)

    def _window(self, moment_s: float) -> int:
        return int((moment_s - self._epoch_s) // self._options.long_window_s)
