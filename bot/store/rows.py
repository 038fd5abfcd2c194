"""Rows turned into the records that the presenter reads: a run with its steps, decisions and files in four queries."""

from collections import defaultdict
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from bot.store.records import ArtifactRecord, Decision, RunRecord, StepRecord
from bot.store.schema import artifacts, decisions, steps
from gpu_actions.plan import Plan

RUN_FIELDS = frozenset(RunRecord.model_fields) - {"steps", "decisions", "artifacts", "plan"}
STEP_FIELDS = frozenset(StepRecord.model_fields)


def run_records(connection: sa.Connection, query: sa.Select[Any]) -> list[RunRecord]:
    """Give the runs that a select on the runs table finds, whole and in its order."""
    rows = connection.execute(query).all()
    ids = [row.id for row in rows]
    step_rows = _by_run(
        connection, steps.select().where(steps.c.run_id.in_(ids)).order_by(steps.c.position, steps.c.attempt)
    )
    decision_rows = _by_run(
        connection, decisions.select().where(decisions.c.run_id.in_(ids)).order_by(decisions.c.id)
    )
    artifact_rows = _by_run(
        connection, artifacts.select().where(artifacts.c.run_id.in_(ids)).order_by(artifacts.c.id)
    )
    return [
        RunRecord(
            **{name: value for name, value in row._mapping.items() if name in RUN_FIELDS},
            plan=plan_of(row.plan),
            steps=tuple(step_record(step) for step in step_rows[row.id]),
            decisions=tuple(decision_record(decision) for decision in decision_rows[row.id]),
            artifacts=tuple(artifact_record(artifact) for artifact in artifact_rows[row.id]),
        )
        for row in rows
    ]


def plan_of(stored: Any) -> Plan | None:
    """The plan of a row; None where there is none, or where another version wrote one that this version cannot read."""
    if stored is None:
        return None
    try:
        return Plan.model_validate(stored)
    except ValidationError:
        return None


def _by_run(connection: sa.Connection, query: sa.Select[Any]) -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = defaultdict(list)
    for row in connection.execute(query):
        grouped[row.run_id].append(row)
    return grouped


def step_record(row: Any) -> StepRecord:
    return StepRecord.model_validate({k: v for k, v in row._mapping.items() if k in STEP_FIELDS})


def decision_record(row: Any) -> Decision:
    return Decision(
        user=row.user, decision=row.decision, plan_hash=row.plan_hash, reason=row.reason, at=row.at
    )


def artifact_record(row: Any) -> ArtifactRecord:
    return ArtifactRecord(
        id=row.id,
        run_id=row.run_id,
        step_id=row.step_id,
        artifact=row.artifact,
        url=row.url,
        slack_file_id=row.slack_file_id,
    )
