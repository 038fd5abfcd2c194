"""From something that was seen to people who know it: alert, incident, triage with its card, and the rare automatic fallback.

Monitors and the Alertmanager webhook both end here. Slack may be away: the triage starts all the same, since evidence does not
wait, and the alert is posted when Slack is back.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from aiohttp import ClientError
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from bot.channels import Channels, ChannelUnknown
from bot.incidents import Incidents
from bot.presenter import alerts as texts
from bot.presenter.message import Message
from bot.presenter.verdict_card import verdict_of
from bot.presenter.view import View
from bot.records import IncidentRecord, Person, Place, RunRecord, UserError
from bot.runs import Runs
from bot.settings import MonitorSettings
from bot.store import Store
from gpu_actions.models import Frozen, Verdict, VerdictKind

log = structlog.get_logger()

MONITOR = Person(id="monitor", name="monitor")
FIRST_POST_S = 3.0
"""How long the triage waits for the alert to be posted first; the order looks better, but evidence is worth more."""
RETRY_FIRST_S, RETRY_MAX_S, GIVE_UP_S = 2.0, 30.0, 3600.0
TRIAGE_IS_YOUNG_S = 60.0
"""A triage of the same host that began within this time is not repeated for one more sign of the same burst."""

AWAY = (SlackApiError, SlackClientError, ClientError, OSError, TimeoutError, ChannelUnknown)


class Alarm(Frozen):
    """One thing that was seen. `key` is its burst's: the same again starts nothing new."""

    host: str
    cause: str
    title: str
    source: str
    reason: str
    verdict: VerdictKind
    key: str


