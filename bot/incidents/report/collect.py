"""Read an incident's record and write its report: Markdown, HTML and the facts as JSON."""

import json
from pathlib import Path

from bot.incidents.artifacts import ArtifactStore
from bot.incidents.incidents import Incidents
from bot.incidents.report.facts import as_data, facts_of
from bot.incidents.report.model import IncidentFacts
from bot.incidents.report.render import html, markdown
from bot.store.records import UserError
from bot.store.store import Store
from gpu_actions.system.files import write_atomically

PICTURE = "image/png"
EARLIER_RUNS = 50


def read_facts(store: Store, incident_id: str) -> IncidentFacts:
    """Return the facts of an incident. Raise UserError if there is no such incident."""
    incidents = Incidents(store)
    incident = incidents.get(incident_id)
    if incident is None:
        raise UserError(f"I know no incident {incident_id!r}.")
    earlier = [
        run
        for run in store.list(host=incident.host, limit=EARLIER_RUNS)
        if run.incident_id != incident_id and run.created_at < incident.opened_at
    ]
    return facts_of(
        incident,
        store.of_incident(incident_id),
        incidents.timeline(incident_id),
        now=store.clock(),
        earlier=earlier,
    )


def write_report(store: Store, artifacts: ArtifactStore, incident_id: str, folder: Path) -> list[Path]:
    """Write `INCIDENT.md`, `INCIDENT.html` and `INCIDENT.json` into a folder. Return their paths. Raise UserError."""
    facts = read_facts(store, incident_id)
    links = {record.id: link for run in facts.runs for record, link in artifacts.fresh_links(run)}
    report = markdown(facts, links=links)
    pictures = {
        f"{record.artifact.title or record.artifact.name} ({record.run_id})": data
        for record in facts.artifacts
        if record.artifact.media_type == PICTURE
        and record.artifact.inline
        and (data := artifacts.read(record))
    }
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    page = html(report, title=f"Incident {incident_id}: {facts.incident.title}", pictures=pictures)
    contents = {"md": report, "html": page, "json": json.dumps(as_data(facts), indent=1)}
    paths = []
    for ending, content in contents.items():
        path = folder / f"{incident_id}.{ending}"
        write_atomically(path, content)
        paths.append(path)
    return paths
