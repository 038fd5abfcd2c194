"""What an interaction lets the app do: open one view with its `trigger_id`, and answer through its `response_url`.

As in Slack, the trigger id is valid for 3 s and the URL for 5 answers within 30 minutes. An answer goes into a thread only
if it carries `thread_ts` (slackapi/bolt-js issue 963).
"""

import secrets
import time
from dataclasses import dataclass, field

from aiohttp import web

from demo.workspace.blocks import BlocksError, sent_blocks
from demo.workspace.records import Channel, JsonObject, Message
from demo.workspace.state import State
from demo.workspace.team import User

TRIGGER_LIFE_S = 3.0
RESPONSE_URL_LIFE_S = 30 * 60.0
RESPONSE_URL_USES = 5
FORGET_AFTER_S = 40 * 60.0
"""How long an expired id is distinguished from an unknown one."""


class ReplyError(Exception):
    """Raised for a trigger id or an answer that is refused; `code` is Slack's error code, or a sentence."""

    def __init__(self, code: str, status: int = 400) -> None:
        super().__init__(code)
        self.code = code
        self.status = status


@dataclass(slots=True)
class Interaction:
    """A command, a press or a submission, as far as the app may refer to it."""

    trigger_id: str
    response_url: str
    user: User
    channel: Channel | None
    message_ts: str | None
    """The message that an answer can replace or delete."""
    started: float = field(default_factory=time.monotonic)
    is_trigger_used: bool = False
    answers: int = 0

    @property
    def age_s(self) -> float:
        """Return the seconds since the interaction."""
        return time.monotonic() - self.started


class OpenInteractions:
    """Interactions that the app may still answer. They are gone after a restart."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._open: dict[str, Interaction] = {}

    def begin(self, user: User, channel: Channel | None = None, message_ts: str | None = None) -> Interaction:
        """Register an interaction of `user`."""
        self._open = {key: entry for key, entry in self._open.items() if entry.age_s < FORGET_AFTER_S}
        key = secrets.token_hex(16)
        trigger_id = f"{secrets.randbelow(10**12)}.{secrets.randbelow(10**12)}.{key}"
        response_url = f"{self._state.base_url}/response/{key}"
        self._open[key] = Interaction(trigger_id, response_url, user, channel, message_ts)
        return self._open[key]

    def use_trigger(self, trigger_id: str) -> str:
        """Return the id of the user behind a trigger id, once. Raises ReplyError."""
        interaction = self._open.get(trigger_id.rpartition(".")[2])
        if interaction is None or interaction.trigger_id != trigger_id:
            raise ReplyError("invalid_trigger_id")
        if interaction.is_trigger_used:
            raise ReplyError("exchanged_trigger_id")
        if interaction.age_s > TRIGGER_LIFE_S:
            raise ReplyError("expired_trigger_id")
        interaction.is_trigger_used = True
        return interaction.user.id

    async def handle(self, request: web.Request) -> web.Response:
        """Serve `POST /response/{key}`."""
        try:
            body = await request.json()
            if not isinstance(body, dict):
                raise ValueError("not an object")
            self._answer(request.match_info["key"], body)
        except ValueError:
            return web.json_response({"ok": False, "error": "invalid_payload"}, status=400)
        except BlocksError as error:
            answer = {"ok": False, "error": error.code, "response_metadata": {"messages": error.messages}}
            return web.json_response(answer, status=400)
        except ReplyError as error:
            return web.json_response({"ok": False, "error": error.code}, status=error.status)
        return web.json_response({"ok": True})

    def _answer(self, key: str, body: JsonObject) -> None:
        interaction = self._open.get(key)
        if interaction is None or interaction.channel is None or interaction.age_s > RESPONSE_URL_LIFE_S:
            raise ReplyError("expired_url", 404)
        if interaction.answers >= RESPONSE_URL_USES:
            raise ReplyError("used_url", 404)
        original = self._state.message(interaction.channel.id, interaction.message_ts)
        if body.get("delete_original") or body.get("replace_original"):
            if original is None:
                raise ReplyError("there is no original message to replace or delete")
            if body.get("delete_original"):
                self._state.remove_message(original)
            else:
                original.text, original.blocks = _content(body)
                self._state.save_message(original)
        else:
            message = self.post(interaction.user, interaction.channel, body)
            # A command has no message of its own: later answers may replace its first answer.
            interaction.message_ts = interaction.message_ts or message.ts
        interaction.answers += 1

    def post(self, user: User, channel: Channel, body: JsonObject) -> Message:
        """Post an answer to `user`: privately, or publicly with `response_type: in_channel`.

        Raises BlocksError, or ReplyError if it is empty.
        """
        text, blocks = _content(body)
        return self._state.post(
            channel.id,
            self._state.bot_user,
            text,
            blocks=blocks,
            thread_ts=str(body["thread_ts"]) if body.get("thread_ts") else None,
            from_app=True,
            visible_to=None if body.get("response_type") == "in_channel" else user.id,
        )


def _content(body: JsonObject) -> tuple[str, list[JsonObject]]:
    blocks = sent_blocks(body.get("blocks")) or []
    text = str(body.get("text") or "")
    if not text and not blocks:
        raise ReplyError("no_text: the answer has neither text nor blocks")
    return text, blocks
