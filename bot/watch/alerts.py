"""Turn an alert into what people need: a message, an incident, a triage with its card, and rarely an automatic fallback.

Monitors and the Alertmanager webhook both end here. If Slack is away the triage starts anyway, because evidence does not
wait, and the alert is posted when Slack is back.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass

import structlog
from slack_sdk.web.async_client import AsyncWebClient

from bot.incidents.incidents import Incidents
from bot.presenter import alerts as texts
from bot.presenter.message import Message
from bot.presenter.render_context import RenderContext
from bot.presenter.verdict_card import verdict_of
from bot.runs.runs import Runs
from bot.settings.watch import MonitorSettings
from bot.slack.channels import Channels
from bot.slack.posts import PostOnce, edit
from bot.slack.retry import AWAY, until_accepted
from bot.store.records import (
    NOT_YET,
    Alert,
    IncidentRecord,
    MonitorNotice,
    Person,
    Place,
    RunRecord,
    UserError,
)
from bot.store.store import Store
from bot.watch.alert_groups import AlertGroup, AlertGroups
from bot.watch.auto_fallback import serves_for, why_not
from bot.watch.pages import Pages
from bot.watch.tasks import Tasks
from bot.watch.undelivered_alerts import UndeliveredAlerts
from gpu_actions.models import VerdictKind
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

MONITOR = Person(id="monitor", name="monitor")
FIRST_POST_S = 3.0
"""The triage waits this long for the alert to be posted first. That reads better, but evidence matters more."""
EDIT_PAUSE_S = 2.0
"""The count of a group is edited at most this often: a storm of alerts costs few of the edits that Slack allows."""
ALERT_EVENT = "gpu_oncall_alert"


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
    pages: Pages

    def __post_init__(self) -> None:
        self._channels = Channels(self.client)
        self._undelivered = UndeliveredAlerts(self.store)
        self._groups = AlertGroups(self.store)
        self._refreshing: set[int] = set()
        self._delivering: set[str] = set()
        self._followed: set[str] = set()
        self._tasks = Tasks("an alert could not be handled")
        self._host_locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def warm(self) -> None:
        """Look the channel up while Slack answers. Never raises: it is looked up again when it is needed."""
        try:
            await self._channels.id_of(self.channel)
        except AWAY as error:
            log.warning("the incident channel cannot be found", error=redacted_head(str(error), 300))

    async def channel_id(self) -> str:
        """Return the incident channel's id. Raises what Slack raises while it is away."""
        return await self._channels.id_of(self.channel)

    def report(self, alert: Alert) -> None:
        """Open or join the host's incident, run triage, and tell people."""
        if alert.id not in self._delivering:
            self._delivering.add(alert.id)
            self._tasks.spawn(self._deliver(alert))

    async def keep(self, alerts: Iterable[Alert]) -> None:
        """Store alerts until they are delivered, so that they survive a restart."""
        await asyncio.to_thread(self._undelivered.keep, tuple(alerts))

    async def keep_new(self, alerts: Iterable[tuple[str, Alert]]) -> list[Alert]:
        """Store the alerts whose delivery key is new, together with it. Return them."""
        return await asyncio.to_thread(self._undelivered.keep_new, tuple(alerts))

    async def retry(self) -> None:
        """Report the alerts, edit the counts and send the pages that an earlier process or a bad hour left undelivered."""
        self.work_on_pages()
        for alert in await asyncio.to_thread(self._undelivered.all):
            self.report(alert)
        for group in await asyncio.to_thread(self._groups.outdated):
            self._refresh(group)

    async def place_of(self, run: RunRecord) -> Place | None:
        """Return where a run that began while Slack was away is shown, and put it into its host's incident.

        None while an alert that may open the incident is still undelivered. Raises what Slack raises while it is away.
        """
        incident = await asyncio.to_thread(self.incidents.active, run.host)
        if incident is not None:
            if run.incident_id is None:
                await asyncio.to_thread(self.incidents.join, incident.id, run.id)
            return incident.place
        waiting = await asyncio.to_thread(self._undelivered.all)
        if any(alert.host == run.host for alert in waiting):
            return None
        return Place(channel=await self.channel_id())

    async def note(self, host: str, *, by: Person, text: str) -> None:
        """Note a person's act in the host's incident, also in the one that an alert is opening just now."""
        async with self._host_locks[host]:
            incident = await asyncio.to_thread(self.incidents.active, host)
        if incident is not None:
            await asyncio.to_thread(self.incidents.note, incident.id, by=by, text=text)

    def say(self, host: str, message: Message) -> None:
        """Post a message into the thread of the host's open incident, if there is one."""
        self._tasks.spawn(self._say(host, message))

    def notice(self, notice: MonitorNotice) -> None:
        """Say in the host's incident what a monitor says. The end of a fault closes its pages."""
        self.say(notice.host, texts.noticed(notice))
        if notice.notice == "clear":
            self._tasks.spawn(self.pages.cleared(notice))

    def work_on_pages(self) -> None:
        """Send the pages that are due, and close those of closed incidents."""
        self._tasks.spawn(self.pages.work())

    async def close(self) -> None:
        """Cancel the tasks. Undelivered alerts are delivered after the next start."""
        await self._tasks.close()

    # -- one alert -----------------------------------------------------------------------------------------------

    async def _deliver(self, alert: Alert) -> None:
        try:
            await self.keep([alert])
            async with self._host_locks[alert.host]:  # two alerts about one fault must not open two incidents
                await self._handle(alert)
            await asyncio.to_thread(self._undelivered.delivered, alert)
        finally:
            self._delivering.discard(alert.id)
            self._followed.discard(alert.id)

    async def _handle(self, alert: Alert) -> None:
        """Post an alert, or count it in the message of its group, and start the triage that shows what it is about."""
        if alert.resolved:
            await self._resolve(alert)
            return
        group = await asyncio.to_thread(self._groups.add, alert) if alert.fingerprint else None
        incident = await asyncio.to_thread(self.incidents.active, alert.host)
        if group is not None:
            self._refresh(group)
            if await asyncio.to_thread(self.acknowledged, alert.host, alert.cause):
                if incident is not None:
                    await self._note(alert, incident)
                return
            if not group.is_new and group.last_at - group.previous_at <= self.settings.burst_s:
                return
        await (self._open(alert, group) if incident is None else self._join(alert, incident, group))

    async def _resolve(self, alert: Alert) -> None:
        group = await asyncio.to_thread(self._groups.resolve, alert)
        if group is not None:
            self._refresh(group)
        if group is None or group.closed:
            self.say(alert.host, texts.resolved(alert.host, alert.cause))
            self._tasks.spawn(self.pages.resolve(alert.host, matches=lambda _, cause: cause == alert.cause))

    async def _page(self, alert: Alert) -> asyncio.Event:
        """Page the on-call about an alert that says fall back, unless the returned event is set soon: people know it.

        The page is kept before this returns.
        """
        told = asyncio.Event()
        if alert.verdict is VerdictKind.FALL_BACK:
            automatic = alert.cause in self.settings.auto_fallback
            if key := await self.pages.keep(alert, next_action=texts.page(alert, automatic=automatic)):
                self._tasks.spawn(self.pages.follow(key, told))
        return told

    async def _open(self, alert: Alert, group: AlertGroup | None) -> None:
        told = await self._page(alert)
        finding = asyncio.create_task(until_accepted(lambda: self._channels.id_of(self.channel)))
        try:
            await asyncio.wait({finding}, timeout=FIRST_POST_S)
            if (
                not finding.done()
            ):  # the card is posted when the channel is found; the evidence does not wait for it
                run = await self._triage(alert, NOT_YET, None)
                place = Place(channel=await finding)
                if run is not None:
                    await asyncio.to_thread(self.store.update_run, run.id, place=place.model_dump())
            place = Place(channel=await finding)
        finally:
            finding.cancel()
        if alert.verdict is not VerdictKind.FALL_BACK:  # no incident: the verdict card is enough
            await self._triage(alert, place, None)
            return
        posting = asyncio.create_task(self._post(place, texts.opened(alert)))
        try:
            await asyncio.wait({posting}, timeout=FIRST_POST_S)
            run = await self._triage(alert, place, None)
            thread = Place(channel=place.channel, thread_ts=await posting)
        finally:
            posting.cancel()
        if group is not None:
            await asyncio.to_thread(self._groups.posted, group, thread, is_root=True)
        told.set()
        await asyncio.to_thread(self._record, alert, thread, run)

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

    async def _join(self, alert: Alert, incident: IncidentRecord, group: AlertGroup | None) -> None:
        await self._note(alert, incident)
        if group is None or group.place is None:
            # Nobody watches the thread of yesterday's incident for a new reason to fall back.
            late = alert.at_s - incident.opened_at > self.settings.burst_s
            loud = late and alert.verdict is VerdictKind.FALL_BACK
            told = await self._page(alert)
            self._tasks.spawn(self._say_joined(alert, incident, group, told, in_channel_too=loud))
        await self._triage(alert, incident.place, incident.id)

    async def _say_joined(
        self,
        alert: Alert,
        incident: IncidentRecord,
        group: AlertGroup | None,
        told: asyncio.Event,
        *,
        in_channel_too: bool,
    ) -> None:
        ts = await self._post(incident.place, texts.joined(alert), in_channel_too=in_channel_too)
        told.set()
        if group is not None:
            place = Place(channel=incident.place.channel, thread_ts=ts)
            await asyncio.to_thread(self._groups.posted, group, place, is_root=False)
            self._refresh(group)

    async def _note(self, alert: Alert, incident: IncidentRecord) -> None:
        text = f"{alert.source}: {alert.cause} ({alert.reason})"
        await asyncio.to_thread(self.incidents.note, incident.id, by=MONITOR, text=text)

    async def _triage(self, alert: Alert, place: Place, incident_id: str | None) -> RunRecord | None:
        run = await self._start_triage(alert, place, incident_id)
        if run is not None and alert.cause in self.settings.auto_fallback and alert.id not in self._followed:
            self._followed.add(alert.id)
            self._tasks.spawn(self._fall_back(alert, run.id))  # it waits for the triage, never for Slack
        return run

    async def _start_triage(self, alert: Alert, place: Place, incident_id: str | None) -> RunRecord | None:
        latest = self.runs.latest(action="triage", host=alert.host)
        if latest is not None and serves_for(latest, alert, by_monitor=latest.requester.id == MONITOR.id):
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

    async def _fall_back(self, alert: Alert, triage_id: str) -> None:
        """Start the fallback once the triage has ended, or say in the thread why not."""
        triage = await self.runs.wait(triage_id, until=lambda run: run.status.final)
        latest = self.runs.latest(action="fallback", host=alert.host)
        reason = f"automatic: {alert.cause}"
        if latest is not None and latest.options.get("reason") == reason and latest.created_at >= alert.at_s:
            return  # an earlier process has started it
        why = await asyncio.to_thread(self._why_not, alert, triage)
        incident = await asyncio.to_thread(self.incidents.active, alert.host)
        if not why:
            try:
                started = await self.runs.start(
                    action="fallback",
                    host=alert.host,
                    options={"reason": reason},
                    requester=MONITOR,
                    place=incident.place if incident is not None else NOT_YET,
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
            await self._post(Place(channel=await until_accepted(self.channel_id)), message)

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

    def _refresh(self, group: AlertGroup) -> None:
        """Edit a group's message soon; what arrives until then is in the same edit."""
        if group.id not in self._refreshing:
            self._refreshing.add(group.id)
            self._tasks.spawn(self._edit_group(group.id))

    async def _edit_group(self, group_id: int) -> None:
        try:
            await asyncio.sleep(EDIT_PAUSE_S)
        finally:
            self._refreshing.discard(group_id)
        group = await asyncio.to_thread(self._groups.get, group_id)
        if group.place is None or group.shown == group.total:
            return
        ts, channel = str(group.place.thread_ts), group.place.channel
        message = texts.group(group.alert, is_root=group.is_root, total=group.total, firing=len(group.firing))
        about = {"event_type": ALERT_EVENT, "event_payload": {"group": group.id}}
        await until_accepted(lambda: edit(self.client, message, channel=channel, ts=ts, about=about))
        await asyncio.to_thread(self._groups.shown, group)

    async def _say(self, host: str, message: Message, *, in_channel_too: bool = False) -> None:
        incident = await asyncio.to_thread(self.incidents.active, host)
        if incident is not None:
            await self._post(incident.place, message, in_channel_too=in_channel_too)

    async def _post(self, place: Place, message: Message, *, in_channel_too: bool = False) -> str:
        """Post a message, however long Slack is away, and return its ts."""
        return await until_accepted(PostOnce(self.client, message, place, in_channel_too=in_channel_too).send)
