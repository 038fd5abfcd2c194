"""The judgement of golden prompts: matches, differs, or unknown. It is pure.

Tokens must be equal only at batch 1 on an idle tier. With traffic, rounding depends on the batch and may change a close choice,
so the log-probabilities of the recorded tokens are compared instead. Even on an idle tier a close choice may be made otherwise:
another tensor-parallel size rounds differently (one token of 64 on H100s: docs/validation).
"""

from enum import StrEnum
from typing import Literal

from gpu_actions.models import Frozen
from gpu_actions.serving.golden.reading import GoldenAnswer, GoldenReading
from gpu_actions.serving.golden.record import GoldenPrompt, GoldenRecord

RECORD = "on a good day, record it with: gpu-oncall golden record"


class GoldenOutcome(StrEnum):
    """Whether an engine answers as it was recorded."""

    MATCHES = "matches"
    DIFFERS = "differs"
    UNKNOWN = "unknown"


class GoldenJudgement(Frozen):
    """The outcome, with the first prompt and token that differ (from 1) and by how much, or why it is unknown."""

    outcome: GoldenOutcome
    summary: str
    action: str = ""
    basis: Literal["", "logprobs", "tokens"] = ""
    prompt: int | None = None
    token: int | None = None
    difference_nats: float | None = None
    limit_nats: float | None = None
    worst_nats: float | None = None


def judge_golden(
    record: GoldenRecord | None, reading: GoldenReading, *, need_all: bool = True
) -> GoldenJudgement:
    """Judge a reading by its record. With `need_all` a prompt without an answer makes it unknown; otherwise one answer is
    enough."""
    if record is None:
        return unknown_golden("no golden prompts are recorded for this tier")
    if other := _other_engine(record, reading):
        return unknown_golden(other, action=f"if it is right, {RECORD}")
    limit = record.limit_nats(idle=reading.idle)
    worst = 0.0
    for answer in reading.answers:
        if answer.prompt >= len(record.prompts):
            return unknown_golden("the answers are not of these golden prompts")
        golden = record.prompts[answer.prompt]
        if len(answer.forced_logprobs) != len(golden.forced_logprobs):
            return unknown_golden("the engine scored another number of tokens than were recorded")
        for place, (now, then) in enumerate(zip(answer.forced_logprobs, golden.forced_logprobs, strict=True)):
            moved = abs(now - then)
            if not moved <= limit:  # also for a figure that is not a number
                return _differs(
                    answer,
                    place,
                    f"the log-probability of {golden.texts[place]!r} moved by {moved:.2f} nats, "
                    f"the limit is {limit:.2f}",
                    basis="logprobs",
                    difference_nats=moved,
                    limit_nats=limit,
                )
            worst = max(worst, moved)
    exact = close = 0
    if reading.idle and record.exact:
        for answer in reading.answers:
            if answer.generated is None:
                continue
            golden = record.prompts[answer.prompt]
            first = first_difference(golden, answer)
            if first is None:
                exact += 1
            elif _is_close(answer, first, limit):
                close += 1
            else:
                return _differs(
                    answer,
                    first,
                    f"it generated {_token(answer.generated.texts, first)} instead of {_token(golden.texts, first)} "
                    f"on an idle tier (log-probabilities moved by {worst:.2f} nats at most)",
                    basis="tokens",
                    limit_nats=limit,
                    worst_nats=worst,
                )
    answered, total = len(reading.answers), len(record.prompts)
    if not answered or (need_all and answered < total):
        why = reading.error or "no prompt was answered"
        action = "a proxy in front of the engine may remove logprobs and echo: use the engine's own URL"
        return unknown_golden(why, action=action if reading.cannot_score else "read the engine's log")
    same = f", {exact} with equal tokens" if exact else ""
    same += f", {close} with a close choice made otherwise" if close else ""
    return GoldenJudgement(
        outcome=GoldenOutcome.MATCHES,
        summary=f"{answered} of {total} golden prompts match{same}; log-probabilities moved by {worst:.3f} nats at "
        f"most (limit {limit:.2f})",
        worst_nats=worst,
        limit_nats=limit,
    )


def unknown_golden(why: str, *, action: str = RECORD) -> GoldenJudgement:
    """Return the judgement for missing evidence."""
    return GoldenJudgement(
        outcome=GoldenOutcome.UNKNOWN, summary=f"correctness is unknown: {why}", action=action
    )


def first_difference(golden: GoldenPrompt, answer: GoldenAnswer) -> int | None:
    """Return the place (from 0) of the first generated token that is not the recorded one, or None. Ids decide where both
    have them, because several tokens may have the same text."""
    if answer.generated is None:
        return None
    then: tuple[int | str, ...] = golden.texts
    now: tuple[int | str, ...] = answer.generated.texts
    if golden.token_ids and answer.generated.token_ids:
        then, now = golden.token_ids, answer.generated.token_ids
    for place, (left, right) in enumerate(zip(then, now, strict=False)):
        if left != right:
            return place
    return None if len(then) == len(now) else min(len(then), len(now))


def _is_close(answer: GoldenAnswer, place: int, limit: float) -> bool:
    """Return True if the engine itself finds the recorded token about as likely as the one that it generated instead."""
    generated = answer.generated
    if generated is None or place >= min(len(generated.logprobs), len(answer.forced_logprobs)):
        return False
    return abs(generated.logprobs[place] - answer.forced_logprobs[place]) <= limit


def _other_engine(record: GoldenRecord, reading: GoldenReading) -> str:
    """Return in which way the engine is not the recorded one, or an empty string. An unreported version is not another."""
    pairs = [("model", record.model, reading.model), ("engine", record.engine_kind, reading.engine_kind)]
    if record.engine_version and reading.engine_version:
        pairs.append(("engine version", record.engine_version, reading.engine_version))
    return next(
        (f"the {what} is {now}, recorded with {then}" for what, then, now in pairs if then != now), ""
    )


def _differs(
    answer: GoldenAnswer,
    place: int,
    text: str,
    *,
    basis: Literal["logprobs", "tokens"],
    difference_nats: float | None = None,
    limit_nats: float | None = None,
    worst_nats: float | None = None,
) -> GoldenJudgement:
    return GoldenJudgement(
        outcome=GoldenOutcome.DIFFERS,
        summary=f"the engine answers wrongly: golden prompt {answer.prompt + 1}, token {place + 1}: {text}",
        action="Restart the tier, so that its weights are loaded again; if it lasts, check the GPUs with a deep triage. "
        "If the model was changed on purpose, record the prompts again.",
        basis=basis,
        prompt=answer.prompt + 1,
        token=place + 1,
        difference_nats=difference_nats,
        limit_nats=limit_nats,
        worst_nats=worst_nats,
    )


def _token(texts: tuple[str, ...], place: int) -> str:
    return repr(texts[place]) if place < len(texts) else "the end"
