"""Report drills as incidents of their own, start them by schedule, and end them when something real happens.

`follow` is a periodic job over the rows, so a bot that was killed goes on where it stood.
"""

import time
from dataclasses import dataclass

import structlog
from slack_sdk.web.async_client import AsyncWebClient

from bot.incidents.incidents import Incidents
from bot.incidents.report.model import DRILL
from bot.presenter import drills as texts
from bot.runs.runs import Runs
from bot.settings.model import Settings
from bot.slack.channels import Channels
from bot.slack.posts import post
from bot.slack.reports import Reports
from bot.slack.retry import AWAY
from bot.store.records import IncidentRecord, IncidentStatus, Person, Place, RunRecord, RunStatus, UserError
from gpu_actions.drill.action import SPEC
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

SCHEDULER = Person(id="schedule", name="schedule")
FOLLOWED = 5
"""The newest drills that are looked at: one runs at a time."""
RECENT_S = 3600.0
"""A drill that ended longer ago without an incident gets none."""


def incident_host(host: str) -> str:
    """Return the name that a drill's incident has in place of a host, so that it never stands for a real one."""
    return f"{host}-drill"


@dataclass(kw_only=True)
class Drills:
    """Starts and follows drills."""

    client: AsyncWebClient
    runs: Runs
    incidents: Incidents
    reports: Reports
    settings: Settings

    async def start(self) -> None:
        """Start the drill that is due. It is left out, with a line in the log, while the host is not calm."""
        host = self.settings.drills.host or self.settings.default_host.name
        try:
            channel = await Channels(self.client).id_of(self.settings.slack.incident_channel)
            await self.runs.start(
                action=SPEC.name,
                host=host,
                options={},
                requester=SCHEDULER,
                place=Place(channel=channel),
                dedupe_key=f"drill:{host}:{int(time.time())}",
            )
        except UserError as error:
            log.warning("a scheduled drill was left out", host=host, reason=str(error))
        except AWAY as error:
            log.warning("a scheduled drill was left out: Slack is away", error=redacted_head(str(error), 300))

    async def follow(self) -> None:
        """Open the incident of a drill that runs, stop a drill beside a real incident, and report one that ended."""
        for run in self.runs.list(action=SPEC.name, limit=FOLLOWED):
            if run.incident_id is None and time.time() - (run.ended_at or time.time()) < RECENT_S:
                self._open(run)
            elif (incident := self._open_incident(run)) is not None and run.status.final:
                await self._end(run, incident)
            if not run.status.final and (why := self.runs.unrest(run.host, but=run.id)):
                log.warning("the drill is stopped", run=run.id, reason=why)
                await self.runs.stop(run.id, by=Person(id="bot", name=f"the bot, because {why}"))

    def _open(self, run: RunRecord) -> None:
        """Open the incident once the run's message is there, whose thread it uses."""
        thread = run.place.thread_ts or run.message_ts
        if run.started_at is None or thread is None:
            return
        host = incident_host(run.host)
        if (left := self.incidents.active(host)) is not None:  # of a drill whose end was never seen
            self.incidents.close(left.id, by=SCHEDULER)
        place = Place(channel=run.place.channel, thread_ts=thread)
        title = f"DRILL {run.id} on {run.host}"
        opened = self.incidents.open(host=host, title=title, place=place, by=run.requester, cause=DRILL)
        self.incidents.join(opened.id, run.id)

    def _open_incident(self, run: RunRecord) -> IncidentRecord | None:
        incident = None if run.incident_id is None else self.incidents.get(run.incident_id)
        return incident if incident is not None and incident.status is IncidentStatus.OPEN else None

    async def _end(self, run: RunRecord, incident: IncidentRecord) -> None:
        """Alert if the drill did not pass, close its incident, and publish the report."""
        problems = [str(line) for step in run.steps for line in step.data.get("slow", ())]
        if run.status is RunStatus.FAILED:
            problems.insert(0, run.outcome)
        if problems:
            self.incidents.note(incident.id, by=SCHEDULER, text=f"alert: {'; '.join(problems)}")
            channel = Place(channel=incident.place.channel)
            try:
                await post(self.client, texts.alert(run.id, run.host, problems), channel)
            except AWAY as error:
                log.warning("Slack is away; the drill's alert waits", error=redacted_head(str(error), 300))
                return
        closed = self.incidents.close(incident.id, by=SCHEDULER)
        await self.reports.publish(closed, by=SCHEDULER)
