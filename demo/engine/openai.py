"""OpenAI's request bodies, checked, and the bodies of the answers.

Every refusal is an `ApiError` with OpenAI's error object. A feature that the engine lacks is refused by name; an unknown
field is ignored, as OpenAI's servers do.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demo.engine.options import Options
from demo.engine.request import ApiError, TokenEvent
from demo.engine.tokenizer import VOCABULARY, decode, encode, token_name

JsonObject = dict[str, Any]

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of max_tokens for completions; a chat may fill the context."""

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "suffix": ("",), "tools": ([],), "stop": ([],), "min_tokens": (0,),
    "temperature": (0,), "top_p": (1,), "top_k": (0, -1), "logit_bias": ({},),
}  # fmt: skip
"""Features that the engine lacks, with the values that do not ask for them."""


def _wrong(param: str, message: str, *, code: str = "invalid_value", status: int = 400) -> ApiError:
    return ApiError(status, code, message, param=param)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A checked request. `logprobs` is the number of alternatives to report for each token; None reports nothing. `echo`
    puts the prompt in front of the answer, `return_token_ids` adds the ids of both (as in vLLM and SGLang)."""

    prompt: tuple[int, ...]
    max_tokens: int
    ignore_eos: bool
    logprobs: int | None
    stream: bool
    include_usage: bool
    chat: bool
    echo: bool = False
    return_token_ids: bool = False


def read_request(body: Any, options: Options, *, chat: bool) -> GenerateRequest:
    """Check a body of /v1/completions or /v1/chat/completions. Raises ApiError."""
    if not isinstance(body, dict):
        raise ApiError(400, "invalid_json", "the body must be a JSON object")
    model = body.get("model")
    if model is not None and model != options.model_name:
        message = f"the model {model!r} does not exist: this engine serves {options.model_name!r}"
        raise _wrong("model", message, code="model_not_found", status=404)
    unsupported = {**UNSUPPORTED, "logprobs": (False,), "echo": (False,)} if chat else UNSUPPORTED
    for name, harmless in unsupported.items():
        if body.get(name) is not None and body[name] not in harmless:
            message = f"this engine does not support {name}={body[name]!r}"
            raise _wrong(name, message, code="unsupported_value")
    if chat:
        prompt = encode(_chat_text(body.get("messages")))
        limit = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
        max_tokens = _integer(body, limit, 1) or max(1, options.max_model_len - len(prompt))
    else:
        prompt = _prompt(body.get("prompt"))
        max_tokens = _integer(body, "max_tokens", 1) or DEFAULT_COMPLETION_TOKENS
    if len(prompt) + max_tokens > options.max_model_len:
        message = (
            f"the context is {options.max_model_len} tokens, but the prompt has {len(prompt)} and {max_tokens} more are "
            "requested"
        )
        raise _wrong("messages" if chat else "prompt", message, code="context_length_exceeded")
    stream, stream_options = _flag(body, "stream"), body.get("stream_options")
    if stream_options is not None and not (stream and isinstance(stream_options, dict)):
        message = "stream_options must be an object, and needs stream=true"
        raise _wrong("stream_options", message)
    return GenerateRequest(
        prompt=tuple(prompt),
        max_tokens=max_tokens,
        ignore_eos=_flag(body, "ignore_eos"),
        logprobs=None if chat else _integer(body, "logprobs", 0, VOCABULARY),
        stream=stream,
        include_usage=_flag(stream_options or {}, "include_usage"),
        chat=chat,
        echo=not chat and _flag(body, "echo"),
        return_token_ids=not chat and _flag(body, "return_token_ids"),
    )


def _integer(body: Mapping[str, Any], name: str, low: int, high: int = 2**31 - 1) -> int | None:
    value = body.get(name)
    if value is not None and (type(value) is not int or not low <= value <= high):
        message = f"{name} must be a whole number from {low} to {high}, not {value!r}"
        raise _wrong(name, message)
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, f"{name} must be true or false, not {value!r}")
    return bool(value)


def _prompt(prompt: Any) -> list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        prompt = encode(prompt)
    tokens = isinstance(prompt, list) and all(type(t) is int and 0 <= t < VOCABULARY for t in prompt)
    if not tokens or not prompt:
        message = (
            f"prompt must be one text or one list of token ids from 0 to {VOCABULARY - 1}, and not empty"
        )
        raise _wrong("prompt", message)
    return list(prompt)


def _chat_text(messages: Any) -> str:
    """Lay out a conversation as plain text: a line for each message, then the assistant's turn."""
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "messages must be a list with at least one message")
    lines = []
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
            content = "".join(str(part["text"]) for part in content)
        if not isinstance(content, str) or not isinstance(message.get("role"), str):
            place = f"messages[{number}]"
            expected = "an object with a role, and a content of text or text parts"
            raise _wrong(place, f"{place} must be {expected}")
        lines.append(f"{message['role']}: {content}\n")
    return "".join(lines) + "assistant: "


