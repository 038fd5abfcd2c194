"""Keep each host's standby ready: make it anew if its process died or triage excludes its GPU, and test it once a day.

The work itself is a run of the action `standby`, so it is shown, recorded and locked like any other change of the host. Any
doubt keeps it from starting: a standby can wait, an incident cannot.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import structlog

from bot.incidents.incidents import Incidents
from bot.presenter.verdict_card import verdict_of
from bot.runs.runs import Runs
from bot.settings.watch import MonitorSettings
from bot.store.records import Place, RunRecord, UserError
from bot.store.store import Store
from bot.watch.alerts import MONITOR, Alerts
from bot.watch.scheduler import Schedule
from gpu_actions.config.host import HostConfig
from gpu_actions.standby.action import SPEC, needs_care
from gpu_actions.tier.preflight import gather_facts
from gpu_actions.triage.gpu_health import rules_out

if TYPE_CHECKING:
    from gpu_actions.host import Host

log = structlog.get_logger()

FIRST_S = 15.0
RETRY_S = 1800.0
"""A standby that could not be made is not tried again for this long."""
TEST_WITHIN_S = 3600.0
"""A standby is tested within this time after the hour of the settings."""


@dataclass(frozen=True)
class StandbyKeeper:
    """Looks after the standbys. `hosts` returns the built host of a name."""

    settings: MonitorSettings
    runs: Runs
    store: Store
    incidents: Incidents
    alerts: Alerts
    hosts: "Callable[[str], Host]"

    def schedule(self, schedule: Schedule, hosts: Iterable[HostConfig]) -> None:
        """Schedule the check of every host that has a standby."""
        for host in hosts:
            if host.tiers["fallback"].standby != "off":
                check = partial(self.check, host.name)
                schedule.every(
                    self.settings.standby_period_s, f"standby:{host.name}", check, first_after_s=FIRST_S
                )

    async def check(self, host_name: str) -> None:
        """Start the run that a host's standby needs, if any."""
        host = self.hosts(host_name)
        now_s = self.store.clock()
        last = await asyncio.to_thread(self.runs.latest, action=SPEC.name, host=host_name)
        if not await asyncio.to_thread(self.is_quiet, host_name) or _failed_lately(last, now_s):
            return
        facts = await gather_facts(host)
        why = needs_care(host, facts, ruled_out=await asyncio.to_thread(self._ruled_out, host_name))
        if not why and facts.fallback.asleep_on is not None and self._test_is_due(last, now_s):
            why = "its daily test"
        if not why:
            return
        channel = await self.alerts.channel_id()
        try:
            started = await self.runs.start(
                action=SPEC.name,
                host=host_name,
                options={},
                requester=MONITOR,
                place=Place(channel=channel),
                dedupe_key=f"standby:{host_name}:{int(now_s / RETRY_S)}:{why}",
            )
        except UserError as error:
            log.warning("no standby", host=host_name, why=why, error=str(error))
        else:
            log.info("standby", host=host_name, why=why, run=started.run.id)

    def is_quiet(self, host: str) -> bool:
        """Return True if no incident is open on a host and no run is at work there."""
        if self.incidents.active(host) is not None:
            return False
        return not any(row.host == host for row in self.store.active())

    def _ruled_out(self, host: str) -> frozenset[str]:
        """Return the GPUs that the last triage excludes from serving alone."""
        triage = self.runs.latest(action="triage", host=host)
        verdict = None if triage is None else verdict_of(triage)
        findings = () if verdict is None else verdict.findings
        return frozenset(finding.subject for finding in findings if finding.subject and rules_out(finding))

    def _test_is_due(self, last: RunRecord | None, now_s: float) -> bool:
        """Return True in the hour of the daily test, unless a standby run has begun in it."""
        hour = self.settings.standby_test_hour
        if hour is None:
            return False
        today = datetime.fromtimestamp(now_s).astimezone()
        due_s = today.replace(hour=hour, minute=0, second=0, microsecond=0).timestamp()
        return due_s <= now_s < due_s + TEST_WITHIN_S and (last is None or last.created_at < due_s)


def _failed_lately(last: RunRecord | None, now_s: float) -> bool:
    if last is None or last.ended_at is None:
        return False
    return last.status.value != "succeeded" and now_s - last.ended_at < RETRY_S
