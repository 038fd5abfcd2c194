"""One request in the engine: what was asked, where it stands, and what it is told as its tokens come."""

import asyncio
from dataclasses import dataclass, field
from enum import Enum, auto

from demo.engine.tokenizer import TextStream


@dataclass(frozen=True, slots=True)
class Parameters:
    """How to generate. `logprobs` is how many alternatives to report for each token; None reports nothing."""

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token, the text that it made certain, and the reason when it was the last."""

    token: int
    text: str
    finish_reason: str | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Rejection:
    """The request ends without (more) tokens. `code` is machine-readable; `status` is HTTP's."""

    status: int
    code: str
    message: str


class State(Enum):
    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


@dataclass(eq=False, slots=True)
class Request:
    """A request. The scheduler owns its state; `events` is read by its HTTP handler. Times are monotonic seconds."""

    prompt: tuple[int, ...]
    parameters: Parameters
    arrived_s: float
    internal: bool = False
    events: "asyncio.Queue[TokenEvent | Rejection]" = field(default_factory=asyncio.Queue)
    state: State = State.WAITING
    abandoned: bool = False
    slot: int = -1
    prefilled: int = 0
    generated: list[int] = field(default_factory=list)
    last_token_s: float = 0.0
    text: TextStream = field(init=False)

    def __post_init__(self) -> None:
        self.text = TextStream(self.parameters.stop)

    @property
    def cached_tokens(self) -> int:
        """Tokens of it that lie in the KV cache."""
        return self.prefilled + max(0, len(self.generated) - 1)