class Alerts:
    """Tells people. `raise_alarm` and `say` return at once; the work goes on in tasks until `close`."""

    def __init__(
        self,
        client: AsyncWebClient,
        *,
        runs: Runs,
        store: Store,
        incidents: Incidents,
        settings: MonitorSettings,
        channel: str,
        view: Callable[[], View],
        acknowledged: Callable[[str, str], bool],
    ) -> None:
        self._client = client
        self._runs = runs
        self._store = store
        self._incidents = incidents
        self._settings = settings
        self._channel = channel
        self._channels = Channels(client)
        self._view = view
        self._acknowledged = acknowledged
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_at_a_time: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def warm(self) -> None:
        """Look the channel up while Slack answers. Never raises: it is tried again when it is needed."""
        try:
            await self._channels.id_of(self._channel)
        except AWAY as error:
            log.warning("the incident channel cannot be found", error=str(error)[:300])

    def raise_alarm(self, alarm: Alarm) -> None:
        """Open or join the incident, run triage, and say so."""
        self._spawn(self._handle(alarm))

    def say(self, host: str, message: Message) -> None:
        """Put a message into the thread of the host's open incident; nothing where none is open."""
        self._spawn(self._say(host, message))

    async def close(self) -> None:
        """Cut what is under way. Alarms that were not told are seen again by the monitors after the next start."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception:
                log.exception("an alert could not be handled")

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- one alarm -----------------------------------------------------------------------------------------------

    async def _handle(self, alarm: Alarm) -> None:
        async with self._one_at_a_time[
            alarm.host
        ]:  # two looks that see one fault must not open two incidents
            incident = await asyncio.to_thread(self._incidents.active, alarm.host)
            run = await (self._open(alarm) if incident is None else self._join(alarm, incident))
        if run is not None:
            await self._fall_back_by_itself(alarm, run.id)

    async def _open(self, alarm: Alarm) -> RunRecord | None:
        channel = await self._until_slack_answers(lambda: self._channels.id_of(self._channel))
        place = Place(channel=channel)
        if alarm.verdict is not VerdictKind.FALL_BACK:  # worth a look, no incident: the card alone
            return await self._triage(alarm, place, None)
        message = texts.alert(
            alarm.host,
            alarm.cause,
            title=alarm.title,
            source=alarm.source,
            reason=alarm.reason,
            verdict=alarm.verdict,
            view=self._view(),
        )
        posting = asyncio.create_task(self._until_slack_answers(lambda: self._post(place, message)))
        try:
            await asyncio.wait({posting}, timeout=FIRST_POST_S)
            run = await self._triage(alarm, place, None)
            thread = Place(channel=channel, thread_ts=await posting)
        finally:
            posting.cancel()
        await asyncio.to_thread(self._record, alarm, thread, run)
        return run

    def _record(self, alarm: Alarm, thread: Place, run: RunRecord | None) -> None:
        """Open the incident of an alert, or take the one that a card has opened in the meantime, and put the run into it."""
        try:
            incident = self._incidents.open(
                host=alarm.host, title=alarm.title, place=thread, by=MONITOR, cause=alarm.cause
            )
        except UserError:
            known = self._incidents.active(alarm.host)
            if known is None:
                return
            incident = known
        if run is not None and run.incident_id is None:
            self._incidents.join(incident.id, run.id)

    async def _join(self, alarm: Alarm, incident: IncidentRecord) -> RunRecord | None:
        text = f"{alarm.source}: {alarm.cause} ({alarm.reason})"
        await asyncio.to_thread(self._incidents.note, incident.id, by=MONITOR, text=text)
        self.say(alarm.host, texts.joined(alarm.cause, source=alarm.source, reason=alarm.reason))
        return await self._triage(alarm, incident.place, incident.id)

    async def _triage(self, alarm: Alarm, place: Place, incident_id: str | None) -> RunRecord | None:
        latest = self._runs.latest(action="triage", host=alarm.host)
        if (
            latest is not None
            and self._store.clock() - latest.created_at < TRIAGE_IS_YOUNG_S
            and (latest.requester.id == MONITOR.id or not latest.status.final)
        ):
            return latest
        try:
            started = await self._runs.start(
                action="triage",
                host=alarm.host,
                options={},
                requester=MONITOR,
                place=place,
                dedupe_key=f"alarm:{alarm.key}:{alarm.cause}",
                incident_id=incident_id,
            )
        except UserError as error:
            log.error("an alert could not start its triage", host=alarm.host, error=str(error))
            return None
        return started.run

    # -- the automatic fallback ----------------------------------------------------------------------------------

    async def _fall_back_by_itself(self, alarm: Alarm, triage_id: str) -> None:
        if alarm.cause not in self._settings.auto_fallback:
            return
        triage = await self._runs.wait(triage_id, until=lambda run: run.status.final)
        why = self.held_back(alarm.host, verdict_of(triage))
        incident = await asyncio.to_thread(self._incidents.active, alarm.host)
        if not why:
            try:
                started = await self._runs.start(
                    action="fallback",
                    host=alarm.host,
                    options={"reason": f"automatic: {alarm.cause}"},
                    requester=MONITOR,
                    place=incident.place if incident is not None else triage.place,
                    dedupe_key=f"auto:{alarm.key}",
                    incident_id=incident.id if incident is not None else None,
                )
            except UserError as error:
                why = str(error)
        if why:
            log.warning("no automatic fallback", host=alarm.host, cause=alarm.cause, why=why)
            self.say(alarm.host, texts.holds_back(alarm.host, alarm.cause, why))
            return
        if started.duplicate:
            return
        log.warning("automatic fallback", host=alarm.host, cause=alarm.cause, run=started.run.id)
        loud = texts.falls_back_by_itself(alarm.host, alarm.cause, started.run.id, self._view())
        place = Place(channel=triage.place.channel)
        await self._until_slack_answers(lambda: self._post(place, loud))

    def held_back(self, host: str, verdict: Verdict | None) -> str:
        """Which guard rail keeps a fallback from starting by itself, in words; empty when none does."""
        if verdict is None or verdict.verdict is not VerdictKind.FALL_BACK:
            says = (
                "came to no verdict" if verdict is None else f"says {verdict.verdict.value.replace('_', ' ')}"
            )
            return f"a fresh triage {says}"
        if verdict.cause not in self._settings.auto_fallback:
            return f"a fresh triage says {verdict.cause}, which is not in monitors.auto_fallback"
        if self._acknowledged(host, verdict.cause):
            return "somebody acknowledged it, so people are at work"
        last = self._runs.latest(action="fallback", host=host)
        pause_s = self._settings.auto_fallback_pause_s
        if last is not None and self._store.clock() - last.created_at < pause_s:
            return (
                f"{last.id} was started less than {pause_s / 3600:g} h ago (monitors.auto_fallback_pause_s)"
            )
        return ""

    # -- Slack ---------------------------------------------------------------------------------------------------

    async def _say(self, host: str, message: Message) -> None:
        incident = await asyncio.to_thread(self._incidents.active, host)
        if incident is not None:
            await self._until_slack_answers(lambda: self._post(incident.place, message))

    async def _post(self, place: Place, message: Message) -> str:
        answer = await self._client.chat_postMessage(
            channel=place.channel,
            thread_ts=place.thread_ts,
            text=message.text,
            blocks=list(message.blocks),
            unfurl_links=False,
        )
        return str(answer["ts"])

    async def _until_slack_answers(self, ask: Callable[[], Coroutine[Any, Any, str]]) -> str:
        """Ask Slack until it answers. Raises the last failure after an hour."""
        pause_s, waited_s = RETRY_FIRST_S, 0.0
        while True:
            try:
                return await ask()
            except AWAY as error:
                if waited_s >= GIVE_UP_S:
                    raise
                log.warning("Slack did not take an alert, trying again", error=str(error)[:300])
                with contextlib.suppress(ValueError):
                    if isinstance(error, SlackApiError) and error.response.status_code == 429:
                        pause_s = max(pause_s, float(error.response.headers.get("Retry-After", "1")))
            await asyncio.sleep(pause_s)
            waited_s += pause_s
            pause_s = min(2 * pause_s, RETRY_MAX_S)
