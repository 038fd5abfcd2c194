"""Publish an incident's report: written to the state folder, posted in the incident's thread, pinned to its channel.

People edit the Markdown as a canvas where the workspace allows one, and as a file otherwise.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

import structlog
from slack_sdk.web.async_client import AsyncWebClient

from bot.incidents.artifacts import ArtifactStore
from bot.incidents.incidents import Incidents
from bot.incidents.report.collect import read_facts, write_report
from bot.presenter import incidents as texts
from bot.slack.canvas import create_canvas
from bot.slack.identity import Identity
from bot.slack.posts import SLACK_FAILURES, post
from bot.store.records import IncidentRecord, Person
from bot.store.store import Store
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

BOT = Person(id="bot", name="gpu-oncall")
MAX_TITLE = 150


@dataclass(frozen=True, kw_only=True)
class Reports:
    """Writes and publishes reports."""

    client: AsyncWebClient
    store: Store
    artifacts: ArtifactStore
    incidents: Incidents
    folder: Path
    identity: Identity

    async def publish(self, incident: IncidentRecord, *, by: Person) -> str:
        """Write the report and post it in the incident's thread. Return where it is if Slack does not take it, else ''."""
        paths = await asyncio.to_thread(write_report, self.store, self.artifacts, incident.id, self.folder)
        facts = await asyncio.to_thread(read_facts, self.store, incident.id)
        self.incidents.decide(incident.id, by=by, what="report", text="report written")
        try:
            canvas = await self._canvas(incident, paths[0])
            ts = await post(self.client, texts.report(facts, canvas=canvas), incident.place)
            thread = incident.place.thread_ts or ts
            for path in paths[1:] if canvas else paths:
                await self.client.files_upload_v2(
                    file=str(path),
                    filename=path.name,
                    title=path.name,
                    channel=incident.place.channel,
                    thread_ts=thread,
                )
        except SLACK_FAILURES as error:
            log.error(
                "a report could not be posted", incident=incident.id, error=redacted_head(str(error), 300)
            )
            return str(self.folder / f"{incident.id}.html")
        try:
            await self.client.pins_add(channel=incident.place.channel, timestamp=ts)
        except SLACK_FAILURES as error:
            log.warning(
                "a report could not be pinned", incident=incident.id, error=redacted_head(str(error), 300)
            )
        await self._bookmark(incident, ts)
        return ""

    async def _canvas(self, incident: IncidentRecord, path: Path) -> str:
        """Return the link of a canvas with the report, or an empty string where the workspace allows none."""
        markdown = await asyncio.to_thread(path.read_text)
        title = f"{incident.id}: {incident.title}"[:MAX_TITLE]
        try:
            return await create_canvas(
                self.client, self.identity, title=title, markdown=markdown, channel=incident.place.channel
            )
        except SLACK_FAILURES as error:
            log.info("no canvas", incident=incident.id, error=redacted_head(str(error), 300))
            return ""

    async def _bookmark(self, incident: IncidentRecord, ts: str) -> None:
        """Put the newest report at the top of the incident's own channel."""
        room = await asyncio.to_thread(self.incidents.room, incident.id)
        if room is None or not room.get("status_ts"):
            return
        channel = incident.place.channel
        try:
            link = str((await self.client.chat_getPermalink(channel=channel, message_ts=ts))["permalink"])
            if known := room.get("bookmark"):
                await self.client.bookmarks_edit(bookmark_id=known, channel_id=channel, link=link)
                return
            answer = await self.client.bookmarks_add(
                channel_id=channel, title="Report", type="link", link=link
            )
        except SLACK_FAILURES as error:
            log.warning("no bookmark", incident=incident.id, error=redacted_head(str(error), 300))
            with contextlib.suppress(*SLACK_FAILURES):
                await post(self.client, texts.no_bookmark(), incident.place)
            return
        self.incidents.decide(
            incident.id, by=BOT, what="room", text="report bookmarked", bookmark=str(answer["bookmark"]["id"])
        )
