"""The app's answers to interactions: with its acknowledgement, or later through a `response_url`.

As in Slack, a `response_url` takes 5 answers within 30 minutes, and an answer goes into a thread only if it carries
`thread_ts` (slackapi/bolt-js issue 963).
"""

import json
import secrets
import time
from dataclasses import dataclass

from aiohttp import web

from demo.workspace.blocks import BlocksError, checked_blocks
from demo.workspace.records import JsonObject, Message
from demo.workspace.state import State

LIFE_S = 30 * 60.0
USES = 5
FORGET_AFTER_S = 600.0


class ResponseError(Exception):
    """Raised for an answer that cannot be shown; the message is Slack's error code or a sentence."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Interaction:
    """What an answer refers to: who acted, in which channel, on which message (if any)."""

    user: str
    channel: str
    message_ts: str | None = None
    expires: float = 0.0
    uses_left: int = USES


class ResponseUrls:
    """Issues response URLs and turns answers into messages: private, or public with `response_type: in_channel`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._issued: dict[str, Interaction] = {}

    def issue(self, user: str, channel: str, message_ts: str | None = None) -> str:
        """Return a new response URL."""
        now = time.monotonic()
        self._issued = {
            key: entry for key, entry in self._issued.items() if entry.expires > now - FORGET_AFTER_S
        }
        key = secrets.token_urlsafe(24)
        self._issued[key] = Interaction(user, channel, message_ts, now + LIFE_S)
        return f"{self._state.base_url}/response/{key}"

    async def handle(self, request: web.Request) -> web.Response:
        """Serve `POST /response/{key}`."""
        try:
            body = await request.json()
            if not isinstance(body, dict):
                raise ResponseError("invalid_payload")
            self._respond(request.match_info["key"], body)
        except ValueError:
            return web.json_response({"ok": False, "error": "invalid_payload"}, status=400)
        except BlocksError as error:
            answer = {"ok": False, "error": error.code, "response_metadata": {"messages": error.messages}}
            return web.json_response(answer, status=400)
        except ResponseError as error:
            return web.json_response({"ok": False, "error": str(error)}, status=error.status)
        return web.json_response({"ok": True})

    def _respond(self, key: str, body: JsonObject) -> None:
        interaction = self._issued.get(key)
        if interaction is None or interaction.expires < time.monotonic():
            raise ResponseError("expired_url", 404)
        if interaction.uses_left <= 0:
            raise ResponseError("used_url", 404)
        original = self._state.message(interaction.channel, interaction.message_ts)
        if body.get("delete_original") or body.get("replace_original"):
            if original is None:
                raise ResponseError("there is no original message to replace or delete")
            if body.get("delete_original"):
                self._state.remove_message(original)
            else:
                original.text, original.blocks = _content(body)
                self._state.save_message(original)
        else:
            message = self.post(interaction, body)
            # A command has no message of its own: later answers may replace its first answer.
            interaction.message_ts = interaction.message_ts or message.ts
        interaction.uses_left -= 1

    def post(self, interaction: Interaction, body: JsonObject) -> Message:
        """Post an answer as a new message. Raises BlocksError, or ResponseError if it is empty."""
        text, blocks = _content(body)
        return self._state.post(
            interaction.channel,
            self._state.bot_user,
            text,
            blocks=blocks,
            thread_ts=str(body["thread_ts"]) if body.get("thread_ts") else None,
            from_app=True,
            visible_to=None if body.get("response_type") == "in_channel" else interaction.user,
        )


def _content(body: JsonObject) -> tuple[str, list[JsonObject]]:
    blocks = body.get("blocks") or []
    if isinstance(blocks, str):
        try:
            blocks = json.loads(blocks)
        except ValueError as error:
            raise BlocksError("invalid_blocks_format", [f"blocks is not JSON: {error}"]) from error
    text = str(body.get("text") or "")
    if not text and not blocks:
        raise ResponseError("no_text: the answer has neither text nor blocks")
    return text, checked_blocks(blocks) if blocks else []
