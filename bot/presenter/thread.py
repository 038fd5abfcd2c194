"""What the bot has put into Slack for a run, found again by its metadata: the message, the notes, the pictures.

A `kill -9` between a post and its record would otherwise post twice. Each of our posts carries metadata with the run's id and
its key; the thread is read once for each run after a restart.
"""

from dataclasses import dataclass, field
from typing import Any

from slack_sdk.web.async_client import AsyncWebClient

from bot.presenter.message import Message
from bot.records import ArtifactRecord, RunRecord

RUN_EVENT = "gpu_oncall_run"
NOTE_EVENT = "gpu_oncall_note"
LOOK_BACK = 200


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
    if run.message_ts is None and run.place.thread_ts is None:
        answer = await client.conversations_history(
            channel=run.place.channel,
            oldest=f"{run.created_at - 5:.6f}",
            limit=LOOK_BACK,
            include_all_metadata=True,
        )
        _look(list(answer.get("messages") or ()), run, found)
    root = run.place.thread_ts or found.message_ts
    if root is not None:
        answer = await client.conversations_replies(
            channel=run.place.channel, ts=root, limit=LOOK_BACK, include_all_metadata=True
        )
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
    """Post a message with its metadata; gives its ts."""
    answer = await client.chat_postMessage(
        channel=channel,
        text=message.text,
        blocks=list(message.blocks),
        thread_ts=thread_ts,
        metadata=about,
        unfurl_links=False,
    )
    return str(answer["ts"])
