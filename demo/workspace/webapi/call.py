"""One call of the Web API: its arguments, the errors that Slack would answer with, and the table of methods."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from demo.workspace.blocks import BlocksError, sent_blocks
from demo.workspace.open_interactions import OpenInteractions
from demo.workspace.records import Channel, JsonObject, Message
from demo.workspace.socket_mode import SocketMode
from demo.workspace.state import State

MAX_PAGE_SIZE = 999


class ApiError(Exception):
    """Raised to refuse a call: `code` is Slack's error code, `messages` go into `response_metadata.messages`."""

    def __init__(
        self,
        code: str,
        *messages: str,
        status: int = 200,
        headers: dict[str, str] | None = None,
        fields: JsonObject | None = None,
    ) -> None:
        super().__init__(code)
        self.status = status
        self.headers = headers or {}
        self.body: JsonObject = {"ok": False, "error": code} | (fields or {})
        if messages:
            self.body["errors"] = list(messages)
            self.body["response_metadata"] = {"messages": [f"[ERROR] {message}" for message in messages]}


@dataclass(slots=True)
class ApiCall:
    """What a method works with: the parts of the workspace, the method's name and its arguments."""

    method: str
    arguments: JsonObject
    state: State
    socket_mode: SocketMode
    interactions: OpenInteractions

    def text(self, name: str) -> str:
        """Return an argument as text, empty if it is absent; numbers and booleans as a form would send them."""
        value = self.arguments.get(name)
        if value is None:
            return ""
        return str(value).lower() if isinstance(value, bool) else str(value)

    def required(self, name: str) -> str:
        """Return an argument that must not be empty. Raises ApiError `invalid_arguments`, naming it."""
        value = self.text(name)
        if not value:
            raise ApiError("invalid_arguments", f"missing required field: {name}")
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean argument (`true` or `1` in forms), False by default."""
        return self.text(name).lower() in ("true", "1", "yes")

    def number(self, name: str, default: int) -> int:
        """Return a whole number. Raises ApiError `invalid_arguments`."""
        value = self.text(name)
        try:
            return int(value) if value else default
        except ValueError:
            raise ApiError("invalid_arguments", f"must be a number: {name}") from None

    def parsed(self, name: str) -> object:
        """Return a JSON argument, parsed if it came as a form field, or None if it is absent."""
        value = self.arguments.get(name)
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value) if value else None
        except ValueError:
            raise ApiError("invalid_arguments", f"not valid JSON: {name}") from None

    def names(self, name: str) -> list[str]:
        """Return a list argument, sent as a JSON list or as text with commas."""
        value = self.arguments.get(name)
        if isinstance(value, list):
            return [str(entry) for entry in value]
        return [entry.strip() for entry in self.text(name).split(",") if entry.strip()]

    def objects(self, name: str, error: ApiError) -> list[JsonObject]:
        """Return a list of JSON objects, empty if it is absent. Raises `error` if it is anything else."""
        value = self.parsed(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise error
        return value

    def blocks(self) -> list[JsonObject] | None:
        """Return the checked `blocks`, or None if the call has none. Raises ApiError."""
        try:
            return sent_blocks(self.arguments.get("blocks"))
        except BlocksError as error:
            raise ApiError(error.code, *error.messages) from error

    def metadata(self) -> JsonObject | None:
        """Return the `metadata` of a message. Raises ApiError `invalid_metadata_format`."""
        value: Any = self.parsed("metadata")
        match value:
            case None:
                return None
            case {"event_type": str(), "event_payload": dict()}:
                return dict(value)
        raise ApiError("invalid_metadata_format", "metadata needs event_type and event_payload")

    def channel(self, name: str = "channel", *, member: bool = False) -> Channel:
        """Return the channel of an id or `#name`; a user id means the conversation with that person.

        Raises ApiError `channel_not_found`, and with `member` also `not_in_channel` and `is_archived`.
        """
        wanted = self.required(name)
        channel = self.state.channel_by_name(wanted)
        if channel is None and wanted in self.state.people:
            channel = self.state.direct_channel(wanted)
        if channel is None:
            raise ApiError("channel_not_found")
        self._check_scope_for(channel)
        if member and self.state.bot_user not in channel.members:
            raise ApiError("not_in_channel")
        if member and channel.is_archived:
            raise ApiError("is_archived")
        return channel

    def _check_scope_for(self, channel: Channel) -> None:
        """Raise ApiError `missing_scope` if the method's scope for this kind of channel is missing: `im:` or `channels:`."""
        family, method = "im:" if channel.is_im else "channels:", METHODS.get(self.method)
        needed = [scope for scope in (method.scopes if method else ()) if scope.startswith(family)]
        provided = self.state.team.app.scopes
        if needed and not set(needed) & set(provided):
            fields = {"needed": ",".join(needed), "provided": ",".join(provided)}
            raise ApiError("missing_scope", fields=fields)

    def message(self, channel: Channel, name: str = "timestamp") -> Message:
        """Return a message that is not ephemeral. Raises ApiError `message_not_found`."""
        message = self.state.public_message(channel.id, self.required(name))
        if message is None:
            raise ApiError("message_not_found")
        return message

    def own_message(self, channel: Channel, *, refused: str) -> Message:
        """Return the app's message at `ts`. Raises ApiError `message_not_found`, or `refused` for a person's message."""
        message = self.message(channel, "ts")
        if not message.from_app:
            raise ApiError(refused)
        return message

    def page(self, entries: Sequence[object], name: str, *, size: int = 100) -> JsonObject:
        """Return one page of a list in Slack's form; the cursor is the position of the next entry."""
        limit = max(1, min(self.number("limit", size), MAX_PAGE_SIZE))
        cursor = self.text("cursor")
        if cursor and not cursor.isdigit():
            raise ApiError("invalid_cursor")
        end = int(cursor or 0) + limit
        next_cursor = str(end) if end < len(entries) else ""
        shown = entries[end - limit : end]
        return {name: list(shown), "response_metadata": {"next_cursor": next_cursor}}


Handler = Callable[[ApiCall], Awaitable[JsonObject]]
"""A method: returns the fields of the answer (`ok` is added) or raises ApiError."""

Middleware = Callable[[ApiCall, Handler], Awaitable[JsonObject]]
"""Wraps every method, for rate limits and faults: wait, raise ApiError, or call the handler."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the Web API. `scopes`: the token needs one of them; `tokens`: the kinds of token it accepts."""

    handler: Handler
    scopes: tuple[str, ...]
    tokens: tuple[str, ...]


METHODS: dict[str, Method] = {}
"""All methods by their Slack name."""


def api_method(name: str, *scopes: str, tokens: tuple[str, ...] = ("bot",)) -> Callable[[Handler], Handler]:
    """Register a function as a method. `tokens` may hold `bot` and `app`; empty means that no token is needed."""

    def register(handler: Handler) -> Handler:
        METHODS[name] = Method(handler, scopes, tokens)
        return handler

    return register


async def read_arguments(request: web.Request) -> JsonObject:
    """Return query and body of a call as one object; the body wins. Raises ApiError if the body cannot be read."""
    arguments: JsonObject = dict(request.query)
    if request.content_type == "application/json":
        raw = await request.text()
        try:
            body = json.loads(raw) if raw else {}
        except ValueError:
            raise ApiError("invalid_json") from None
        if not isinstance(body, dict):
            raise ApiError("json_not_object")
        return arguments | body
    if request.body_exists:
        try:
            form = await request.post()
        except ValueError:
            raise ApiError("invalid_form_data") from None
        return arguments | {name: value for name, value in form.items() if isinstance(value, str)}
    return arguments
