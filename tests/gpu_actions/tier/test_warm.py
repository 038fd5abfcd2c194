"""The warm-up's figures, and its limit of concurrent requests."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gpu_actions.action import StepFailed
from gpu_actions.host import Tier
from gpu_actions.serving.interfaces import Completion, EngineError
from gpu_actions.tier import warm


class CountingEngine:
    """An engine that takes 20 ms and counts concurrent completions. It refuses number `fails_at`."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.running = self.most = self.asked = 0
        self.fails_at = fails_at

    async def complete(self, prompt: str, *, max_tokens: int, timeout_s: float) -> Completion:
        self.asked += 1
        if self.asked == self.fails_at:
            raise EngineError("out of memory")
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.02)
        self.running -= 1
        return Completion(text="", completion_tokens=max_tokens, finish_reason="length", ttft_ms=5, e2e_ms=20)


def tier_of(engine: CountingEngine) -> Tier:
    config: Any = SimpleNamespace(engine=SimpleNamespace(request_timeout_s=5))
    return cast("Tier", SimpleNamespace(name="fallback", engine=engine, config=config))


async def test_warm_up_requests_are_limited_to_a_batch_and_their_rate_counts_the_whole_time() -> None:
    engine = CountingEngine()
    completions, seconds = await warm._prime(tier_of(engine), 40)
    assert (len(completions), engine.most) == (40, warm.AT_ONCE)
    assert seconds >= 0.06
    assert warm.summarise(completions, seconds=seconds)["tokens_per_s"] == pytest.approx(
        40 * warm.WARM_TOKENS / seconds
    )


async def test_one_refused_completion_fails_the_warm_up_with_the_engines_message_and_cancels_the_others() -> (
    None
):
    engine = CountingEngine(fails_at=3)
    with pytest.raises(StepFailed, match="failed in warm-up: out of memory"):
        await warm._prime(tier_of(engine), 40)
    assert engine.asked < 40


def test_there_are_no_figures_without_a_completion() -> None:
    with pytest.raises(ValueError, match="no completion"):
        warm.summarise([], seconds=1)
