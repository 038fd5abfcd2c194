"""Ask an engine for its golden prompts again, within a budget of seconds."""

import asyncio
import time

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.serving.engines.logprobs import LogprobsUnavailable
from gpu_actions.serving.golden.record import GoldenRecord
from gpu_actions.serving.interfaces import Engine, EngineError, EngineMetrics, ScoredTokens

SHORTEST_S = 0.02
"""With less time than this left (seconds), a budget counts as spent."""

SETTLE_S = 0.3
"""How long a finished request may still be missing in the engine's counters."""


class GoldenAnswer(Frozen):
    """An engine's answer to one golden prompt. `generated` is None if the tier was busy or the time was over."""

    prompt: int = Field(ge=0, description="its place in the record, from 0")
    forced_logprobs: tuple[float, ...]
    generated: ScoredTokens | None = None


class GoldenReading(Frozen):
    """Answers of one moment. `idle`: no other request ran; exact tokens can be judged only then. `error` explains why
    prompts are missing; `cannot_score` says that the engine returns no log-probabilities at all."""

    engine_kind: str
    engine_version: str = ""
    model: str
    idle: bool = False
    answers: tuple[GoldenAnswer, ...] = ()
    error: str = ""
    cannot_score: bool = False
    seconds: float = 0.0


async def read_golden(engine: Engine, record: GoldenRecord, *, budget_s: float) -> GoldenReading:
    """Score the recorded tokens of every prompt, then generate them again if the tier is idle, until the budget is spent.

    Never raises for what the engine answers.
    """
    began = time.monotonic()
    version = await engine.version(timeout_s=min(2.0, budget_s / 4))
    before = await metrics_of(engine, timeout_s=min(2.0, budget_s / 4))
    answers: list[GoldenAnswer] = []
    requests, error, cannot_score = 0, "", False

    def left_s() -> float:
        return budget_s - (time.monotonic() - began)

    try:
        for number, golden in enumerate(record.prompts):
            forced = await engine.score_forced(
                golden.prompt, golden.tokens, timeout_s=max(SHORTEST_S, left_s())
            )
            requests += 1
            answers.append(GoldenAnswer(prompt=number, forced_logprobs=forced))
        if is_idle(before):
            for number, golden in enumerate(record.prompts):
                if left_s() <= SHORTEST_S:
                    break
                generated = await engine.complete_scored(
                    golden.prompt, max_tokens=len(golden.texts), timeout_s=left_s()
                )
                requests += 1
                answers[number] = answers[number].model_copy(update={"generated": generated})
    except EngineError as failure:
        error, cannot_score = str(failure)[:300], isinstance(failure, LogprobsUnavailable)
        if left_s() <= SHORTEST_S:
            answered = f"{len(answers)} of {len(record.prompts)} prompts were scored"
            error = f"{answered} within {budget_s:g} s"
    idle = is_idle(before) and not error and await was_alone(engine, before, requests=requests)
    return GoldenReading(
        engine_kind=engine.kind,
        engine_version=version,
        model=engine.model,
        idle=idle,
        answers=tuple(answers),
        error=error,
        cannot_score=cannot_score,
        seconds=time.monotonic() - began,
    )


async def metrics_of(engine: Engine, *, timeout_s: float = 2.0) -> EngineMetrics | None:
    """Return the engine's counters, or None if they cannot be read."""
    try:
        return await engine.metrics(timeout_s=timeout_s)
    except EngineError:
        return None


def is_idle(metrics: EngineMetrics | None) -> bool:
    """Return True if the engine says that no request runs or waits. A figure that it does not export is not a yes."""
    return metrics is not None and metrics.running == 0 and not metrics.waiting


async def was_alone(engine: Engine, before: EngineMetrics | None, *, requests: int) -> bool:
    """Return True if the engine is idle again and has finished exactly our requests since `before`."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        after = await metrics_of(engine, timeout_s=1.0)
        if before is None or after is None:
            return False
        if before.requests_finished is None or after.requests_finished is None:
            finished = requests
        else:
            finished = round(after.requests_finished - before.requests_finished)
        if is_idle(after) and finished == requests:
            return True
        if finished > requests or time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
