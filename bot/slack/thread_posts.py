"""What the bot has put into Slack for a run, found again by its metadata: the message, the notes, the pictures.

A `kill -9` between a post and its record would otherwise post twice. Each of our posts carries metadata with the run's id and
its key; the thread is read once for each run after a restart.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from bot.presenter.message import Message
from bot.store.records import ArtifactRecord, RunRecord

log = structlog.get_logger()

RUN_EVENT = "gpu_oncall_run"
NOTE_EVENT = "gpu_oncall_note"
LOOK_BACK = 200
REFUSED_BLOCKS = frozenset({"invalid_blocks", "invalid_blocks_format", "msg_blocks_too_long"})
"""Slack's words for blocks that it does not take. They cost the picture, never the message."""
THREAD_GONE = "thread_not_found"


def metadata(event: str, run_id: str, key: str = "") -> dict[str, Any]:
    """The metadata that our posts carry."""
    return {"event_type": event, "event_payload": {"run_id": run_id, "key": key}}


def file_title(record: ArtifactRecord) -> str:
    """The title under which an artifact is uploaded; it names the run, so that it can be found again."""
    return f"{record.artifact.title or record.artifact.name} ({record.run_id})"


@dataclass
class Found:
    """What was found in Slack of a run."""

    message_ts: str | None = None
    notes: set[str] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)
    """Title -> file id."""


def _look(messages: list[dict[str, Any]], run: RunRecord, found: Found) -> None:
    for message in messages:
        about = message.get("metadata") or {}
        payload = about.get("event_payload") or {}
        if payload.get("run_id") == run.id:
            if about.get("event_type") == RUN_EVENT:
                found.message_ts = str(message["ts"])
            elif about.get("event_type") == NOTE_EVENT:
                found.notes.add(str(payload.get("key", "")))
        for file in message.get("files") or ():
            found.files[str(file.get("title", ""))] = str(file["id"])


async def find_posts(client: AsyncWebClient, run: RunRecord) -> Found:
    """Read the run's channel or thread and give what of the run stands there. Raises what the client raises."""
    found = Found(message_ts=run.message_ts)
    oldest = f"{run.created_at - 5:.6f}"
    shouted = any(decision.decision == "override" for decision in run.decisions)
    if shouted or (run.message_ts is None and run.place.thread_ts is None):
        answer = await client.conversations_history(
            channel=run.place.channel,
            oldest=oldest,
            limit=LOOK_BACK,
            include_all_metadata=True,
        )
        _look(list(answer.get("messages") or ()), run, found)
    root = run.place.thread_ts or found.message_ts
    if root is not None:
        try:
            # Slack gives the oldest replies first: in a long incident's thread ours are behind the first page.
            answer = await client.conversations_replies(
                channel=run.place.channel, ts=root, oldest=oldest, limit=LOOK_BACK, include_all_metadata=True
            )
        except SlackApiError as error:
            if error.response.get("error") != THREAD_GONE:
                raise
            return found  # somebody deleted the thread's first message
        _look(list(answer.get("messages") or ()), run, found)
    return found


async def post(
    client: AsyncWebClient,
    message: Message,
    *,
    channel: str,
    thread_ts: str | None,
    about: dict[str, Any],
) -> str:
    """Post a message with its metadata; gives its ts.

    Blocks that Slack refuses leave the text standing; where the thread is gone, the channel takes it. Raises what the client
    raises for anything else.
    """
    try:
        answer = await client.chat_postMessage(
            channel=channel,
            text=message.text,
            blocks=list(message.blocks),
            thread_ts=thread_ts,
            metadata=about,
            unfurl_links=False,
        )
    except SlackApiError as error:
        code = error.response.get("error")
        if code in REFUSED_BLOCKS and message.blocks:
            log.error("slack refused the blocks; the text stands alone", about=about, answer=str(error)[:500])
            message = replace(message, blocks=())
        elif code == THREAD_GONE and thread_ts is not None:
            thread_ts = None
        else:
            raise
        return await post(client, message, channel=channel, thread_ts=thread_ts, about=about)
    return str(answer["ts"])
