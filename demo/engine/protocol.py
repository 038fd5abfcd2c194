"""OpenAI request bodies, checked field by field, and the bodies that answer them.

Every refusal is an `ApiError` with OpenAI's error object. What the engine cannot do is refused by name; a field that it does
not know is passed over, as OpenAI's servers do.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from demo.engine.options import VOCABULARY, Options
from demo.engine.request import Parameters, Rejection
from demo.engine.tokenizer import encode

JsonObject = dict[str, Any]

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of max_tokens for completions; a chat may fill the context."""

MAX_STOP_STRINGS = 4
"""OpenAI's limit."""


class ApiError(Exception):
    """A request is refused. Becomes OpenAI's error object with this status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s = retry_after_s

    @classmethod
    def of(cls, rejection: Rejection, *, retry_after_s: int) -> "ApiError":
        """What the engine refused, as an error; a 503 says when to come back."""
        again = retry_after_s if rejection.status == 503 else None
        return cls(rejection.status, rejection.message, code=rejection.code, retry_after_s=again)

    def body(self) -> JsonObject:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request."""

    prompt: tuple[int, ...]
    parameters: Parameters
    stream: bool
    include_usage: bool
    chat: bool


def wrong(param: str, message: str) -> ApiError:
    """A 400 about one field."""
    return ApiError(400, message, code="invalid_value", param=param)


