"""The byte tokenizer: one token is one byte of UTF-8, so a prompt of N ASCII characters has exactly N tokens.

There is no beginning-of-text token, so that lengths are exact for load tests. Token 256 ends a text.
"""

from collections.abc import Iterable

END_OF_TEXT = 256
VOCABULARY = 257
PRINTABLE = (*range(32, 127), END_OF_TEXT)
"""What the model may generate: random weights then write text that a person can read, one character per token."""


def encode(text: str) -> list[int]:
    """Return the tokens of a text. Lone surrogates, which JSON can carry, become question marks."""
    return list(text.encode("utf-8", errors="replace"))


def decode(tokens: Iterable[int]) -> str:
    """Return the text of a prompt's tokens. Bytes that are not UTF-8 become replacement characters."""
    return bytes(token for token in tokens if token != END_OF_TEXT).decode(errors="replace")


def token_text(token: int) -> str:
    """Return the text of a generated token."""
    return "" if token == END_OF_TEXT else chr(token)


def token_name(token: int) -> str:
    """Return the name of any token: its character in ASCII, else OpenAI's form for a lone byte."""
    if token == END_OF_TEXT:
        return "<|endoftext|>"
    return chr(token) if token < 128 else f"bytes:\\x{token:02x}"
