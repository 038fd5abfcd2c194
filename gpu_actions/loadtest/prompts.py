"""Prompts of a known length, the same for the same seed, nonce and row, and cheap enough to build when they are sent.

Two units: `bytes` are exact for byte tokenizers (1 ASCII byte = 1 token). `words` are short common words, about one token each
in the usual BPE vocabularies, so the length is approximate and the engine's own count is reported.
"""

import random
from array import array
from typing import Literal

from pydantic_core import to_json

from gpu_actions.loadtest.spec import LoadSpec

_WORDS = """
the of and to in is it that was for on are as with his they at be this from have or by one had not but what
all were when we there can an your which their said if do will each about how up out them then she many some
so these would other into has more her two like him see time could no make than first been its who now
people my made over did down only way find use may water long little very after words called just where most
know
""".split()  # noqa: SIM905  (120 quoted strings read worse)
CORPUS_WORDS = 16_384
_SLOT = "<prompt>"
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """Spread consecutive rows over the corpus (the finaliser of splitmix64)."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class PromptMaker:
    """Builds request bodies. Every prompt starts with its own mark, so no two share a prefix that a cache could keep.

    The nonce of the run is part of every mark: a prefix cache that kept the prompts of an earlier run does not help this one.
    """

    def __init__(self, spec: LoadSpec, unit: Literal["bytes", "words"]) -> None:
        self._seed = spec.seed ^ _mix(spec.nonce) if spec.nonce else spec.seed
        self._unit = unit
        generator = random.Random(self._seed)
        words = [_WORDS[int(generator.random() * len(_WORDS))] for _ in range(CORPUS_WORDS)]
        self._corpus = (" ".join(words) + " ").encode()
        self._corpus += self._corpus  # a slice may start anywhere in the first half
        self._starts = array("I", [0])
        for word in words + words:
            self._starts.append(self._starts[-1] + len(word) + 1)
        message = (
            {"messages": [{"role": "user", "content": _SLOT}]} if spec.api == "chat" else {"prompt": _SLOT}
        )
        body = {
            "model": spec.model,
            **message,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            **({"ignore_eos": True} if spec.ignore_eos else {}),
            "max_tokens": 0,
        }
        self._head, _, tail = to_json(body).rpartition(_SLOT.encode())
        self._tail = tail.removesuffix(b"0}")

    def prompt(self, row: int, length: int) -> bytes:
        """Return the prompt of a row: `length` bytes or words of ASCII that needs no JSON escape."""
        mark = b"%x " % (_mix(row ^ _mix(self._seed)) & 0xFFFFFFFFFFFF)
        if self._unit == "words":
            start = _mix(row + self._seed) % CORPUS_WORDS
            count = max(0, length - 8)  # the mark is about eight tokens
            if count == 0:
                return mark[: max(1, length)].rstrip() or b"0"
            text = self._slice_words(start, count)
            return mark + text
        if length <= len(mark):
            return mark[:length].replace(b" ", b"0")
        half = len(self._corpus) // 2
        start = _mix(row + self._seed) % half
        wanted = length - len(mark)
        text = self._corpus[start : start + wanted]
        while len(text) < wanted:
            text += self._corpus[: wanted - len(text)]
        return mark + text

    def _slice_words(self, start: int, count: int) -> bytes:
        text = b""
        while count > CORPUS_WORDS:
            text += self._corpus[: self._starts[CORPUS_WORDS]]
            count -= CORPUS_WORDS
        return text + self._corpus[self._starts[start] : self._starts[start + count] - 1]

    def body(self, row: int, length: int, new_tokens: int) -> bytes:
        """Return the JSON body of a row's request."""
        return self._head + self.prompt(row, length) + self._tail + b"%d}" % new_tokens
