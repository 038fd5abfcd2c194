"""Continuous batching: which requests are in the batch, what each step computes, and who waits.

Nothing here waits or computes: the engine passes the requests in and holds its lock around every call.
"""

from collections import deque

from demo.engine.options import Options
from demo.engine.request import ApiError, DecodeRow, PrefillChunk, Request, State, StepPlan


class Scheduler:
    """The slots of the KV cache and the queue, first come first served."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._free = list(range(options.max_num_seqs - 1, -1, -1))
        self._waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def cache_usage(self) -> float:
        """Used share of the KV cache, 0 to 1."""
        used = sum(request.cached_tokens for request in self.running)
        return used / (self._options.max_num_seqs * self._options.max_model_len)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises ApiError when the batch has no free slot for it and the queue is at its limit."""
        limit = self._options.max_num_queued_reqs
        if limit is not None and len(self._waiting) - len(self._free) >= limit:
            raise ApiError(503, "queue_full", f"the queue is full ({limit} waiting): try again later")
        self._waiting.append(request)

    def withdraw(self, request: Request) -> bool:
        """Take a request out. Return True if it was waiting and is gone; a running one leaves before the next step."""
        if request.state is State.WAITING:
            self._waiting.remove(request)
            request.state = State.ENDED
            return True
        request.abandoned = True
        return False

    def unfinished(self) -> list[Request]:
        """Return all requests that have not ended."""
        return [*self.running, *self._waiting]

    def drop_abandoned(self) -> list[Request]:
        """Free the slots of running requests whose clients are gone, and return those requests."""
        gone = [request for request in self.running if request.abandoned]
        for request in gone:
            self.end(request)
        return gone

    def admit(self) -> list[Request]:
        """Move requests from the queue into free slots, and return them."""
        admitted = []
        while self._free and self._waiting:
            request = self._waiting.popleft()
            request.state, request.slot = State.RUNNING, self._free.pop()
            self.running.append(request)
            admitted.append(request)
        return admitted

    def step(self) -> tuple[StepPlan, list[Request]] | None:
        """Plan the next step: a token for each decoding request, and prompt pieces up to one step's budget.

        Return the plan with the requests that its rows of logits belong to, in order, or None when nothing runs. A prompt
        is cut at multiples of the chunk size, whatever else runs, so that its numbers do not depend on the batch.
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
            scores_prompt = request.echo and request.logprobs is not None
            prefill.append(PrefillChunk(request.slot, start, tokens, last, scores_prompt))
            if last:
                finishing.append(request)
        if not decode and not prefill:
            return None
        return StepPlan(decode=tuple(decode), prefill=tuple(prefill)), [*decoding, *finishing]

    def end(self, request: Request) -> None:
        """Take a running request out of the batch and free its slot."""
        request.state = State.ENDED
        self.running.remove(request)
        self._free.append(request.slot)
