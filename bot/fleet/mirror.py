"""A run of a host as a report, and the bot's copy of it.

The host's database is the truth about what its run did; the bot's copy is what people see, with the decisions they took.
A report changes only a run that the bot itself started on that host: a host can neither invent runs nor touch another's.
"""

from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog
from pydantic import Field, ValidationError

from bot.store.audit import append
from bot.store.records import RunStatus, StepRecord, TimelineEntry
from bot.store.schema import artifacts, counters, steps, timeline
from bot.store.store import RunChange, Store
from gpu_actions.models import Artifact, Frozen, JsonObject

log = structlog.get_logger()

COPIED = ("plan_hash", "started_at", "ended_at", "gate_expires_at", "outcome", "next_action")
ORDER = ("planning", "waiting", "queued", "running", "settling")
NOT_HERE = Path("/on-its-host")
"""The folder of a file that only its host has. A path that a host names is never opened here."""
OWN_KINDS = ("run.start", "decision.", "signal.", "artifact.stored", "run.stop")
"""Entries of the trail that the bot writes itself when a person asks or a file arrives."""


class ArtifactState(Frozen):
    """An artifact of a run. `is_shared`: it is in the artifact store that bot and worker share."""

    step_id: str = Field(max_length=128)
    name: str = Field(max_length=255)
    artifact: Artifact
    is_shared: bool = False


class RunReport(Frozen):
    """Everything that a host says about a run. A field of a newer version is ignored."""

    action: str
    status: RunStatus
    plan: JsonObject | None = None
    plan_hash: str = Field(default="", max_length=64)
    problems: tuple[str, ...] = ()
    started_at: float | None = None
    ended_at: float | None = None
    gate_expires_at: float | None = None
    outcome: str = ""
    next_action: str = ""
    steps: tuple[StepRecord, ...] = ()
    artifacts: tuple[ArtifactState, ...] = ()
    timeline: tuple[TimelineEntry, ...] = ()


def export_run(store: Store, run_id: str, *, has_shared_store: bool) -> RunReport | None:
    """Return the report of a run in this host's database, or None if there is no such run."""
    record = store.get(run_id)
    if record is None:
        return None
    row = store.row(run_id)
    return RunReport(
        action=record.action,
        status=record.status,
        plan=row.plan,
        problems=record.problems,
        steps=record.steps,
        artifacts=tuple(
            ArtifactState(
                step_id=one.step_id,
                name=one.artifact.name,
                artifact=one.artifact,
                is_shared=has_shared_store and bool(one.url),
            )
            for one in record.artifacts
        ),
        timeline=tuple(store.audit.of_run(run_id)),
        **{name: getattr(row, name) for name in COPIED},
    )


def apply_report(store: Store, *, host: str, run_id: str, body: JsonObject, link: Any) -> str:
    """Bring the bot's copy of a run up to date. Return why the report was not accepted, or an empty string.

    `link(run_id, step_id, name)` returns the link of a file in the shared store.
    """
    try:
        report = RunReport.model_validate(body, extra="ignore")
    except ValidationError as error:
        return f"it cannot be read: {error.errors(include_url=False, include_input=False)[0]['msg']}"
    try:
        row = store.row(run_id)
    except LookupError:
        return "the bot started no such run"
    if row.host != host or row.action != report.action:
        return f"the run is {row.action} on {row.host}"
    with store.change(run_id) as change:
        _apply(change, report, link)
    return ""


def _apply(change: RunChange, report: RunReport, link: Any) -> None:
    now = RunStatus(change.row.status)
    values: dict[str, Any] = {name: getattr(report, name) for name in COPIED}
    values |= {"plan": report.plan, "problems": list(report.problems)}
    if _is_newer(report.status, now):
        change.set_status(report.status, **values)
    elif not now.final:  # people decided here, and the host has not heard of it yet
        change.set(
            **{name: value for name, value in values.items() if name not in ("outcome", "next_action")}
        )
    _steps(change, report)
    _artifacts(change, report, link)
    _timeline(change, report)


def _is_newer(reported: RunStatus, known: RunStatus) -> bool:
    if known.final or reported.final:
        return reported.final
    return ORDER.index(reported) >= ORDER.index(known)


def _steps(change: RunChange, report: RunReport) -> None:
    change.connection.execute(steps.delete().where(steps.c.run_id == change.row.id))
    rows = [
        {**one.model_dump(mode="json"), "run_id": change.row.id, "position": position}
        for position, one in enumerate(report.steps)
    ]
    if rows:
        change.connection.execute(steps.insert(), rows)


def _artifacts(change: RunChange, report: RunReport, link: Any) -> None:
    run_id = change.row.id
    for one in report.artifacts:
        this = sa.and_(
            artifacts.c.run_id == run_id, artifacts.c.step_id == one.step_id, artifacts.c.name == one.name
        )
        if change.connection.execute(sa.select(artifacts.c.id).where(this)).first() is not None:
            continue
        change.connection.execute(
            artifacts.insert().values(
                run_id=run_id,
                step_id=one.step_id,
                name=one.name,
                artifact=one.artifact.model_copy(update={"path": NOT_HERE / one.name}).model_dump(
                    mode="json"
                ),
                url=link(run_id, one.step_id, one.name) if one.is_shared else "",
                stored_at=change.at,
            )
        )


def _timeline(change: RunChange, report: RunReport) -> None:
    """Append the host's entries that the bot's trail does not have yet."""
    query = sa.select(timeline.c.at, timeline.c.kind, timeline.c.text).where(
        timeline.c.run_id == change.row.id
    )
    known = {tuple(row) for row in change.connection.execute(query)}
    for entry in report.timeline:
        if entry.kind.startswith(OWN_KINDS) or (entry.at, entry.kind, entry.text) in known:
            continue
        about = {"host": change.row.host, "run_id": change.row.id, "incident_id": change.row.incident_id}
        append(change.connection, entry.model_copy(update=about))


def sent_version(store: Store) -> int:
    """Return the version of the newest change that this host has reported."""
    with store.database.read() as connection:
        query = sa.select(counters.c.value).where(counters.c.name == "fleet_sent")
        return int(connection.execute(query).scalar() or 0)


def remember_sent(store: Store, version: int) -> None:
    """Store the version of the newest change that was reported."""
    this = counters.c.name == "fleet_sent"
    with store.database.write() as connection:
        if connection.execute(counters.update().where(this).values(value=version)).rowcount == 0:
            connection.execute(counters.insert().values(name="fleet_sent", value=version))