class Answer:
    """Builds the bodies of one answer: a whole one, or the chunks of a stream."""

    def __init__(self, request: GenerateRequest, model: str) -> None:
        self._request = request
        self._text_offset = 0
        prefix = "chatcmpl" if request.chat else "cmpl"
        self._base = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, events: Sequence[TokenEvent], echoed: Sequence[TokenEvent] = ()) -> JsonObject:
        """Return the answer to a request that is not streamed. `echoed` are the scored tokens of its prompt."""
        kind = "chat.completion" if self._request.chat else "text_completion"
        choice = self._choice(events, "message", {"role": "assistant"}, echoed, first=True)
        return {**self._base, "object": kind, "choices": [choice], "usage": self._usage(len(events))}

    def role_chunk(self) -> JsonObject:
        """Return a chat's first chunk, which comes before any token."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": None}])

    def token_chunk(
        self, events: Sequence[TokenEvent], echoed: Sequence[TokenEvent] = (), *, first: bool = False
    ) -> JsonObject:
        """Return the chunk of the tokens since the last one. The first one carries the echo, the last the finish reason."""
        return self._chunk([self._choice(events, "delta", {}, echoed, first=first)])

    def usage_chunk(self, completion_tokens: int) -> JsonObject:
        """Return the chunk for `stream_options.include_usage`, the last before [DONE]."""
        return self._chunk([]) | {"usage": self._usage(completion_tokens)}

    def _choice(
        self,
        events: Sequence[TokenEvent],
        name: str,
        role: JsonObject,
        echoed: Sequence[TokenEvent],
        *,
        first: bool,
    ) -> JsonObject:
        text = "".join(event.text for event in events)
        choice: JsonObject = {"index": 0, "finish_reason": events[-1].finish_reason}
        if self._request.chat:
            return choice | {name: {**role, "content": text}, "logprobs": None}
        if self._request.return_token_ids:
            choice["token_ids"] = [event.token for event in events]
            choice["prompt_token_ids"] = list(self._request.prompt) if first else None
        if first and self._request.echo:
            text = decode(self._request.prompt) + text
        return choice | {"text": text, "logprobs": self._logprobs([*echoed, *events])}

    def _chunk(self, choices: list[JsonObject]) -> JsonObject:
        kind = "chat.completion.chunk" if self._request.chat else "text_completion"
        return {**self._base, "object": kind, "choices": choices}

    def _usage(self, completion_tokens: int) -> JsonObject:
        prompt = len(self._request.prompt)
        total = prompt + completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion_tokens, "total_tokens": total}

    def _logprobs(self, events: Sequence[TokenEvent]) -> JsonObject | None:
        if self._request.logprobs is None:
            return None
        offsets = []
        for event in events:
            offsets.append(self._text_offset)
            self._text_offset += len(event.text)
        return {
            "tokens": [token_name(event.token) for event in events],
            "token_logprobs": [event.logprob for event in events],
            "top_logprobs": [{token_name(t): value for t, value in event.top_logprobs} for event in events],
            "text_offset": offsets,
        }
