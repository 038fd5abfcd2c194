"""Read a streamed completion and tell a full answer from one that only looks like it.

An engine in trouble still answers 200 and then sends an error event, ends the stream early, or streams empty chunks.
"""

import json
import time
from typing import Any

from gpu_actions.serving.interfaces import Completion, EngineError
from gpu_actions.system.redact import redacted_head

FINISHED = frozenset({"stop", "length"})
"""Finish reasons of a request that was served. Others, such as `abort` and `error`, report a failure."""

INVISIBLE_TOKENS = 4
"""This many tokens may decode to nothing: a UTF-8 character has up to four bytes and may be truncated at the end."""


def completion_request(model: str, prompt: str, *, max_tokens: int) -> dict[str, Any]:
    """Return the body of a streamed, greedy completion request."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


class CompletionReader:
    """Collect the lines of an event stream; `result` judges them. `begun` is when the request was sent (monotonic)."""

    def __init__(self, url: str, *, max_tokens: int, begun: float) -> None:
        self.url = url
        self.max_tokens = max_tokens
        self.begun = begun
        self.text = ""
        self.chunks = 0
        self.tokens: int | None = None
        self.finish_reason: str | None = None
        self.first_at: float | None = None
        self.done = False

    def feed(self, line: bytes) -> None:
        """Read one line. Raises EngineError for an error event or for data that is not a completion chunk."""
        if not line.startswith(b"data:"):
            if line.startswith(b"event: error"):
                raise EngineError(f"{self.url} sent an error event in its stream")
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return
        try:
            chunk = json.loads(data)
        except json.JSONDecodeError:
            raise EngineError(
                f"{self.url} streamed something that is not JSON: {_start(data, 200)!r}"
            ) from None
        if not isinstance(chunk, dict) or chunk.get("error"):
            raise EngineError(f"{self.url} broke off with an error: {_start(data, 300)}")
        usage = chunk.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            self.tokens = usage["completion_tokens"]
        for choice in chunk.get("choices") or ():
            self._choice(choice)

    def _choice(self, choice: dict[str, Any]) -> None:
        if self.first_at is None:
            self.first_at = time.monotonic()
        if piece := choice.get("text"):
            self.text += str(piece)
            self.chunks += 1
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def result(self) -> Completion:
        """Return the completion. Raises EngineError if it is incomplete: no [DONE], no finish reason, or no token."""
        so_far = f"after {self.chunks} chunks of text"
        if not self.done:
            raise EngineError(
                f"{self.url} ended its stream {so_far} without [DONE]: the answer is incomplete"
            )
        if self.finish_reason not in FINISHED:
            raise EngineError(
                f"{self.url} finished with reason {self.finish_reason!r} {so_far}, not with stop or length"
            )
        tokens = self.chunks if self.tokens is None else self.tokens
        if tokens <= 0 or self.first_at is None or (not self.text and tokens > INVISIBLE_TOKENS):
            raise EngineError(f"{self.url} answered without generating text: {tokens} tokens, {so_far}")
        if tokens > self.max_tokens:
            raise EngineError(
                f"{self.url} says it generated {tokens} tokens, but {self.max_tokens} were requested"
            )
        return Completion(
            text=self.text,
            completion_tokens=tokens,
            finish_reason=self.finish_reason,
            ttft_ms=(self.first_at - self.begun) * 1000,
            e2e_ms=(time.monotonic() - self.begun) * 1000,
        )


def _start(data: bytes, limit: int) -> str:
    return redacted_head(data.decode(errors="replace"), limit)
