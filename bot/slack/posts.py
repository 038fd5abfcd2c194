"""Post and edit the bot's messages, and find the ones that an earlier process posted.

A `kill -9` between a post and its record, or an answer of Slack that got lost, would otherwise post twice. Each post carries
metadata with its key: after a restart, and after an answer that leaves it open whether the message was posted, the channel
or thread is read before the message is sent again.
"""

import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiohttp import ClientConnectorError, ClientError
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from bot.presenter.message import Message
from bot.store.records import ArtifactRecord, Place, RunRecord
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

RUN_EVENT = "gpu_oncall_run"
NOTE_EVENT = "gpu_oncall_note"
POST_EVENT = "gpu_oncall_post"
"""A message that belongs to no run: an alert, an incident's root, a report."""
PAGE = 200
MAX_PAGES = 25
CLOCK_SKEW_S = 3600.0
"""Slack's clock, which stamps messages, and ours differ by less than this; health warns long before."""
REFUSED_BLOCKS = frozenset({"invalid_blocks", "invalid_blocks_format", "msg_blocks_too_long"})
"""Slack's errors for blocks it does not accept. The message is then sent as text."""
THREAD_GONE = "thread_not_found"
NOT_EDITABLE = frozenset({"message_not_found", "cant_update_message", "edit_window_closed"})
"""Slack's errors for a message that no edit can change any more."""
SLACKS_OWN = frozenset({"internal_error", "fatal_error", "request_timeout", "service_unavailable"})
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


def is_ambiguous(error: BaseException) -> bool:
    """Return True if Slack may have carried out the call that failed so."""
    if isinstance(error, SlackApiError):
        return error.response.status_code >= 500 or error.response.get("error") in SLACKS_OWN
    return isinstance(error, SLACK_FAILURES) and not isinstance(error, ClientConnectorError)


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
                    # The newest: an older one may be a message that could not be edited any more.
                    self.message_ts = max(self.message_ts or "", str(message["ts"]))
                elif about.get("event_type") == NOTE_EVENT:
                    key = str(payload.get("key", ""))
                    self.notes[key] = max(self.notes.get(key, ""), str(message["ts"]))
            for file in message.get("files") or ():
                self.files[str(file.get("title", ""))] = str(file["id"])


async def find_posts(client: AsyncWebClient, run: RunRecord) -> Found:
    """Read the run's channel or thread and return its posts. Raises whatever the client raises."""
    found = Found(message_ts=run.message_ts)
    oldest = run.created_at - CLOCK_SKEW_S
    overridden = any(decision.decision == "override" for decision in run.decisions)
    if overridden or (run.message_ts is None and run.place.thread_ts is None):
        async for page in _pages(client, Place(channel=run.place.channel), oldest):
            found.add(page, run.id)
    root = run.place.thread_ts or found.message_ts
    if root is not None:
        async for page in _pages(client, Place(channel=run.place.channel, thread_ts=root), oldest):
            found.add(page, run.id)
    return found


async def _pages(client: AsyncWebClient, place: Place, oldest: float) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield the messages of a channel or thread since a time, page by page; none if the thread is gone."""
    cursor = ""
    for _ in range(MAX_PAGES):
        # Slack returns the oldest replies first, so without `oldest` a long incident's thread would hide the newest posts.
        asked: dict[str, Any] = {"oldest": f"{oldest:.6f}", "limit": PAGE, "include_all_metadata": True}
        if cursor:
            asked["cursor"] = cursor
        try:
            if place.thread_ts is None:
                answer = await client.conversations_history(channel=place.channel, **asked)
            else:
                answer = await client.conversations_replies(
                    channel=place.channel, ts=place.thread_ts, **asked
                )
        except SlackApiError as error:
            if error.response.get("error") != THREAD_GONE:
                raise
            return  # the thread's first message was deleted
        yield list(answer.get("messages") or ())
        cursor = str((answer.get("response_metadata") or {}).get("next_cursor") or "")
        if not cursor:
            return


@dataclass
class PostOnce:
    """A message that is posted once, however often `send` is tried: after an ambiguous answer the history is read first."""

    client: AsyncWebClient
    message: Message
    place: Place
    about: dict[str, Any] = field(default_factory=lambda: metadata(POST_EVENT, "", uuid.uuid4().hex))
    in_channel_too: bool = False
    tried_at: float | None = None

    async def send(self) -> str:
        """Post the message, or find it, and return its ts. Raises whatever the client raises; call it again then."""
        if self.tried_at is not None and (ts := await self._find(self.tried_at)):
            return ts
        began = time.time()
        try:
            return await _send(self.client, self.message, self.place, self.about, self.in_channel_too)
        except SLACK_FAILURES as error:
            if not is_ambiguous(error):
                raise
            self.tried_at = min(began, self.tried_at or began)
            log.warning(
                "no clear answer to a post; reading the history", error=redacted_head(repr(error), 200)
            )
            with contextlib.suppress(*SLACK_FAILURES):
                if ts := await self._find(self.tried_at):
                    return ts
            raise

    async def _find(self, since: float) -> str:
        for place in dict.fromkeys((self.place, Place(channel=self.place.channel))):
            async for page in _pages(self.client, place, since - CLOCK_SKEW_S):
                for message in page:
                    if message.get("metadata") == self.about:
                        return str(message["ts"])
        return ""


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
    gets the message. If it is unclear whether Slack posted it, the history is read. Raises whatever the client raises.
    """
    about = about or metadata(POST_EVENT, "", uuid.uuid4().hex)
    return await PostOnce(client, message, place, about, in_channel_too).send()


async def _send(
    client: AsyncWebClient, message: Message, place: Place, about: dict[str, Any], in_channel_too: bool
) -> str:
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
        return await _send(client, message, place, about, in_channel_too)
    return str(answer["ts"])


async def edit(
    client: AsyncWebClient, message: Message, *, channel: str, ts: str, about: dict[str, Any]
) -> Message:
    """Edit a message and return what Slack accepted: the message, or a simpler one if Slack refuses its blocks.

    Raises whatever the client raises otherwise.
    """
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
        return await edit(client, message.simpler(), channel=channel, ts=ts, about=about)
    return message
