"""The Home tab, published each time a person opens it."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from bot.presenter.home import HomeState, HostState, home_view
from bot.store.records import IncidentRecord, RunRecord, RunStatus
from bot.watch.scheduler import next_times
from handlers import approvals, whoami
from handlers.call import Call, permalink
from handlers.command import Command

MAX_LINKS = 12
"""Each link is a call of the Web API; what is further down has none."""


async def publish(call: Call, commands: Mapping[str, Command]) -> None:
    """Publish the Home tab for the person who opened it."""
    services = call.services
    active = services.runs.list(active_only=True)
    waiting = [run for run in active if run.status is RunStatus.WAITING]
    for_me = [run for run in waiting if not await approvals.refusal(call, "approve", run)]
    hosts = [_host(call, name) for name in services.hosts]
    state = HomeState(
        hosts=hosts,
        active=active,
        for_me=for_me,
        rights=await whoami.rights_of(call),
        next_drill=_next_drill(call),
        links=await _links(call, hosts, active),
    )
    view = home_view(state, list(commands.values()), call.context)
    await call.client.views_publish(user_id=call.person.id, view=view)


def _next_drill(call: Call) -> float | None:
    if not (cron := call.services.settings.drills.cron):
        return None
    due = next_times(cron, datetime.fromtimestamp(call.services.store.clock(), UTC), 1)
    return due[0].timestamp() if due else None


def _host(call: Call, name: str) -> HostState:
    """Return a host with its last finished triage, and the last finished run that changed what serves there."""
    services = call.services
    moving = [spec.name for spec in services.actions.values() if spec.changes_host]
    ended = [run for action in moving for run in services.runs.list(action=action, host=name, limit=3)]
    changed = [run for run in ended if run.status.final and run.started_at is not None]
    return HostState(
        name=name,
        triage=next((run for run in _triages(call, name) if run.status is RunStatus.SUCCEEDED), None),
        moved=max(changed, key=lambda run: run.ended_at or run.created_at, default=None),
        incident=services.incidents.active(name),
    )


def _triages(call: Call, host: str) -> list[RunRecord]:
    return [
        run
        for spec in call.services.actions.values()
        if spec.diagnoses
        for run in call.services.runs.list(action=spec.name, host=host, limit=5)
    ]


async def _links(call: Call, hosts: list[HostState], active: Sequence[RunRecord]) -> dict[str, str]:
    """Return the addresses of the messages that the tab mentions, by the id of their run or incident."""
    shown: list[RunRecord | IncidentRecord] = [*active]
    for host in hosts:
        shown += [one for one in (host.incident, host.triage) if one is not None]

    async def address(one: RunRecord | IncidentRecord) -> tuple[str, str]:
        ts = one.message_ts if isinstance(one, RunRecord) else one.place.thread_ts
        return one.id, await permalink(call.client, one.place.channel, ts)

    return dict(await asyncio.gather(*map(address, shown[:MAX_LINKS])))
