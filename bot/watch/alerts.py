"""Turn an alert into what people need: a message, an incident, a triage with its card, and rarely an automatic fallback.

Monitors and the Alertmanager webhook both end here. If Slack is away the triage starts anyway, because evidence does not
wait, and the alert is posted when Slack is back.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import structlog
from slack_sdk.web.async_client import AsyncWebClient

from bot.incidents.incidents import Incidents
from bot.presenter import alerts as texts
from bot.presenter.message import Message
from bot.presenter.render_context import RenderContext
from bot.presenter.verdict_card import verdict_of
from bot.runs.runs import Runs
from bot.settings.model import MonitorSettings
from bot.slack.channels import Channels
from bot.slack.posts import post
from bot.slack.retry import AWAY, until_accepted
from bot.store.records import Alert, IncidentRecord, Person, Place, RunRecord, UserError
from bot.store.store import Store
from bot.watch.auto_fallback import why_not
from bot.watch.undelivered_alerts import UndeliveredAlerts
from gpu_actions.models import VerdictKind
from gpu_actions.system.redact import redacted_head
from gpu_actions.triage.rule import rank_of_verdict

log = structlog.get_logger()

MONITOR = Person(id="monitor", name="monitor")
FIRST_POST_S = 3.0
"""The triage waits this long for the alert to be posted first. That reads better, but evidence matters more."""
RECENT_TRIAGE_S = 60.0
"""A triage that started within this time before an alert may serve for it."""
SAME_MOMENT_S = 15.0
"""Within this time a triage serves for an alert whatever its verdict; later, only if its verdict is at least as bad: a stall
that has become a reason to fall back needs its own card, with the button."""


@dataclass(eq=False)
class Alerts:
    """Reports alerts to people. `report` and `say` return at once; the work continues in tasks until `close`.

    An alert is a row until it is delivered; `retry` resumes those that no task of this process is delivering.
    """

    client: AsyncWebClient
    _: KW_ONLY
    runs: Runs
    store: Store
    incidents: Incidents
    settings: MonitorSettings
    channel: str
    render_context: Callable[[], RenderContext]
    acknowledged: Callable[[str, str], bool]

    def __post_init__(self) -> None:
        self._channels = Channels(self.client)
        self._undelivered = UndeliveredAlerts(self.store)
        self._delivering: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._host_locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def warm(self) -> None:
        """Look the channel up while Slack answers. Never raises: it is looked up again when it is needed."""
        try:
            await self._channels.id_of(self.channel)
        except AWAY as error:
            log.warning("the incident channel cannot be found", error=redacted_head(str(error), 300))

    def report(self, alert: Alert) -> None:
        """Open or join the host's incident, run triage, and tell people."""
        if alert.id not in self._delivering:
            self._delivering.add(alert.id)
            self._spawn(self._deliver(alert))

    async def keep(self, alerts: Iterable[Alert]) -> None:
        """Store alerts until they are delivered, so that they survive a restart."""
        await asyncio.to_thread(self._undelivered.keep, tuple(alerts))

    async def retry(self) -> None:
        """Report the alerts that an earlier process, or an hour without Slack, left undelivered."""
        for alert in await asyncio.to_thread(self._undelivered.all):
            self.report(alert)

    def say(self, host: str, message: Message) -> None:
        """Post a message into the thread of the host's open incident, if there is one."""
        self._spawn(self._say(host, message))

    async def close(self) -> None:
        """Cancel the tasks. Undelivered alerts are delivered after the next start."""
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

    # -- one alert -----------------------------------------------------------------------------------------------

    async def _deliver(self, alert: Alert) -> None:
        try:
            await self.keep([alert])
            async with self._host_locks[alert.host]:  # two alerts about one fault must not open two incidents
                incident = await asyncio.to_thread(self.incidents.active, alert.host)
                run = await (self._open(alert) if incident is None else self._join(alert, incident))
            await asyncio.to_thread(self._undelivered.delivered, alert)
        finally:
            self._delivering.discard(alert.id)
        if run is not None and alert.cause in self.settings.auto_fallback:
            await self._fall_back(alert, await self.runs.wait(run.id, until=lambda run: run.status.final))

    async def _open(self, alert: Alert) -> RunRecord | None:
        place = Place(channel=await until_accepted(lambda: self._channels.id_of(self.channel)))
        if alert.verdict is not VerdictKind.FALL_BACK:  # no incident: the verdict card is enough
            return await self._triage(alert, place, None)
        posting = asyncio.create_task(self._post(place, texts.opened(alert)))
        try:
            await asyncio.wait({posting}, timeout=FIRST_POST_S)
            run = await self._triage(alert, place, None)
            thread = Place(channel=place.channel, thread_ts=await posting)
        finally:
            posting.cancel()
        await asyncio.to_thread(self._record, alert, thread, run)
        return run

    def _record(self, alert: Alert, thread: Place, run: RunRecord | None) -> None:
        """Open the incident of an alert, unless the triage's card has opened it meanwhile, and put the run into it."""
        try:
            incident = self.incidents.open(
                host=alert.host, title=alert.title, place=thread, by=MONITOR, cause=alert.cause
            )
        except UserError:
            known = self.incidents.active(alert.host)
            if known is None:
                return
            incident = known
        if run is not None and run.incident_id is None:
            self.incidents.join(incident.id, run.id)

    async def _join(self, alert: Alert, incident: IncidentRecord) -> RunRecord | None:
        text = f"{alert.source}: {alert.cause} ({alert.reason})"
        await asyncio.to_thread(self.incidents.note, incident.id, by=MONITOR, text=text)
        message = texts.joined(alert)
        # Nobody watches the thread of yesterday's incident for a new reason to fall back.
        late = alert.at_s - incident.opened_at > self.settings.burst_s
        loud = late and alert.verdict is VerdictKind.FALL_BACK
        self._spawn(self._say(alert.host, message, in_channel_too=loud))
        return await self._triage(alert, incident.place, incident.id)

    async def _triage(self, alert: Alert, place: Place, incident_id: str | None) -> RunRecord | None:
        latest = self.runs.latest(action="triage", host=alert.host)
        if latest is not None and _serves_for(latest, alert):
            return latest
        try:
            started = await self.runs.start(
                action="triage",
                host=alert.host,
                options={} if alert.window_s is None else {"window": f"{alert.window_s:g}"},
                requester=MONITOR,
                place=place,
                dedupe_key=f"alarm:{alert.id}",
                incident_id=incident_id,
            )
        except UserError as error:
            log.error("an alert could not start its triage", host=alert.host, error=str(error))
            return None
        return started.run

    # -- the automatic fallback ----------------------------------------------------------------------------------

    async def _fall_back(self, alert: Alert, triage: RunRecord) -> None:
        """Start the fallback after a finished triage, or say in the thread why not."""
        why = await asyncio.to_thread(self._why_not, alert, triage)
        incident = await asyncio.to_thread(self.incidents.active, alert.host)
        if not why:
            try:
                started = await self.runs.start(
                    action="fallback",
                    host=alert.host,
                    options={"reason": f"automatic: {alert.cause}"},
                    requester=MONITOR,
                    place=incident.place if incident is not None else triage.place,
                    dedupe_key=f"auto:{alert.key}",
                    incident_id=incident.id if incident is not None else None,
                )
            except UserError as error:
                why = str(error)
        if why:
            log.warning("no automatic fallback", host=alert.host, cause=alert.cause, why=why)
            self.say(alert.host, texts.no_automatic_fallback(alert, why))
        elif not started.duplicate:
            log.warning("automatic fallback", host=alert.host, cause=alert.cause, run=started.run.id)
            message = texts.automatic_fallback(alert, started.run.id, self.render_context())
            await self._post(Place(channel=triage.place.channel), message)

    def _why_not(self, alert: Alert, triage: RunRecord) -> str:
        verdict = verdict_of(triage)
        causes = [alert.cause, *([verdict.cause] if verdict is not None else [])]
        return why_not(
            self.settings,
            triage=triage,
            acknowledged=next((cause for cause in causes if self.acknowledged(alert.host, cause)), ""),
            fallback=self.runs.latest(action="fallback", host=alert.host),
            restore=self.runs.latest(action="restore", host=alert.host),
            now_s=self.store.clock(),
        )

    # -- Slack ---------------------------------------------------------------------------------------------------

    async def _say(self, host: str, message: Message, *, in_channel_too: bool = False) -> None:
        incident = await asyncio.to_thread(self.incidents.active, host)
        if incident is not None:
            await self._post(incident.place, message, in_channel_too=in_channel_too)

    async def _post(self, place: Place, message: Message, *, in_channel_too: bool = False) -> str:
        """Post a message, however long Slack is away, and return its ts."""
        return await until_accepted(lambda: post(self.client, message, place, in_channel_too=in_channel_too))


def _serves_for(triage: RunRecord, alert: Alert) -> bool:
    """Return True if an earlier triage already shows what the alert is about."""
    age_s = alert.at_s - triage.created_at
    if age_s >= RECENT_TRIAGE_S or (triage.requester.id != MONITOR.id and triage.status.final):
        return False
    if age_s < SAME_MOMENT_S or not triage.status.final:
        return True
    verdict = verdict_of(triage)
    return verdict is not None and rank_of_verdict(verdict.verdict) >= rank_of_verdict(alert.verdict)
