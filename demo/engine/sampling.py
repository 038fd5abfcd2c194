"""From logits to tokens, on rank 0. Greedy unless a request asks for a temperature; every request has its own generator.

Rows that sample are drawn one by one on the CPU, so a draw depends on the request's seed and logits alone.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from demo.engine.options import VOCABULARY
from demo.engine.tokenizer import END_OF_TEXT, PRINTABLE


class SamplingParameters(Protocol):
    """What sampling reads of a request's parameters."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def logit_bias(self) -> tuple[tuple[int, float], ...]: ...
    @property
    def logprobs(self) -> int | None: ...


TopLogprobs = tuple[tuple[int, float], ...]


class Sampler:
    """Picks tokens. `printable` keeps to characters that a person can read."""

    def __init__(self, *, printable: bool, device: torch.device) -> None:
        self._mask: Tensor | None = None
        if printable:
            self._mask = torch.full((VOCABULARY,), -torch.inf, device=device)
            self._mask[list(PRINTABLE)] = 0.0

    def pick(self, logits: Tensor, rows: Sequence["SamplingRow"]) -> list[int]:
        """Give one token for each row of logits [rows, vocabulary]."""
        logits = logits + self._mask if self._mask is not None else logits.clone()
        without_end = [number for number, row in enumerate(rows) if row.end_is_banned]
        if without_end:
            logits[without_end, END_OF_TEXT] = -torch.inf
        for number, row in enumerate(rows):
            for token, bias in row.parameters.logit_bias:
                logits[number, token] += bias
        tokens: list[int] = logits.argmax(dim=-1).tolist()
        for number, row in enumerate(rows):
            if row.parameters.temperature > 0:
                tokens[number] = _draw(logits[number].cpu(), row)
        return tokens

    @staticmethod
    def logprobs(logits: Tensor, token: int, count: int) -> tuple[float, TopLogprobs]:
        """Give the log-probability of a token and the `count` most likely ones, of the model's own logits [vocabulary]."""
        values = torch.log_softmax(logits, dim=-1)
        top = values.topk(count) if count else None
        pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)) if top is not None else ()
        return float(values[token]), pairs


class SamplingRow:
    """One row's parameters, whether it may end now, and its generator, made at its first draw."""

    __slots__ = ("_generator", "end_is_banned", "parameters")

    def __init__(self, parameters: SamplingParameters) -> None:
        self.parameters = parameters
        self.end_is_banned = False
        self._generator: torch.Generator | None = None

    @property
    def generator(self) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator()
            self._generator.manual_seed(self.parameters.seed)
        return self._generator


def _draw(logits: Tensor, row: SamplingRow) -> int:
    parameters = row.parameters
    values, tokens = (logits / parameters.temperature).sort(descending=True, stable=True)
    weights = torch.softmax(values, dim=-1)
    if parameters.top_k > 0:
        weights[parameters.top_k :] = 0
    if parameters.top_p < 1:
        # a token stays while those before it have not reached top_p: the first always stays
        weights[(weights.cumsum(dim=-1) - weights) >= parameters.top_p] = 0
    return int(tokens[torch.multinomial(weights, 1, generator=row.generator)])
