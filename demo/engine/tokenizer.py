"""The byte tokenizer: one token is one byte of UTF-8, so a prompt of N ASCII characters has exactly N tokens.

There is no beginning-of-text token, so that lengths stay exact for load tests; 256 ends a text.
"""

import codecs
from collections.abc import Sequence

END_OF_TEXT = 256

PRINTABLE = (*range(32, 127), END_OF_TEXT)
"""What random weights may generate unless told otherwise: every such token is one visible character."""


def encode(text: str) -> list[int]:
    """Give the tokens of a text. Lone surrogates, which JSON can carry, become question marks."""
    return list(text.encode("utf-8", errors="replace"))


class TextStream:
    """Turns one request's tokens into text as they come, holding back what is not yet decided.

    Held back are the bytes of an unfinished UTF-8 character, and a tail that may be the beginning of a stop string.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(stop)
        self._held = ""

    def push(self, token: int, *, searching: bool = True) -> tuple[str, bool]:
        """Take one token; give the text that is now certain, and whether a stop string was reached (it is not in the
        text). `searching` is False while `min_tokens` is not reached."""
        if token != END_OF_TEXT:
            self._held += self._decoder.decode(bytes((token,)))
        if not searching or not self._stop:
            return self._give(len(self._held)), False
        places = [place for word in self._stop if (place := self._held.find(word)) >= 0]
        if places:
            text = self._held[: min(places)]
            self._held = ""
            self._decoder.reset()
            return text, True
        return self._give(len(self._held) - self._undecided()), False

    def finish(self) -> str:
        """Give what was still held back; an unfinished character becomes U+FFFD."""
        self._held += self._decoder.decode(b"", final=True)
        return self._give(len(self._held))

    def _give(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _undecided(self) -> int:
        """Length of the longest tail that begins a stop string."""
        longest = max(len(word) for word in self._stop) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(word.startswith(self._held[-length:]) for word in self._stop):
                return length
        return 0
