"""What clients ask and when: Poisson arrivals and mixed requests, drawn from a seed before anything is sent.

Arrivals do not wait for answers (open loop), as independent users do not: a saturated tier is offered more, not less.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import Field

from gpu_actions.models import Frozen

WORDS = ("rack", "hums", "night", "engineer", "graph", "cluster", "rank", "token", "router", "answers")


class Profile(Frozen):
    """A kind of load. Shares are of all requests, and independent of each other unless said otherwise."""

    requests_per_s: float = Field(gt=0)
    seed: int = 1
    answer_tokens: tuple[int, int] = Field(default=(10, 40), description="uniform, both ends included")
    prompt_words: tuple[int, int] = Field(default=(4, 80), description="uniform, both ends included")
    long_prompts: float = Field(
        default=0, ge=0, le=1, description="requests with a prompt of `long_prompt_bytes`"
    )
    long_prompt_bytes: int = Field(default=10_000, ge=1)
    streamed: float = Field(default=0.7, ge=0, le=1)
    kept: float = Field(
        default=0.6, ge=0, le=1, description="requests on kept connections; the others open their own"
    )
    slow_readers: float = Field(default=0.03, ge=0, le=1, description="of the streamed ones")
    slow_read_s: float = Field(default=0.05, ge=0, description="the pause of a slow reader after each token")
    hang_ups: float = Field(
        default=0.03, ge=0, le=1, description="of the streamed ones; they leave after half of the answer"
    )
    honours_retry_after: bool = Field(
        default=False, description="ask again after Retry-After, up to `attempts` times"
    )
    attempts: int = Field(default=3, ge=1)
    patience_s: float = Field(
        default=60, gt=0, description="a client gives up when its answer is not complete by then"
    )


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the schedule. `hangs_up_after` is a number of tokens, or None for a client that stays."""

    number: int
    due_s: float
    prompt: str
    tokens: int
    streamed: bool
    kept: bool
    slow: bool
    hangs_up_after: int | None


def schedule(profile: Profile) -> Iterator[Request]:
    """Yield requests without end, with `due_s` in seconds from the start. Equal profiles yield equal requests."""
    draw = random.Random(profile.seed)
    due_s = 0.0
    number = 0
    while True:
        due_s += draw.expovariate(profile.requests_per_s)
        # Every request draws equally often, so a changed share does not change what comes after it.
        tokens, words = draw.randint(*profile.answer_tokens), draw.randint(*profile.prompt_words)
        long, streamed, kept, slow, leaves = (draw.random() for _ in range(5))
        prompt = f"{number}: " + " ".join(WORDS[(number * 7 + n) % len(WORDS)] for n in range(words))
        if long < profile.long_prompts:
            prompt = (prompt * (profile.long_prompt_bytes // len(prompt) + 1))[: profile.long_prompt_bytes]
        is_streamed = streamed < profile.streamed
        yield Request(
            number=number,
            due_s=due_s,
            prompt=prompt,
            tokens=tokens,
            streamed=is_streamed,
            kept=kept < profile.kept,
            slow=is_streamed and slow < profile.slow_readers,
            hangs_up_after=max(1, tokens // 2) if is_streamed and leaves < profile.hang_ups else None,
        )
        number += 1
