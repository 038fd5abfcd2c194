"""Requests for log-probabilities over the OpenAI completions API, and strict readers of their answers.

vLLM (`entrypoints/openai/completion/serving.py`) and SGLang (`entrypoints/openai/serving_completions.py`) agree on the fields:
`logprobs` scores each token, `echo` scores the prompt too, and `return_token_ids` returns ids, so that no text has to be split
into tokens again. vLLM needs `return_token_ids` to echo a prompt of ids, and neither scores prompts in a stream reliably.
"""

import math
from collections.abc import Sequence
from typing import Any

from gpu_actions.serving.interfaces import EngineError, ScoredTokens

LEAST_LOGPROB = -9999.0
"""Stands for a probability of 0, or for a figure that is not a number, as in vLLM's own answers."""


class LogprobsUnavailable(EngineError):
    """Raised if an engine answers but does not return the log-probabilities that were requested."""


def scored_request(model: str, prompt: str, *, max_tokens: int) -> dict[str, Any]:
    """Return the body of a greedy completion with a fixed seed that reports each token's log-probability."""
    return _request(model, prompt) | {"max_tokens": max_tokens}


def forced_request(model: str, prompt: str, forced: ScoredTokens) -> dict[str, Any]:
    """Return the body of a request that scores given tokens as part of its prompt. The one token that it generates, because
    some servers refuse 0, is ignored."""
    known = forced.prompt_token_ids and forced.token_ids
    whole: str | list[int] = prompt + "".join(forced.texts)
    if known:
        whole = [*forced.prompt_token_ids, *forced.token_ids]
    return _request(model, whole) | {"max_tokens": 1, "echo": True}


def _request(model: str, prompt: str | list[int]) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "temperature": 0,
        "seed": 0,
        "logprobs": 1,
        "return_token_ids": True,
        "stream": False,
    }


def read_scored(url: str, document: Any) -> ScoredTokens:
    """Return the generated tokens of an answer. Raises LogprobsUnavailable if they or their log-probabilities are missing."""
    choice = _choice(url, document)
    texts, values = _tokens(url, choice)
    if not texts:
        raise LogprobsUnavailable(f"{url} generated no token")
    ids, prompt_ids = _ids(choice.get("token_ids")), _ids(choice.get("prompt_token_ids"))
    known = len(ids) == len(texts) and bool(prompt_ids)
    return ScoredTokens(
        texts=texts,
        logprobs=_numbers(url, texts, values),
        token_ids=ids if known else (),
        prompt_token_ids=prompt_ids if known else (),
    )


def read_forced(url: str, document: Any, forced: ScoredTokens) -> tuple[float, ...]:
    """Return the log-probability of each forced token. Raises LogprobsUnavailable if the engine did not score the prompt, or
    splits its text into other tokens."""
    texts, values = _tokens(url, _choice(url, document))
    count = len(forced.texts)
    usage = document.get("usage")
    prompt_tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    end = prompt_tokens if isinstance(prompt_tokens, int) else len(texts) - 1
    if forced.prompt_token_ids:
        end = len(forced.prompt_token_ids) + count
    if len(texts) < end or end <= count:
        raise LogprobsUnavailable(f"{url} does not score the prompt's tokens (echo with logprobs)")
    if not forced.prompt_token_ids and texts[end - count : end] != forced.texts:
        raise LogprobsUnavailable(f"{url} splits the recorded text into other tokens")
    return _numbers(url, forced.texts, values[end - count : end])


def _choice(url: str, document: Any) -> dict[str, Any]:
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise EngineError(f"{url} answered without a choice")
    choice: dict[str, Any] = choices[0]
    return choice


def _tokens(url: str, choice: dict[str, Any]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    found = choice.get("logprobs")
    texts = found.get("tokens") if isinstance(found, dict) else None
    values = found.get("token_logprobs") if isinstance(found, dict) else None
    if not isinstance(texts, list) or not isinstance(values, list) or len(texts) != len(values):
        raise LogprobsUnavailable(f"{url} returns no log-probabilities (logprobs=1)")
    return tuple(str(text) for text in texts), tuple(values)


def _ids(found: Any) -> tuple[int, ...]:
    return tuple(found) if isinstance(found, list) and all(type(one) is int for one in found) else ()


def _numbers(url: str, texts: Sequence[str], values: Sequence[Any]) -> tuple[float, ...]:
    for text, value in zip(texts, values, strict=True):
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise LogprobsUnavailable(f"{url} returns no log-probability of the token {text!r}")
    return tuple(float(value) if math.isfinite(value) else LEAST_LOGPROB for value in values)
