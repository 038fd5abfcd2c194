"""The rows of steps: begun, reporting, ended. They are what lets a run go on where it stood.

An ended attempt is never run again, even when the bot was killed in the instant between this row and the workflow engine's
own; an attempt that was cut is begun again and counts one more execution.
"""

from typing import Any

import sqlalchemy as sa

from bot.store.audit import append
from bot.store.records import StepStatus
from bot.store.schema import runs, steps
from bot.store.store import Store
from gpu_actions.walk import Outcome, RunStep, StepEnd

CUT_SUMMARY = "cut when the bot ended; the clean-up looks at what is really there"


class StepRows:
    """The steps of all runs, in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def outcomes(self, run_id: str) -> list[Outcome]:
        """The ended attempts of a run in the order they happened: what `next_move` decides from."""
        query = (
            steps.select()
            .where(steps.c.run_id == run_id, steps.c.status.not_in(["running", "pending"]))
            .order_by(steps.c.position)
        )
        with self._store.database.read() as connection:
            rows = connection.execute(query).all()
        return [
            Outcome(
                step_id=row.step_id,
                attempt=row.attempt,
                status=row.status,
                summary=row.summary,
                next_action=row.next_action,
                data=row.data,
            )
            for row in rows
        ]

    def begin(self, run_id: str, move: RunStep) -> int:
        """Mark an attempt as running and give how often its function was entered, this time included.

        Another attempt that was left running (the bot was killed, then a person's stop led elsewhere) is closed as cancelled.
        """
        now = self._store.clock()
        key = _key(run_id, move.step.id, move.attempt)
        with self._store.change(run_id) as connection:
            connection.execute(
                steps.update()
                .where(steps.c.run_id == run_id, steps.c.status == "running", sa.not_(key))
                .values(status=StepStatus.CANCELLED.value, summary=CUT_SUMMARY, ended_at=now)
            )
            known = connection.execute(steps.select().where(key)).one_or_none()
            if known is not None:
                executions = int(known.executions) + 1
                connection.execute(
                    steps.update().where(key).values(executions=executions, summary="", progress=None)
                )
                return executions
            position = connection.execute(
                sa.select(sa.func.count()).select_from(steps).where(steps.c.run_id == run_id)
            ).scalar_one()
            connection.execute(
                steps.insert().values(
                    run_id=run_id,
                    step_id=move.step.id,
                    attempt=move.attempt,
                    position=position,
                    title=move.step.title,
                    status=StepStatus.RUNNING.value,
                    started_at=now,
                    executions=1,
                    compensating=move.compensating,
                    data={},
                    findings=[],
                )
            )
        return 1

    def progress(self, run_id: str, move: RunStep, text: str, fraction: float | None) -> None:
        """Show what a running attempt says of itself; one that has ended meanwhile keeps its end."""
        shown = None if fraction is None else min(1.0, max(0.0, fraction))
        with self._store.change(run_id) as connection:
            connection.execute(
                steps.update()
                .where(_key(run_id, move.step.id, move.attempt), steps.c.status == "running")
                .values(summary=text, progress=shown)
            )

    def end(self, run_id: str, end: StepEnd) -> None:
        """Keep how an attempt ended, with its line in the timeline."""
        outcome = end.outcome
        now = self._store.clock()
        with self._store.change(run_id) as connection:
            run = connection.execute(runs.select().where(runs.c.id == run_id)).one()
            connection.execute(
                steps.update()
                .where(_key(run_id, outcome.step_id, outcome.attempt))
                .values(
                    status=outcome.status,
                    summary=outcome.summary,
                    next_action=outcome.next_action,
                    progress=None,
                    ended_at=now,
                    data=outcome.data,
                    findings=[finding.model_dump(mode="json") for finding in end.findings],
                    verdict=None if end.verdict is None else end.verdict.model_dump(mode="json"),
                )
            )
            append(
                connection,
                at=now,
                host=run.host,
                actor="bot",
                kind=f"step.{outcome.status}",
                text=f"{outcome.step_id}: {outcome.summary}",
                run_id=run_id,
                incident_id=run.incident_id,
                data={"step": outcome.step_id, "attempt": outcome.attempt, "seconds": round(end.seconds, 3)},
            )


def _key(run_id: str, step_id: str, attempt: int) -> Any:
    return sa.and_(steps.c.run_id == run_id, steps.c.step_id == step_id, steps.c.attempt == attempt)
