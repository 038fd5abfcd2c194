"""A channel for each incident, if the settings ask for it: created, with topic, pinned status and the people of the roles.

A reconciler: each pass looks at the incidents and does what is missing, so a restart between two calls needs no special case.
What Slack refuses is told in the incident's thread, and without a channel the thread is used.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from bot.incidents.incidents import Incidents
from bot.presenter import incidents as texts
from bot.presenter.render_context import RenderContext
from bot.settings.model import SlackSettings
from bot.slack.access import Access
from bot.slack.channels import Channels
from bot.slack.edit_budget import BudgetSpent
from bot.slack.posts import (
    NOT_EDITABLE,
    POST_EVENT,
    SLACK_FAILURES,
    PostOnce,
    edit,
    is_ambiguous,
    metadata,
    retry_after_s,
)
from bot.store.records import IncidentRecord, IncidentStatus, Person, Place
from bot.store.store import Store
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

PASS_S = 2.0
RETRY_S = 10.0
RECENT = 20
BOT = Person(id="bot", name="gpu-oncall")
DONE_BEFORE = frozenset({"already_in_channel", "already_pinned"})


class IncidentRooms:
    """Makes the channels of incidents and keeps their pinned status up to date; run `run()` as a task until the end."""

    def __init__(
        self,
        client: AsyncWebClient,
        *,
        store: Store,
        incidents: Incidents,
        access: Access,
        settings: SlackSettings,
        render_context: Callable[[], RenderContext],
        spend_edit: Callable[[], None],
    ) -> None:
        self._client, self._store, self._incidents = client, store, incidents
        self._access, self._settings = access, settings
        self._context, self._spend_edit = render_context, spend_edit
        self._shown: dict[str, str] = {}

    async def run(self) -> None:
        """Look at the incidents again and again until cancelled."""
        while True:
            pause_s = PASS_S
            try:
                await self._pass()
            except BudgetSpent as spent:
                pause_s = spent.wait_s
            except SLACK_FAILURES as error:
                pause_s = retry_after_s(error) or RETRY_S
                log.warning("an incident's channel has to wait", error=redacted_head(repr(error), 300))
            await asyncio.sleep(max(pause_s, PASS_S))

    async def _pass(self) -> None:
        for incident in await asyncio.to_thread(self._incidents.newest, limit=RECENT):
            room = await asyncio.to_thread(self._incidents.room, incident.id)
            if room is None:
                if incident.status is IncidentStatus.OPEN:
                    await self._open(incident)
            elif room.get("status_ts") and not room.get("closed"):
                await self._show(incident, room["status_ts"])

    async def _open(self, incident: IncidentRecord) -> None:
        """Make the channel, fill it, then move the incident there. Each call may be repeated."""
        thread, name = incident.place, texts.room_name(incident)
        try:
            channel = await self._created(name)
        except SlackApiError as error:
            if not _is_refusal(error):
                raise
            problem = _why("conversations.create", error)
            await self._once(texts.no_room(incident, problem), thread, f"noroom:{incident.id}", incident)
            await asyncio.to_thread(
                self._incidents.decide, incident.id, by=BOT, what="room", text=problem, refused=problem
            )
            return
        room = Place(channel=channel)
        status = texts.room_status(incident, [], self._context()).renamed(self._context().commands)
        ts = await self._once(status, room, f"room:{incident.id}", incident)
        people = await self._people(incident)
        missing = [
            problem
            for problem in (
                await self._tried(
                    "conversations.setTopic",
                    lambda: self._client.conversations_setTopic(
                        channel=channel, topic=texts.room_topic(incident)
                    ),
                ),
                await self._tried(
                    "conversations.invite",
                    lambda: self._client.conversations_invite(channel=channel, users=people, force=True),
                )
                if people
                else "",
                await self._tried("pins.add", lambda: self._client.pins_add(channel=channel, timestamp=ts)),
            )
            if problem
        ]
        await self._once(
            texts.room_opened(incident, channel, missing), thread, f"moved:{incident.id}", incident
        )
        await asyncio.to_thread(self._incidents.move, incident.id, room, by=BOT, status_ts=ts)

    async def _created(self, name: str) -> str:
        """Create the channel, or find the one that an earlier try created. Return its id."""
        try:
            return str((await self._client.conversations_create(name=name))["channel"]["id"])
        except SlackApiError as error:
            if error.response.get("error") != "name_taken":
                raise
        return await Channels(self._client).id_of(name)

    async def _people(self, incident: IncidentRecord) -> list[str]:
        """Return the ids of the people to invite: the roles of the settings, and who opened the incident."""
        found = [
            user for role in self._settings.incident_invite for user in await self._access.members_of(role)
        ]
        return list(
            dict.fromkeys([*found, *([incident.opened_by.id] if incident.opened_by.id[:1] in "UW" else [])])
        )

    async def _tried(self, method: str, call: Callable[[], Awaitable[Any]]) -> str:
        """Call a method. Return why Slack refuses it, or an empty string."""
        try:
            await call()
        except SlackApiError as error:
            if error.response.get("error") in DONE_BEFORE:
                return ""
            if not _is_refusal(error):
                raise
            log.warning(
                "Slack refused a part of an incident's channel", method=method, error=_why(method, error)
            )
            return _why(method, error)
        return ""

    async def _once(self, message: Any, place: Place, key: str, incident: IncidentRecord) -> str:
        """Post a message, or find the one that an earlier try posted. Return its ts."""
        about = metadata(POST_EVENT, "", key)
        return await PostOnce(self._client, message, place, about, tried_at=incident.opened_at).send()

    async def _show(self, incident: IncidentRecord, ts: str) -> None:
        """Edit the pinned status if it says something else now; with the incident's end, the topic too."""
        listed = await asyncio.to_thread(self._store.list, host=incident.host, limit=10)
        runs = [run for run in listed if run.incident_id == incident.id]
        context = self._context()
        message = texts.room_status(incident, runs, context).renamed(context.commands)
        is_over, channel = incident.status is not IncidentStatus.OPEN, incident.place.channel
        if self._shown.get(incident.id) != repr(message):
            self._spend_edit()
            about = metadata(POST_EVENT, "", f"room:{incident.id}")
            try:
                await edit(self._client, message, channel=channel, ts=ts, about=about)
            except SlackApiError as error:
                if error.response.get("error") not in NOT_EDITABLE:
                    raise
            self._shown[incident.id] = repr(message)
        if is_over:
            topic = texts.room_topic(incident)
            await self._tried(
                "conversations.setTopic",
                lambda: self._client.conversations_setTopic(channel=channel, topic=topic),
            )
            await asyncio.to_thread(
                self._incidents.decide, incident.id, by=BOT, what="room", text="channel closed", closed="yes"
            )


def _is_refusal(error: SlackApiError) -> bool:
    """Return True if Slack will refuse the call again."""
    return retry_after_s(error) is None and not is_ambiguous(error)


def _why(method: str, error: SlackApiError) -> str:
    needed = error.response.get("needed")
    return f"Slack refuses {method} ({error.response.get('error')}{f', needs {needed}' if needed else ''})"
