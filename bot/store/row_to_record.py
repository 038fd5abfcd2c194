"""Convert database rows to records. A run with its steps, decisions and artifacts takes four queries, however many runs."""

from collections import defaultdict
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from bot.store.records import ArtifactRecord, Decision, RunRecord, StepRecord
from bot.store.schema import artifacts, decisions, steps
from gpu_actions.plan import Plan

RUN_FIELDS = frozenset(RunRecord.model_fields) - {"steps", "decisions", "artifacts", "plan"}


def run_records(connection: sa.Connection, query: sa.Select[Any]) -> list[RunRecord]:
    """Return the complete runs that a select on the runs table finds, in its order."""
    rows = connection.execute(query).all()
    ids = [row.id for row in rows]

    def by_run(table: sa.Table, *order: sa.Column[Any]) -> dict[str, list[Any]]:
        grouped: dict[str, list[Any]] = defaultdict(list)
        for row in connection.execute(table.select().where(table.c.run_id.in_(ids)).order_by(*order)):
            grouped[row.run_id].append(row)
        return grouped

    step_rows = by_run(steps, steps.c.position, steps.c.attempt)
    decision_rows = by_run(decisions, decisions.c.id)
    artifact_rows = by_run(artifacts, artifacts.c.id)
    return [
        RunRecord(
            **{name: value for name, value in row._mapping.items() if name in RUN_FIELDS},
            plan=stored_plan(row.plan),
            steps=tuple(StepRecord.model_validate(_fields(StepRecord, step)) for step in step_rows[row.id]),
            decisions=tuple(decision_record(decision) for decision in decision_rows[row.id]),
            artifacts=tuple(artifact_record(artifact) for artifact in artifact_rows[row.id]),
        )
        for row in rows
    ]


def stored_plan(stored: Any) -> Plan | None:
    """Return the plan of a row, or None if there is none or if this version cannot read it."""
    if stored is None:
        return None
    try:
        return Plan.model_validate(stored)
    except ValidationError:
        return None


def decision_record(row: Any) -> Decision:
    return Decision.model_validate(_fields(Decision, row))


def artifact_record(row: Any) -> ArtifactRecord:
    return ArtifactRecord.model_validate(_fields(ArtifactRecord, row))


def _fields(model: type[StepRecord] | type[Decision] | type[ArtifactRecord], row: Any) -> dict[str, Any]:
    """Return the columns that the model knows: a newer version may have added others."""
    return {name: value for name, value in row._mapping.items() if name in model.model_fields}
