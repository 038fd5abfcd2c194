"""`gpu-oncall runbook`: render the team's runbook from the plans of today. `doctor` compares the written one with them."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import typer

from bot.hosts import Hosts
from bot.incidents.incidents import Incidents
from bot.incidents.report.collect import read_facts
from bot.incidents.runbook import Page, Seen, notes_of, render
from bot.settings.model import Settings
from bot.store.records import RunRecord
from bot.store.store import Store
from bot.watch.drills import incident_host
from gpu_actions.action import ActionSpec, PlanRefused, PlanRequest
from gpu_actions.drill.action import history_path
from gpu_actions.drill.history import read_history
from gpu_actions.host import Host
from gpu_actions.models import Frozen
from gpu_actions.registry import actions
from gpu_actions.system.files import write_atomically

ORDER = ("triage", "fallback", "forensics", "trace", "loadtest", "restore")
"""As the incident goes; other actions follow."""
RUNS_READ = 100
INCIDENTS_READ = 20


class Stored(Frozen):
    """What the database knows of earlier runs and incidents; empty where it is not read."""

    runs: tuple[RunRecord, ...] = ()
    seen: tuple[Seen, ...] = ()


async def runbook_text(settings: Settings, stored: Stored, written: str = "") -> str:
    """Return the runbook of all hosts, with the notes of the written one. Starts nothing."""
    hosts = Hosts(settings)
    specs = sorted(
        (spec for spec in actions().values() if not spec.needs_calm),
        key=lambda spec: ORDER.index(spec.name) if spec.name in ORDER else len(ORDER),
    )
    pages = [
        await _page(hosts.get(host.name), spec, stored.runs) for host in settings.hosts for spec in specs
    ]
    drills = {host.name: read_history(history_path(settings.host_dir(host.name))) for host in settings.hosts}
    return render(
        pages, runs=stored.runs, drills=drills, seen=stored.seen, now=time.time(), notes=notes_of(written)
    )


def write_runbook(settings: Settings, path: Path | None) -> int:
    """Write the runbook, to the terminal if no file is named. Return the exit code."""
    path = path or settings.runbook
    written = path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""
    store = Store(settings.own_database_url)
    try:
        store.create()
        runs = tuple(run for host in settings.hosts for run in store.list(host=host.name, limit=RUNS_READ))
        stored = Stored(runs=runs, seen=tuple(_seen(settings, store)))
    finally:
        store.close()
    text = asyncio.run(runbook_text(settings, stored, written))
    if path is None:
        typer.echo(text)
    else:
        write_atomically(path, text)
        typer.echo(path)
    return 0


async def _page(host: Host, spec: ActionSpec, runs: Sequence[RunRecord]) -> Page:
    plan, origin = None, ""
    try:
        plan = await spec.plan(PlanRequest(host=host, arguments=spec.arguments()))
    except PlanRefused as refused:
        origin = "; ".join(refused.problems)
        last = [
            run for run in runs if (run.host, run.action) == (host.name, spec.name) and run.plan is not None
        ]
        if last:
            plan, origin = last[0].plan, f"Cannot be planned now ({origin}); this is the plan of {last[0].id}"
    return Page(host=host.name, action=spec.name, summary=spec.summary, plan=plan, origin=origin)


def _seen(settings: Settings, store: Store) -> list[Seen]:
    incidents, found = Incidents(store), []
    for host in settings.hosts:
        for name in (host.name, incident_host(host.name)):
            for incident in incidents.newest(host=name, limit=INCIDENTS_READ):
                facts = read_facts(store, incident.id)
                action_of = {run.id: run.action for run in facts.runs}
                found += [
                    Seen(
                        action=action_of[one.run_id],
                        incident_id=incident.id,
                        at=incident.opened_at,
                        deviation=one,
                    )
                    for one in facts.deviations
                ]
    return found
