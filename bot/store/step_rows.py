"""The rows of steps: started, reporting, ended. They let a killed run continue with the next step.

An attempt that has ended never runs again, even if the bot was killed between this row and the workflow engine's own
record. An interrupted attempt is started again and counts one more execution.
"""

import sqlalchemy as sa

from bot.store.records import StepStatus
from bot.store.schema import steps
from bot.store.store import Store
from gpu_actions.walk import Outcome, RunStep, StepEnd

OUTCOME_FIELDS = tuple(Outcome.model_fields)
INTERRUPTED_SUMMARY = "interrupted when the bot ended; the cleanup checks the actual state of the host"


class StepRows:
    """The steps of all runs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def outcomes(self, run_id: str) -> list[Outcome]:
        """Return how the attempts of a run ended, in order: the input of `next_move`."""
        query = (
            steps.select()
            .where(steps.c.run_id == run_id, steps.c.status.not_in(["running", "pending"]))
            .order_by(steps.c.position)
        )
        with self._store.database.read() as connection:
            rows = connection.execute(query).all()
        return [Outcome.model_validate({name: getattr(row, name) for name in OUTCOME_FIELDS}) for row in rows]

    def begin(self, run_id: str, move: RunStep) -> int:
        """Mark an attempt as running. Return how often it has been executed, this time included.

        Close another attempt that is still marked as running as cancelled: the bot was killed, then a stop led elsewhere.
        """
        this = _key(run_id, move.step.id, move.attempt)
        with self._store.change(run_id) as change:
            change.connection.execute(
                steps.update()
                .where(steps.c.run_id == run_id, steps.c.status == "running", sa.not_(this))
                .values(status=StepStatus.CANCELLED.value, summary=INTERRUPTED_SUMMARY, ended_at=change.at)
            )
            known = change.connection.execute(steps.select().where(this)).one_or_none()
            if known is not None:
                again = {"executions": int(known.executions) + 1, "summary": "", "progress": None}
                change.connection.execute(steps.update().where(this).values(again))
                return int(known.executions) + 1
            count = sa.select(sa.func.count()).select_from(steps).where(steps.c.run_id == run_id)
            change.connection.execute(
                steps.insert().values(
                    run_id=run_id,
                    step_id=move.step.id,
                    attempt=move.attempt,
                    position=change.connection.execute(count).scalar_one(),
                    title=move.step.title,
                    status=StepStatus.RUNNING.value,
                    started_at=change.at,
                    executions=1,
                    compensating=move.compensating,
                    data={},
                    findings=[],
                )
            )
        return 1

    def progress(self, run_id: str, move: RunStep, text: str, fraction: float | None) -> None:
        """Store the progress of a running attempt. One that has ended meanwhile keeps its summary."""
        shown = None if fraction is None else min(1.0, max(0.0, fraction))
        running = sa.and_(_key(run_id, move.step.id, move.attempt), steps.c.status == "running")
        with self._store.change(run_id) as change:
            change.connection.execute(steps.update().where(running).values(summary=text, progress=shown))

    def end(self, run_id: str, end: StepEnd) -> None:
        """Store how an attempt ended, and append it to the audit trail."""
        outcome = end.outcome
        with self._store.change(run_id) as change:
            change.connection.execute(
                steps.update()
                .where(_key(run_id, outcome.step_id, outcome.attempt))
                .values(
                    status=outcome.status,
                    summary=outcome.summary,
                    next_action=outcome.next_action,
                    progress=None,
                    ended_at=change.at,
                    data=outcome.data,
                    findings=[finding.model_dump(mode="json") for finding in end.findings],
                    verdict=None if end.verdict is None else end.verdict.model_dump(mode="json"),
                )
            )
            change.record(
                f"step.{outcome.status}",
                f"{outcome.step_id}: {outcome.summary}",
                data={
                    "step": outcome.step_id,
                    "attempt": outcome.attempt,
                    "seconds": round(end.seconds, 3),
                },
            )


def _key(run_id: str, step_id: str, attempt: int) -> sa.ColumnElement[bool]:
    return sa.and_(steps.c.run_id == run_id, steps.c.step_id == step_id, steps.c.attempt == attempt)
