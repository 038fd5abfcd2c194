"""A request in the engine, and what one step computes for the requests in the batch."""

import asyncio
import time
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token, and on the last one the finish reason."""

    token: int
    text: str
    finish_reason: str | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class ApiError(Exception):
    """Raised when a request is refused, and put into its events when it ends early. Becomes OpenAI's error object."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class State(Enum):
    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


@dataclass(eq=False, slots=True)
class Request:
    """A request. The scheduler owns its state; its HTTP handler reads `events`. Times are monotonic seconds.

    `logprobs` is the number of alternatives to report for each token; None reports nothing. With `echo` the prompt's tokens
    are reported too, in `echoed`.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    ignore_eos: bool = False
    logprobs: int | None = None
    echo: bool = False
    internal: bool = False
    arrived_s: float = field(default_factory=time.monotonic)
    events: "asyncio.Queue[TokenEvent | ApiError]" = field(default_factory=asyncio.Queue)
    state: State = State.WAITING
    abandoned: bool = False
    slot: int = -1
    prefilled: int = 0
    generated: list[int] = field(default_factory=list)
    echoed: list[TokenEvent] = field(default_factory=list)
    last_token_s: float = 0.0

    @property
    def cached_tokens(self) -> int:
        """Number of its tokens in the KV cache."""
        return self.prefilled + max(0, len(self.generated) - 1)


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One running request: its last token goes to `position` of its cache slot."""

    slot: int
    position: int
    token: int


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """A piece of a prompt, which goes to `start` of its cache slot. The last piece yields logits for its last token; with
    `all_logits` every piece yields them for each of its tokens."""

    slot: int
    start: int
    tokens: tuple[int, ...]
    last: bool
    all_logits: bool = False


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step computes. Rank 0 decides it, and all ranks do the same."""

    decode: tuple[DecodeRow, ...] = ()
    prefill: tuple[PrefillChunk, ...] = ()


@dataclass(frozen=True, slots=True)
class StartProfile:
    """Command to all ranks: profile so many steps. `stamp_ms` (Unix time) goes into the file names."""

    max_iterations: int
    stamp_ms: int


@dataclass(frozen=True, slots=True)
class StopProfile:
    """Command to all ranks: write the traces."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Command to all ranks: move the weights to host memory and free the cache."""


@dataclass(frozen=True, slots=True)
class WakeUp:
    """Command to all ranks: move the weights back to the device and allocate the cache."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Command to all ranks: end."""


Command = StepPlan | StartProfile | StopProfile | Sleep | WakeUp | Stop
