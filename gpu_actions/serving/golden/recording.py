"""Record golden prompts of an engine that is known to be good, with the spread of its own answers."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from gpu_actions.serving.golden.reading import is_idle, metrics_of, was_alone
from gpu_actions.serving.golden.record import GoldenPrompt, GoldenRecord
from gpu_actions.serving.interfaces import Engine, EngineError

PROMPTS = (
    "The capital of France is",
    "Count from one to twenty: one, two, three, four, five,",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "An incident began when one of eight GPUs lost its links to the others. The engine still accepted requests, but no token "
    "was generated, because every rank waited for the one that had stopped. The engineer on call moved the traffic to",
)
TOKENS = 16
LOAD_TOKENS = 64

SANE_SPREAD_NATS = 1.0
"""An engine whose log-probabilities move further by themselves is broken, or is not one engine."""


class GoldenRefused(Exception):
    """Raised if an engine's answers cannot be recorded. The message says why and what to do."""


async def record_golden(
    engine: Engine,
    *,
    host: str,
    tier: str,
    repeats: int = 3,
    concurrency: int = 8,
    timeout_s: float = 30.0,
    prompts: Sequence[str] = PROMPTS,
    tokens: int = TOKENS,
    report: Callable[[str], None] = lambda line: None,
) -> GoldenRecord:
    """Answer each prompt `repeats` times at batch 1, then score the answers beside `concurrency` completions.

    Raises GoldenRefused if the engine fails, reports no log-probabilities, or does not agree with itself.
    """
    before = await metrics_of(engine)
    idle = is_idle(before)
    if not idle:
        report("the tier is not idle, so only log-probabilities are recorded, no exact tokens")
    try:
        found = [await _answer(engine, prompt, tokens, timeout_s) for prompt in prompts]
        report(f"{len(found)} prompts answered")
        same, idle_spread = True, 0.0
        for _ in range(repeats - 1):
            for golden in found:
                again = await engine.complete_scored(golden.prompt, max_tokens=tokens, timeout_s=timeout_s)
                same = same and again.texts == golden.texts
                idle_spread = max(idle_spread, await _moved(engine, golden, timeout_s))
        requests = 2 * repeats * len(found)
        alone = idle and await was_alone(engine, before, requests=requests)
        report(f"repeated {repeats} times at batch 1: spread {idle_spread:.3f} nats")
        load_spread = await _spread_under_load(engine, found, concurrency, timeout_s)
        report(f"beside {concurrency} completions: spread {load_spread:.3f} nats")
    except EngineError as error:
        raise GoldenRefused(f"the engine's answers cannot be recorded: {error}") from error
    if (spread := max(idle_spread, load_spread)) > SANE_SPREAD_NATS:
        raise GoldenRefused(
            f"the engine does not agree with itself: the same tokens' log-probabilities move by {spread:.2f} nats; "
            "check the host with a deep triage before recording"
        )
    return GoldenRecord(
        host=host,
        tier=tier,
        engine_kind=engine.kind,
        engine_version=await engine.version(),
        model=engine.model,
        recorded_at=datetime.now(UTC),
        repeats=repeats,
        concurrency=concurrency,
        exact=alone and same,
        idle_spread_nats=idle_spread,
        load_spread_nats=load_spread,
        prompts=tuple(found),
    )


async def _answer(engine: Engine, prompt: str, tokens: int, timeout_s: float) -> GoldenPrompt:
    generated = await engine.complete_scored(prompt, max_tokens=tokens, timeout_s=timeout_s)
    forced = await engine.score_forced(prompt, generated, timeout_s=timeout_s)
    return GoldenPrompt(prompt=prompt, forced_logprobs=forced, **generated.model_dump())


async def _moved(engine: Engine, golden: GoldenPrompt, timeout_s: float) -> float:
    """Return how far the log-probabilities of the recorded tokens have moved at most."""
    forced = await engine.score_forced(golden.prompt, golden.tokens, timeout_s=timeout_s)
    return max(abs(now - then) for now, then in zip(forced, golden.forced_logprobs, strict=True))


async def _spread_under_load(
    engine: Engine, found: Sequence[GoldenPrompt], concurrency: int, timeout_s: float
) -> float:
    """Score the answers, one after the other and again, while `concurrency` completions run."""
    if concurrency == 0:
        return 0.0
    load = [
        asyncio.create_task(
            engine.complete_scored(
                found[number % len(found)].prompt, max_tokens=LOAD_TOKENS, timeout_s=timeout_s
            )
        )
        for number in range(concurrency)
    ]
    spread = 0.0
    try:
        while True:
            for golden in found:
                spread = max(spread, await _moved(engine, golden, timeout_s))
            if all(task.done() for task in load):
                break
        await asyncio.gather(*load)
    finally:
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)
    return spread
