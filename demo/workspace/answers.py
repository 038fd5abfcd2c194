"""What the app says back to an interaction: with its acknowledgement, or through the response address it was given."""

import json

from demo.workspace.blocks import BlocksError, checked_blocks
from demo.workspace.grants import Grants, ResponseGrant
from demo.workspace.records import Message
from demo.workspace.state import State
from gpu_actions.models import JsonObject


class ActError(Exception):
    """An act that cannot be done at all: the message says what happened and what to do, `status` is for HTTP."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Answers:
    """Turns answers into messages: private by default, in the channel with `response_type: in_channel`.

    An answer goes into a thread only when it carries `thread_ts`, as in Slack (slackapi/bolt-js issue 963).
    """

    def __init__(self, state: State, grants: Grants) -> None:
        self._state = state
        self._grants = grants

    def url(self, key: str) -> str:
        """The response address behind a key."""
        return f"{self._state.base_url}/response/{key}"

    def respond(self, key: str, body: JsonObject) -> None:
        """An answer through a response address. Raises GrantError, BlocksError, or ActError for an empty answer."""
        grant = self._grants.response(key)
        original = self._state.message(grant.channel, grant.message_ts) if grant.message_ts else None
        if body.get("delete_original"):
            if original is None:
                raise ActError("there is no original message to delete", 404)
            self._state.remove_message(original)
        elif body.get("replace_original"):
            if original is None:
                raise ActError("there is no original message to replace", 404)
            original.text, original.blocks = _content(body)
            self._state.save_message(original)
        else:
            message = self.post(grant, body)
            # A command has no message of its own: its first answer is what later ones may replace.
            grant.message_ts = grant.message_ts or message.ts
        grant.uses_left -= 1

    def post(self, grant: ResponseGrant, body: JsonObject) -> Message:
        """Show an answer as a new message. Raises BlocksError, or ActError for an empty one."""
        text, blocks = _content(body)
        in_channel = body.get("response_type") == "in_channel"
        thread_ts = body.get("thread_ts")
        message = Message(
            channel=grant.channel,
            ts=self._state.new_ts(),
            user=self._state.bot_user,
            text=text,
            blocks=blocks,
            thread_ts=str(thread_ts) if thread_ts else None,
            from_app=True,
            visible_to=None if in_channel else grant.user,
        )
        self._state.save_message(message)
        return message


def _content(body: JsonObject) -> tuple[str, list[JsonObject]]:
    blocks = body.get("blocks") or []
    if isinstance(blocks, str):
        try:
            blocks = json.loads(blocks)
        except ValueError as error:
            raise BlocksError("invalid_blocks_format", [f"blocks is not JSON: {error}"]) from error
    text = str(body.get("text") or "")
    if not text and not blocks:
        raise ActError("no_text: the answer has neither text nor blocks")
    return text, checked_blocks(blocks) if blocks else []
