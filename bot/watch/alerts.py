"""From something that was seen to people who know it: alert, incident, triage with its card, and the rare automatic fallback.

Monitors and the Alertmanager webhook both end here. Slack may be away: the triage starts all the same, since evidence does not
wait, and the alert is posted when Slack is back.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog
from aiohttp import ClientError
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from bot.incidents.incidents import Incidents
from bot.presenter import alerts as texts
from bot.presenter.message import Message
from bot.presenter.verdict_card import verdict_of
from bot.presenter.view import View
from bot.runs.runs import Runs
from bot.settings.model import MonitorSettings
from bot.slack.channels import Channels, ChannelUnknown
from bot.store.records import IncidentRecord, Person, Place, RunRecord, UserError
from bot.store.store import Store
from bot.watch.auto_fallback import held_back
from bot.watch.undelivered_alerts import Alarm, UntoldAlarms
from gpu_actions.models import VerdictKind
from gpu_actions.triage.rule import rank_of_verdict

log = structlog.get_logger()

MONITOR = Person(id="monitor", name="monitor")
FIRST_POST_S = 3.0
"""How long the triage waits for the alert to be posted first; the order looks better, but evidence is worth more."""
RETRY_FIRST_S, RETRY_MAX_S, GIVE_UP_S = 2.0, 30.0, 3600.0
TRIAGE_IS_YOUNG_S = 60.0
"""A triage that began within this time before an alarm is not repeated for one more sign of the same burst."""
SAME_MOMENT_S = 15.0
"""Within this time a triage stands for the alarm whatever it says; after it, only if it saw as much (a stall that has become a
reason to fall back needs a card of its own, with the button)."""

AWAY = (SlackApiError, SlackClientError, ClientError, OSError, TimeoutError, ChannelUnknown)


class Alerts:
    """Tells people. `raise_alarm` and `say` return at once; the work goes on in tasks until `close`.

    An alarm is a row until it is told; `retry` takes up those that nothing in this process is telling.
    """

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
        self._untold = UntoldAlarms(store)
        self._telling: set[str] = set()
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
        if alarm.id not in self._telling:
            self._telling.add(alarm.id)
            self._spawn(self._handle(alarm))

    async def keep(self, alarms: Iterable[Alarm]) -> None:
        """Keep alarms over a restart, until they are told."""
        await asyncio.to_thread(self._untold.keep, tuple(alarms))

    async def retry(self) -> None:
        """Tell what an earlier process, or an hour without Slack, has left untold."""
        for alarm in await asyncio.to_thread(self._untold.all):
            self.raise_alarm(alarm)

    def say(self, host: str, message: Message) -> None:
        """Put a message into the thread of the host's open incident; nothing where none is open."""
        self._spawn(self._say(host, message))

    async def close(self) -> None:
        """Cut what is under way. Alarms that were not told are told after the next start."""
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
        try:
            await self.keep([alarm])
            async with self._one_at_a_time[alarm.host]:  # two looks at one fault must not open two incidents
                incident = await asyncio.to_thread(self._incidents.active, alarm.host)
                run = await (self._open(alarm) if incident is None else self._join(alarm, incident))
            await asyncio.to_thread(self._untold.told, alarm)
        finally:
            self._telling.discard(alarm.id)
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
        message = texts.joined(alarm.host, alarm.cause, source=alarm.source, reason=alarm.reason)
        # in the thread of an incident of yesterday nobody would see a new reason to fall back
        late = alarm.at_s - incident.opened_at > self._settings.burst_s
        loud = late and alarm.verdict is VerdictKind.FALL_BACK
        self._spawn(self._say(alarm.host, message, in_channel_too=loud))
        return await self._triage(alarm, incident.place, incident.id)

    async def _triage(self, alarm: Alarm, place: Place, incident_id: str | None) -> RunRecord | None:
        latest = self._runs.latest(action="triage", host=alarm.host)
        if latest is not None and self._stands_for(latest, alarm):
            return latest
        try:
            started = await self._runs.start(
                action="triage",
                host=alarm.host,
                options={} if alarm.window_s is None else {"window": f"{alarm.window_s:g}"},
                requester=MONITOR,
                place=place,
                dedupe_key=f"alarm:{alarm.id}",
                incident_id=incident_id,
            )
        except UserError as error:
            log.error("an alert could not start its triage", host=alarm.host, error=str(error))
            return None
        return started.run

    def _stands_for(self, triage: RunRecord, alarm: Alarm) -> bool:
        """Whether a triage that was there before shows what the alarm is about."""
        age_s = alarm.at_s - triage.created_at
        if age_s >= TRIAGE_IS_YOUNG_S or (triage.requester.id != MONITOR.id and triage.status.final):
            return False
        if age_s < SAME_MOMENT_S or not triage.status.final:
            return True
        verdict = verdict_of(triage)
        return verdict is not None and rank_of_verdict(verdict.verdict) >= rank_of_verdict(alarm.verdict)

    # -- the automatic fallback ----------------------------------------------------------------------------------

    async def _fall_back_by_itself(self, alarm: Alarm, triage_id: str) -> None:
        if alarm.cause not in self._settings.auto_fallback:
            return
        triage = await self._runs.wait(triage_id, until=lambda run: run.status.final)
        why = await asyncio.to_thread(self._held_back, alarm, triage)
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

    def _held_back(self, alarm: Alarm, triage: RunRecord) -> str:
        verdict = verdict_of(triage)
        causes = [alarm.cause, *([verdict.cause] if verdict is not None else [])]
        return held_back(
            self._settings,
            triage=triage,
            acknowledged=next((cause for cause in causes if self._acknowledged(alarm.host, cause)), ""),
            fallback=self._runs.latest(action="fallback", host=alarm.host),
            restore=self._runs.latest(action="restore", host=alarm.host),
            now_s=self._store.clock(),
        )

    # -- Slack ---------------------------------------------------------------------------------------------------

    async def _say(self, host: str, message: Message, *, in_channel_too: bool = False) -> None:
        incident = await asyncio.to_thread(self._incidents.active, host)
        if incident is not None:
            place = incident.place
            await self._until_slack_answers(
                lambda: self._post(place, message, in_channel_too=in_channel_too and bool(place.thread_ts))
            )

    async def _post(self, place: Place, message: Message, *, in_channel_too: bool = False) -> str:
        answer = await self._client.chat_postMessage(
            channel=place.channel,
            thread_ts=place.thread_ts,
            reply_broadcast=in_channel_too or None,
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
