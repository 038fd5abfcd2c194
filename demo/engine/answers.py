"""The bodies of OpenAI answers: whole ones and stream chunks, for completions and chats alike."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from demo.engine.protocol import Asked, JsonObject
from demo.engine.request import TokenEvent
from demo.engine.tokenizer import END_OF_TEXT


class Answer:
    """One answer in the making."""

    def __init__(self, asked: Asked, model: str) -> None:
        self._asked = asked
        self._offset = 0
        prefix = "chatcmpl" if asked.chat else "cmpl"
        self._base: JsonObject = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def usage(self, completion_tokens: int) -> JsonObject:
        prompt = len(self._asked.prompt)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt + completion_tokens,
        }

    def whole(self, events: Sequence[TokenEvent]) -> JsonObject:
        """The answer to a request that is not streamed."""
        text = "".join(event.text for event in events)
        reason = events[-1].finish_reason
        choice: JsonObject = {"index": 0, "finish_reason": reason}
        if self._asked.chat:
            choice |= {"message": {"role": "assistant", "content": text}, "logprobs": None}
        else:
            choice |= {"text": text, "logprobs": self._logprobs(events)}
        kind = "chat.completion" if self._asked.chat else "text_completion"
        return {**self._base, "object": kind, "choices": [choice], "usage": self.usage(len(events))}

    def role_chunk(self) -> JsonObject:
        """A chat's first chunk, before any token."""
        return self._chunk(
            [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
        )

    def token_chunk(self, text: str, events: Sequence[TokenEvent]) -> JsonObject:
        """Text that has become certain, of the tokens since the last chunk; the last carries the finish reason."""
        choice: JsonObject = {"index": 0, "finish_reason": events[-1].finish_reason}
        if self._asked.chat:
            choice |= {"delta": {"content": text}, "logprobs": None}
        else:
            choice |= {"text": text, "logprobs": self._logprobs(events)}
        return self._chunk([choice])

    def usage_chunk(self, completion_tokens: int) -> JsonObject:
        """The chunk that `stream_options.include_usage` asks for, last before [DONE]."""
        return self._chunk([]) | {"usage": self.usage(completion_tokens)}

    def _chunk(self, choices: list[JsonObject]) -> JsonObject:
        kind = "chat.completion.chunk" if self._asked.chat else "text_completion"
        return {**self._base, "object": kind, "choices": choices}

    def _logprobs(self, events: Sequence[TokenEvent]) -> JsonObject | None:
        if self._asked.parameters.logprobs is None:
            return None
        offsets: list[int] = []
        for event in events:
            offsets.append(self._offset)
            self._offset += len(event.text)
        top: list[dict[str, float]] = [
            {_name(token): value for token, value in event.top_logprobs} for event in events
        ]
        result: dict[str, Any] = {
            "tokens": [_name(event.token) for event in events],
            "token_logprobs": [event.logprob for event in events],
            "top_logprobs": top,
            "text_offset": offsets,
        }
        return result


def _name(token: int) -> str:
    """A token as text: its character in ASCII, else OpenAI's form for a lone byte."""
    if token == END_OF_TEXT:
        return "<|endoftext|>"
    return chr(token) if token < 128 else f"bytes:\\x{token:02x}"