class _Fields:
    """Typed access to a body; a null counts as absent."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def get(self, name: str) -> Any:
        return self._body.get(name)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise wrong(name, f"{name} must be a number from {low:g} to {high:g}, not {value!r}")
        return float(value)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise wrong(name, f"{name} must be a whole number from {low} to {high}, not {value!r}")
        return value

    def flag(self, name: str) -> bool:
        value = self._body.get(name)
        if value is not None and not isinstance(value, bool):
            raise wrong(name, f"{name} must be true or false, not {value!r}")
        return bool(value)

    def refuse_beyond(self, name: str, allowed: tuple[Any, ...]) -> None:
        """Refuse a feature that this engine has not, unless it is asked for in the form that means nothing."""
        value = self._body.get(name)
        if value is not None and value not in allowed:
            raise ApiError(
                400, f"this engine does not support {name}={value!r}", code="unsupported_value", param=name
            )


def read_completion(body: Any, options: Options) -> Asked:
    """Check a body of /v1/completions. Raises ApiError."""
    fields = _checked_common(body, options)
    fields.refuse_beyond("echo", (False,))
    fields.refuse_beyond("best_of", (1,))
    fields.refuse_beyond("suffix", ("",))
    prompt = _prompt(fields.get("prompt"))
    highest = VOCABULARY
    logprobs = fields.get("logprobs")
    if logprobs is not None:
        logprobs = fields.integer("logprobs", 0, 0, highest)
    max_tokens = fields.integer("max_tokens", DEFAULT_COMPLETION_TOKENS, 1, 2**31)
    return _asked(fields, options, prompt, max_tokens, logprobs, chat=False)


def read_chat(body: Any, options: Options) -> Asked:
    """Check a body of /v1/chat/completions. Raises ApiError."""
    fields = _checked_common(body, options)
    fields.refuse_beyond("logprobs", (False,))
    fields.refuse_beyond("tools", ([],))
    prompt = tuple(encode(_chat_text(fields.get("messages"))))
    room = max(1, options.max_model_len - len(prompt))
    name = "max_completion_tokens" if fields.get("max_completion_tokens") is not None else "max_tokens"
    return _asked(fields, options, prompt, fields.integer(name, room, 1, 2**31), None, chat=True)


def _checked_common(body: Any, options: Options) -> _Fields:
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    model = body.get("model")
    if model is not None and model != options.model_name:
        message = f"the model {model!r} does not exist: this engine serves {options.model_name!r}"
        raise ApiError(404, message, code="model_not_found", param="model")
    fields = _Fields(body)
    fields.refuse_beyond("n", (1,))
    return fields


def _asked(
    fields: _Fields,
    options: Options,
    prompt: tuple[int, ...],
    max_tokens: int,
    logprobs: int | None,
    *,
    chat: bool,
) -> Asked:
    if len(prompt) + max_tokens > options.max_model_len:
        raise ApiError(
            400,
            f"the context is {options.max_model_len} tokens, but the prompt has {len(prompt)} and {max_tokens} more are "
            "asked for",
            code="context_length_exceeded",
            param="messages" if chat else "prompt",
        )
    stream = fields.flag("stream")
    stream_options = fields.get("stream_options")
    if stream_options is not None and not (stream and isinstance(stream_options, dict)):
        raise wrong("stream_options", "stream_options must be an object, and needs stream=true")
    parameters = Parameters(
        max_tokens=max_tokens,
        min_tokens=fields.integer("min_tokens", 0, 0, max_tokens),
        ignore_eos=fields.flag("ignore_eos"),
        stop=_stop(fields.get("stop")),
        temperature=fields.number("temperature", 0.0, 0.0, 2.0),
        top_p=fields.number("top_p", 1.0, 0.0, 1.0),
        top_k=max(0, fields.integer("top_k", 0, -1, VOCABULARY)),
        seed=fields.integer("seed", options.seed, -(2**63), 2**63 - 1),
        logit_bias=_logit_bias(fields.get("logit_bias")),
        logprobs=logprobs,
    )
    usage = bool(stream_options and _Fields(stream_options).flag("include_usage"))
    return Asked(prompt, parameters, stream, usage, chat)


def _prompt(prompt: Any) -> tuple[int, ...]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        tokens = encode(prompt)
    elif isinstance(prompt, list) and all(type(token) is int and 0 <= token < VOCABULARY for token in prompt):
        tokens = prompt
    else:
        what = f"a text, or a list of token ids from 0 to {VOCABULARY - 1}"
        raise wrong("prompt", f"prompt must be {what}; this engine takes one prompt a request")
    if not tokens:
        raise wrong("prompt", "prompt must not be empty")
    return tuple(tokens)


def _chat_text(messages: Any) -> str:
    """Lay out a conversation as plain text: a line for each message, then the assistant's turn."""
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "messages must be a list with at least one message")
    lines = []
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise wrong(place, f"{place} must be an object with a role")
        content = message.get("content")
        if isinstance(content, list):
            found = [part.get("text") if isinstance(part, dict) else None for part in content]
            parts = [part for part in found if isinstance(part, str)]
            if len(parts) < len(found):
                raise wrong(place, f"{place}: only text parts are supported")
            content = "".join(parts)
        if not isinstance(content, str):
            raise wrong(place, f"{place}: content must be a text")
        lines.append(f"{message['role']}: {content}\n")
    return "".join(lines) + "assistant: "


def _stop(stop: Any) -> tuple[str, ...]:
    words = [stop] if isinstance(stop, str) else (stop or [])
    fine = isinstance(words, list) and all(isinstance(word, str) and word for word in words)
    if not fine or len(words) > MAX_STOP_STRINGS:
        raise wrong("stop", f"stop must be a text or up to {MAX_STOP_STRINGS} texts, none of them empty")
    return tuple(words)


def _logit_bias(bias: Any) -> tuple[tuple[int, float], ...]:
    if bias is None:
        return ()
    try:
        pairs = tuple(sorted((int(token), float(value)) for token, value in bias.items()))
    except (AttributeError, TypeError, ValueError) as error:
        raise wrong("logit_bias", "logit_bias must be an object of token ids and numbers") from error
    for token, value in pairs:
        if not 0 <= token < VOCABULARY or not math.isfinite(value) or abs(value) > 100:
            raise wrong("logit_bias", f"logit_bias: token {token} or its bias {value:g} is out of range")
    return pairs
