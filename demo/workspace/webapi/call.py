"""One call of the Web API: its arguments from query, form or JSON body, and the errors that Slack would answer with."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from demo.workspace.blocks import BlocksError, checked_blocks
from demo.workspace.grants import Grants
from demo.workspace.records import Channel, Message
from demo.workspace.socket_mode import SocketMode
from demo.workspace.state import State
from gpu_actions.models import JsonObject


class ApiError(Exception):
    """A refused call: `code` is Slack's error word, `messages` go into `response_metadata.messages`."""

    def __init__(
        self, code: str, *messages: str, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(code)
        self.code = code
        self.messages = messages
        self.status = status
        self.headers = headers or {}

    def as_json(self) -> JsonObject:
        """The body of the refusal."""
        body: JsonObject = {"ok": False, "error": self.code}
        if self.messages:
            body["errors"] = list(self.messages)
            body["response_metadata"] = {"messages": [f"[ERROR] {message}" for message in self.messages]}
        return body


@dataclass(slots=True)
class ApiCall:
    """What a method works with: the workspace's parts, the method's name and its arguments."""

    method: str
    arguments: JsonObject
    token: str
    state: State
    socket_mode: SocketMode
    grants: Grants

    # arguments

    def text(self, name: str, default: str = "") -> str:
        """An argument as text; numbers and booleans as Slack would read them from a form."""
        value = self.arguments.get(name)
        if value is None:
            return default
        if isinstance(value, bool):
            return "true" if value else "false"
        return value if isinstance(value, str) else str(value)

    def required(self, name: str) -> str:
        """An argument that must be there. Raises ApiError `invalid_arguments`, naming it."""
        value = self.text(name)
        if not value:
            raise ApiError("invalid_arguments", f"missing required field: {name}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean argument (`true`, `1` in forms)."""
        value = self.text(name).lower()
        return default if not value else value in ("true", "1", "yes")

    def number(self, name: str, default: int) -> int:
        """A whole number. Raises ApiError `invalid_arguments`."""
        value = self.text(name)
        try:
            return int(value) if value else default
        except ValueError:
            raise ApiError("invalid_arguments", f"must be a number: {name}") from None

    def parsed(self, name: str) -> object:
        """An argument that is JSON: as it came in a JSON body, or parsed from a form field. None where absent."""
        value = self.arguments.get(name)
        if isinstance(value, str):
            if not value:
                return None
            try:
                return json.loads(value)
            except ValueError:
                raise ApiError("invalid_arguments", f"not valid JSON: {name}") from None
        return value

    def names(self, name: str) -> list[str]:
        """A list argument: JSON list or comma-separated text."""
        value = self.arguments.get(name)
        if isinstance(value, list):
            return [str(entry) for entry in value]
        return [entry.strip() for entry in self.text(name).split(",") if entry.strip()]

    def blocks(self) -> list[JsonObject] | None:
        """The checked `blocks`, None where the call has none. Raises ApiError."""
        try:
            given = self.parsed("blocks")
        except ApiError:
            raise ApiError("invalid_blocks_format") from None
        if given is None or given == "":
            return None
        try:
            return checked_blocks(given)
        except BlocksError as error:
            raise ApiError(error.code, *error.messages) from error

    def metadata(self) -> JsonObject | None:
        """The `metadata` of a message. Raises ApiError `invalid_metadata_format`."""
        value = self.parsed("metadata")
        if value is None:
            return None
        if (
            not isinstance(value, dict)
            or not isinstance(value.get("event_type"), str)
            or not isinstance(value.get("event_payload"), dict)
        ):
            raise ApiError("invalid_metadata_format", "metadata needs event_type and event_payload")
        return value

    # things named by arguments

    def channel(self, name: str = "channel", *, member: bool = False) -> Channel:
        """The channel of an id or `#name`; a user id means the conversation with that person.

        Raises ApiError `channel_not_found`, and with `member` also `not_in_channel` and `is_archived`.
        """
        wanted = self.required(name)
        channel = self.state.channel_by_name(wanted)
        if channel is None and wanted in self.state.people:
            channel = self.state.direct_channel(wanted)
        if channel is None:
            raise ApiError("channel_not_found")
        if member and self.state.bot_user not in channel.members:
            raise ApiError("not_in_channel")
        if member and channel.is_archived:
            raise ApiError("is_archived")
        return channel

    def own_message(self, channel: Channel, *, refused: str) -> Message:
        """The app's message at `ts`. Raises ApiError `message_not_found`, or `refused` for one of somebody else."""
        message = self.state.message(channel.id, self.required("ts"))
        if message is None or message.visible_to is not None:
            raise ApiError("message_not_found")
        if not message.from_app:
            raise ApiError(refused)
        return message

    def any_message(self, channel: Channel, name: str = "timestamp") -> Message:
        """Any message that is not ephemeral. Raises ApiError `message_not_found`."""
        message = self.state.message(channel.id, self.required(name))
        if message is None or message.visible_to is not None:
            raise ApiError("message_not_found")
        return message


Handler = Callable[[ApiCall], Awaitable[JsonObject]]
"""One method: gives the fields of the answer (`ok` is added) or raises ApiError."""

Middleware = Callable[[ApiCall, Handler], Awaitable[JsonObject]]
"""Stands around every method. The hook for rate limits and faults: wait, raise ApiError, or call the handler."""


async def read_arguments(request: web.Request) -> JsonObject:
    """Query and body of a call as one object; the body wins. Raises ApiError `invalid_json`, `invalid_form_data`."""
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
