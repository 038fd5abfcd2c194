"""Convert database rows to records. A run with its steps, decisions and artifacts takes four queries, however many runs.

Another version may have written a row. A field that this version does not know is ignored; a part that it cannot read is left
out, and the run's `unreadable` says which. A plan is the exception: an unknown field may be an instruction, so the plan is
read exactly or not at all, and a run is never continued with half a plan.
"""

from collections import defaultdict
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from pydantic import BaseModel, ValidationError

from bot.store.records import ArtifactRecord, Decision, RunRecord, StepRecord
from bot.store.schema import artifacts, decisions, steps
from gpu_actions.plan import PLAN_VERSION, Plan

log = structlog.get_logger()

OTHER_VERSION = "Another version of gpu-oncall made this run and this one cannot continue it"

M = TypeVar("M", bound=BaseModel)

RUN_FIELDS = frozenset(RunRecord.model_fields) - {"steps", "decisions", "artifacts", "plan", "unreadable"}


def run_records(connection: sa.Connection, query: sa.Select[Any]) -> list[RunRecord]:
    """Return the complete runs that a select on the runs table finds, in its order."""
    rows = connection.execute(query).all()
    if not rows:
        return []
    ids = [row.id for row in rows]

    def by_run(table: sa.Table, *order: sa.Column[Any]) -> dict[str, list[Any]]:
        grouped: dict[str, list[Any]] = defaultdict(list)
        for row in connection.execute(table.select().where(table.c.run_id.in_(ids)).order_by(*order)):
            grouped[row.run_id].append(row)
        return grouped

    step_rows = by_run(steps, steps.c.position, steps.c.attempt)
    decision_rows = by_run(decisions, decisions.c.id)
    artifact_rows = by_run(artifacts, artifacts.c.id)
    records = (
        _run_record(row, step_rows[row.id], decision_rows[row.id], artifact_rows[row.id]) for row in rows
    )
    return [record for record in records if record is not None]


def _run_record(
    row: Any, step_rows: list[Any], decision_rows: list[Any], artifact_rows: list[Any]
) -> RunRecord | None:
    """Return a run, or None (and log it) if not even its own row can be read."""
    problem = plan_problem(row.plan)
    unreadable = [problem] if problem else []

    def read(model: type[M], part: Any, what: str, **bare: Any) -> list[M]:
        stored = dict(part._mapping)
        record = readable(model, stored)
        if record is None:
            unreadable.append(what)
            record = readable(model, {**stored, **bare}) if bare else None
        return [] if record is None else [record]

    known = [
        one
        for part in step_rows
        for one in read(StepRecord, part, f"step {part.step_id}", findings=(), verdict=None, data={})
    ]
    record = readable(
        RunRecord,
        {
            **{name: value for name, value in row._mapping.items() if name in RUN_FIELDS},
            "plan": stored_plan(row.plan),
            "steps": known,
            "decisions": [
                one for part in decision_rows for one in read(Decision, part, f"decision {part.id}")
            ],
            "artifacts": [
                one for part in artifact_rows for one in read(ArtifactRecord, part, f"artifact {part.name}")
            ],
            "unreadable": unreadable,
        },
    )
    if record is None:
        log.error("another version wrote a run that this one cannot read", run=row.id, status=row.status)
    return record


def readable(model: type[M], stored: Any) -> M | None:
    """Return stored JSON as a model, ignoring fields of a newer version, or None if this version cannot read it."""
    try:
        return model.model_validate(stored, extra="ignore")
    except ValidationError:
        return None


def plan_problem(stored: Any) -> str:
    """Return why the plan of a row cannot be carried out by this version, or an empty string."""
    if stored is None or stored_plan(stored) is not None:
        return ""
    version = stored.get("version") if isinstance(stored, dict) else None
    if isinstance(version, int) and version != PLAN_VERSION:
        return f"its plan has format {version}, this version reads format {PLAN_VERSION}"
    try:
        Plan.model_validate(stored)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return f"its plan has {'.'.join(str(part) for part in first['loc']) or 'a form'} that this version does not know"
    return ""


def stored_plan(stored: Any) -> Plan | None:
    """Return the plan of a row, or None if there is none or if this version cannot read all of it."""
    try:
        plan = None if stored is None else Plan.model_validate(stored)
    except ValidationError:
        return None
    return plan if plan is None or plan.version == PLAN_VERSION else None


def decision_record(row: Any) -> Decision:
    return Decision.model_validate(dict(row._mapping), extra="ignore")


def artifact_record(row: Any) -> ArtifactRecord:
    return ArtifactRecord.model_validate(dict(row._mapping), extra="ignore")
