"""Everything Slack shows of one run: its one message, and the notes and pictures in its thread, each posted once."""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from bot.incidents.incidents import Incidents
from bot.presenter.approval_request import outdated_request
from bot.presenter.message import Message
from bot.presenter.render_context import RenderContext
from bot.presenter.run_message import run_message
from bot.presenter.thread_notes import ASK, REMIND, override_notice, thread_notes
from bot.presenter.verdict_card import verdict_of
from bot.presenter.vocabulary import diagnoses
from bot.slack.posts import (
    NOT_EDITABLE,
    NOTE_EVENT,
    RUN_EVENT,
    SLACK_FAILURES,
    edit,
    file_title,
    find_posts,
    is_ambiguous,
    metadata,
    post,
    retry_after_s,
)
from bot.store.records import ArtifactRecord, Place, RunRecord, RunStatus, UserError
from bot.store.store import Store
from gpu_actions.models import VerdictKind
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

UPLOAD_S = 60.0
UPLOAD_TRIES = 3
"""A picture is given up after this many tries; the message has its link."""


@dataclass(eq=False)
class RunPosts:
    """The posts of one run as this process knows them.

    `spend_edit` is called before each edit. `digest` identifies what the message shows now; empty before the first post.
    """

    client: AsyncWebClient
    store: Store
    incidents: Incidents
    spend_edit: Callable[[], None]
    digest: str = ""

    def __post_init__(self) -> None:
        self._edits = 0
        self._searched = self._in_doubt = self._only_plain = False
        self._notes: dict[str, str] = {}
        self._shown: dict[str, str] = {}
        self._files: dict[str, str] = {}
        self._upload_tries: Counter[str] = Counter()

    async def show(self, run: RunRecord, context: RenderContext, *, search: bool) -> None:
        """Post or edit whatever differs from the run's record. Raises whatever the Slack client raises.

        With `search`, first find what an earlier process posted.
        """
        if (search or self._in_doubt) and not self._searched:
            found = await find_posts(self.client, run)
            self._notes, self._files = self._notes | found.notes, self._files | found.files
            if found.message_ts is not None and run.message_ts is None:
                await asyncio.to_thread(self.store.set_message_ts, run.id, found.message_ts)
        self._searched, self._in_doubt = True, False
        await self._show_message(run, context)
        message_ts = await self._message_ts(run)
        root = run.place.thread_ts or message_ts
        await self._open_incident(run, root)
        notes = thread_notes(run, context)
        for note in notes:
            message = note.message.renamed(context.commands)
            if note.key in self._notes:
                await self._edit_note(run, note.key, message, thread_ts=root)
            elif not note.if_posted:
                await self._post_note(run, note.key, message, thread_ts=root)
        for key in self._notes.keys() - {note.key for note in notes}:
            if key.startswith((ASK, REMIND)):  # its plan was replaced
                await self._edit_note(run, key, outdated_request(run), thread_ts=root)
        if (notice := override_notice(run)) is not None:
            await self._post_note(run, "override", notice, thread_ts=None)
        await self._upload_pictures(run, root)

    async def _post(self, message: Message, place: Place, about: dict[str, Any]) -> str:
        """Post a message. After an ambiguous failure the next `show` first looks for what was posted."""
        try:
            return await post(self.client, message, place, about=about)
        except SLACK_FAILURES as error:
            if is_ambiguous(error):
                self._in_doubt, self._searched = True, False
            raise

    async def _message_ts(self, run: RunRecord) -> str | None:
        ts: str | None = (await asyncio.to_thread(self.store.row, run.id)).message_ts
        return ts

    async def _show_message(self, run: RunRecord, context: RenderContext) -> None:
        message = run_message(run, context).renamed(context.commands)
        digest = _digest(message)
        if digest == self.digest:
            return
        ts = await self._message_ts(run)
        self._edits += 1
        stamped = message.stamped(f"{run.id}.{run.version}.{self._edits}")
        if (
            self._only_plain
        ):  # Slack refused a plan, a table or a chart once: asking again costs a call at each edit
            stamped = stamped.plain()
        channel, about = run.place.channel, metadata(RUN_EVENT, run.id)
        if ts is None:
            ts = await self._post(stamped, run.place, about)
            await asyncio.to_thread(self.store.set_message_ts, run.id, ts)
        else:
            self.spend_edit()
            try:
                shown = await edit(self.client, stamped, channel=channel, ts=ts, about=about)
                self._only_plain = self._only_plain or shown is not stamped
            except SlackApiError as error:
                if error.response.get("error") not in NOT_EDITABLE:
                    raise
                log.warning("a message cannot be edited; a new one takes over", run=run.id)
                await asyncio.to_thread(self.store.update_run, run.id, message_ts=None)
                about = metadata(RUN_EVENT, run.id, f"after:{ts}")
                ts = await self._post(stamped, run.place, about)
                await asyncio.to_thread(self.store.set_message_ts, run.id, ts)
        self.digest = digest

    async def _open_incident(self, run: RunRecord, root: str | None) -> None:
        """Make a card that says fall back the root of its host's incident, or put it into the open one."""
        verdict = verdict_of(run)
        if not diagnoses(run.action) or run.status is not RunStatus.SUCCEEDED or run.incident_id is not None:
            return
        if verdict is None or verdict.verdict is not VerdictKind.FALL_BACK:
            return
        incident = await asyncio.to_thread(self.incidents.active, run.host)
        if incident is None:
            with contextlib.suppress(UserError):  # another process opened one at this moment
                incident = await asyncio.to_thread(
                    self.incidents.open,
                    host=run.host,
                    title=f"{verdict.cause} on {run.host}",
                    place=Place(channel=run.place.channel, thread_ts=root),
                    by=run.requester,
                    cause=verdict.cause,
                )
        if incident is not None:
            await asyncio.to_thread(self.incidents.join, incident.id, run.id)

    async def _post_note(self, run: RunRecord, key: str, message: Message, *, thread_ts: str | None) -> None:
        delivery = f"note:{run.id}:{key}"
        if key in self._notes or await asyncio.to_thread(self.store.deliveries.seen, delivery):
            return
        about = metadata(NOTE_EVENT, run.id, key)
        place = Place(channel=run.place.channel, thread_ts=thread_ts)
        self._notes[key] = await self._post(message, place, about)
        self._shown[key] = _digest(message)
        await asyncio.to_thread(self.store.deliveries.first_time, delivery)

    async def _edit_note(self, run: RunRecord, key: str, message: Message, *, thread_ts: str | None) -> None:
        """Edit a request whose state has changed; every other note stays as it was posted."""
        if not key.startswith((ASK, REMIND)) or self._shown.get(key) == _digest(message):
            return
        self.spend_edit()
        self._edits += 1
        stamped = message.stamped(f"{run.id}.{key}.{self._edits}")
        about = metadata(NOTE_EVENT, run.id, key)
        try:
            await edit(self.client, stamped, channel=run.place.channel, ts=self._notes[key], about=about)
        except SlackApiError as error:
            code = error.response.get("error")
            if code not in NOT_EDITABLE:
                raise
            if code != "message_not_found":  # that one was deleted by a person: there is nothing to edit
                place = Place(channel=run.place.channel, thread_ts=thread_ts)
                self._notes[key] = await self._post(stamped, place, about)
        self._shown[key] = _digest(message)

    async def _upload_pictures(self, run: RunRecord, root: str | None) -> None:
        for record in run.artifacts:
            if not record.artifact.inline or record.slack_file_id is not None:
                continue
            title = file_title(record)
            file_id = self._files.get(title) or await self._upload(run, record, title, root)
            if file_id:
                self._files[title] = file_id
                await asyncio.to_thread(self.store.set_file_id, record.id, file_id)

    async def _upload(self, run: RunRecord, record: ArtifactRecord, title: str, root: str | None) -> str:
        """Upload one picture and return its file id, or an empty string if Slack refuses it: the message has its link."""
        if not record.artifact.path.is_file() or self._upload_tries[title] >= UPLOAD_TRIES:
            return ""
        self._upload_tries[title] += 1
        try:
            async with asyncio.timeout(UPLOAD_S):
                answer = await self.client.files_upload_v2(
                    file=str(record.artifact.path),
                    filename=record.artifact.name,
                    title=title,
                    channel=run.place.channel,
                    thread_ts=root,
                )
        except SLACK_FAILURES as error:
            if retry_after_s(error) is not None:
                self._upload_tries[title] -= 1
                raise
            refused = isinstance(error, SlackApiError) and not is_ambiguous(error)
            if refused:
                self._upload_tries[title] = UPLOAD_TRIES
            log.error("a picture could not be uploaded", run=run.id, error=redacted_head(repr(error), 300))
            if self._upload_tries[title] >= UPLOAD_TRIES:
                return ""
            self._in_doubt, self._searched = True, False
            raise
        files = answer.get("files") or [answer.get("file") or {}]
        return str(files[0].get("id", ""))


def _digest(message: Message) -> str:
    return hashlib.sha256(repr((message.text, message.blocks)).encode()).hexdigest()
