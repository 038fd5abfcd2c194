"""Records and readings of golden prompts for tests."""

from datetime import UTC, datetime
from typing import Any

from gpu_actions.serving.golden.reading import GoldenAnswer, GoldenReading
from gpu_actions.serving.golden.record import GoldenPrompt, GoldenRecord
from gpu_actions.serving.interfaces import ScoredTokens

TEXTS = (" one", " two", " three")


def golden_prompt(**changes: Any) -> GoldenPrompt:
    values = {"prompt": "Count:", "texts": TEXTS, "logprobs": (-0.1, -0.2, -0.3), **changes}
    return GoldenPrompt.model_validate({"forced_logprobs": values["logprobs"], **values})


def golden_record(**changes: Any) -> GoldenRecord:
    values = {
        "host": "test",
        "tier": "tp",
        "engine_kind": "vllm",
        "engine_version": "0.32.0",
        "model": "m",
        "recorded_at": datetime(2026, 11, 1, tzinfo=UTC),
        "repeats": 3,
        "concurrency": 8,
        "exact": True,
        "idle_spread_nats": 0.0,
        "load_spread_nats": 0.06,
        "prompts": (golden_prompt(), golden_prompt(prompt="Again:")),
        **changes,
    }
    return GoldenRecord.model_validate(values)


def golden_answer(prompt: int = 0, *, moved: float = 0.0, at: int = 0, **changes: Any) -> GoldenAnswer:
    """Return the recorded answer, with the log-probability of the token `at` moved by so many nats."""
    forced = [-0.1, -0.2, -0.3]
    forced[at] += moved
    generated = ScoredTokens(texts=TEXTS, logprobs=(-0.1, -0.2, -0.3))
    return GoldenAnswer.model_validate(
        {"prompt": prompt, "forced_logprobs": tuple(forced), "generated": generated, **changes}
    )


def golden_reading(*answers: GoldenAnswer, **changes: Any) -> GoldenReading:
    """Return a reading of an idle tier; by default both prompts are answered as recorded."""
    values = {
        "engine_kind": "vllm",
        "engine_version": "0.32.0",
        "model": "m",
        "idle": True,
        "answers": answers or (golden_answer(0), golden_answer(1)),
        **changes,
    }
    return GoldenReading.model_validate(values)


def said(*texts: str) -> ScoredTokens:
    return ScoredTokens(texts=texts, logprobs=(-0.1,) * len(texts))
