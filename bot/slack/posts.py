"""Post and edit the bot's messages, and find the ones that an earlier process posted.

A `kill -9` between a post and its record would otherwise post twice. Each post about a run carries metadata with the run's
id and the post's key; after a restart the channel or thread is read once per run.
"""

from dataclasses import dataclass, field
from typing import Any

import structlog
from aiohttp import ClientError
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from bot.presenter.message import Message
from bot.store.records import ArtifactRecord, Place, RunRecord
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

RUN_EVENT = "gpu_oncall_run"
NOTE_EVENT = "gpu_oncall_note"
LOOK_BACK = 200
REFUSED_BLOCKS = frozenset({"invalid_blocks", "invalid_blocks_format", "msg_blocks_too_long"})
"""Slack's errors for blocks it does not accept. The message is then sent as text."""
THREAD_GONE = "thread_not_found"
SLACK_FAILURES = (SlackApiError, SlackClientError, ClientError, OSError, TimeoutError)
"""What a call of the Slack client may raise."""


def metadata(event: str, run_id: str, key: str = "") -> dict[str, Any]:
    """Return the metadata of a post about a run."""
    return {"event_type": event, "event_payload": {"run_id": run_id, "key": key}}


def file_title(record: ArtifactRecord) -> str:
    """Return the title of an uploaded artifact; it names the run, so that the upload can be found again."""
    return f"{record.artifact.title or record.artifact.name} ({record.run_id})"


def retry_after_s(error: BaseException) -> float | None:
    """Return the seconds that a 429 asks to wait, or None for any other failure."""
    if not isinstance(error, SlackApiError) or error.response.status_code != 429:
        return None
    try:
        return float(error.response.headers.get("Retry-After", "1"))
    except ValueError:
        return 1.0


@dataclass
class Found:
    """A run's posts found in Slack; `notes` maps a key to a ts, `files` a title to a file id."""

    message_ts: str | None = None
    notes: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def add(self, messages: list[dict[str, Any]], run_id: str) -> None:
        for message in messages:
            about = message.get("metadata") or {}
            payload = about.get("event_payload") or {}
            if payload.get("run_id") == run_id:
                if about.get("event_type") == RUN_EVENT:
                    self.message_ts = str(message["ts"])
                elif about.get("event_type") == NOTE_EVENT:
                    self.notes[str(payload.get("key", ""))] = str(message["ts"])
            for file in message.get("files") or ():
                self.files[str(file.get("title", ""))] = str(file["id"])


async def find_posts(client: AsyncWebClient, run: RunRecord) -> Found:
    """Read the run's channel or thread and return its posts. Raises whatever the client raises."""
    found = Found(message_ts=run.message_ts)
    # Slack returns the oldest replies first, so without `oldest` a long incident's thread would hide the run's posts.
    page: dict[str, Any] = {
        "oldest": f"{run.created_at - 5:.6f}",
        "limit": LOOK_BACK,
        "include_all_metadata": True,
    }
    overridden = any(decision.decision == "override" for decision in run.decisions)
    if overridden or (run.message_ts is None and run.place.thread_ts is None):
        answer = await client.conversations_history(channel=run.place.channel, **page)
        found.add(list(answer.get("messages") or ()), run.id)
    root = run.place.thread_ts or found.message_ts
    if root is not None:
        try:
            answer = await client.conversations_replies(channel=run.place.channel, ts=root, **page)
        except SlackApiError as error:
            if error.response.get("error") != THREAD_GONE:
                raise
            return found  # the thread's first message was deleted
        found.add(list(answer.get("messages") or ()), run.id)
    return found


async def post(
    client: AsyncWebClient,
    message: Message,
    place: Place,
    *,
    about: dict[str, Any] | None = None,
    in_channel_too: bool = False,
) -> str:
    """Post a message and return its ts; with `in_channel_too`, a reply is shown in the channel as well.

    If Slack refuses the blocks, simpler ones are posted, in the end the text alone; if the thread is gone, the channel
    gets the message. Raises whatever the client raises for anything else.
    """
    try:
        answer = await client.chat_postMessage(
            channel=place.channel,
            text=message.text,
            blocks=list(message.blocks),
            thread_ts=place.thread_ts,
            reply_broadcast=(in_channel_too and place.thread_ts is not None) or None,
            metadata=about,
            unfurl_links=False,
        )
    except SlackApiError as error:
        code = error.response.get("error")
        if code in REFUSED_BLOCKS and message.blocks:
            log.error(
                "Slack refused the blocks; posting simpler ones or the text alone",
                text=message.text,
                answer=redacted_head(str(error), 500),
            )
            message = message.simpler()
        elif code == THREAD_GONE and place.thread_ts is not None:
            place = Place(channel=place.channel)
        else:
            raise
        return await post(client, message, place, about=about, in_channel_too=in_channel_too)
    return str(answer["ts"])


async def edit(
    client: AsyncWebClient, message: Message, *, channel: str, ts: str, about: dict[str, Any]
) -> None:
    """Edit a message. If Slack refuses the blocks, only the text is shown. Raises whatever the client raises otherwise."""
    try:
        await client.chat_update(
            channel=channel, ts=ts, text=message.text, blocks=list(message.blocks), metadata=about
        )
    except SlackApiError as error:
        if error.response.get("error") not in REFUSED_BLOCKS or not message.blocks:
            raise
        log.error(
            "Slack refused the blocks; showing simpler ones or the text alone",
            about=about,
            answer=redacted_head(str(error), 500),
        )
        await edit(client, message.simpler(), channel=channel, ts=ts, about=about)
