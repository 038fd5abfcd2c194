"""Stranded runs: active in our database, while no DBOS workflow will ever continue them.

It happens when the bot was killed between writing the row and starting its workflow, or when a workflow ended or belongs to
another version. DBOS recovers only workflows of its own application version and reports nothing about the others.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from dbos import DBOS

from bot.runs.dbos_config import ENGINE_VERSION
from bot.runs.workflow import StartWorkflow
from bot.store.records import RunStatus
from bot.store.store import Store
from gpu_actions.models import Frozen

log = structlog.get_logger()

ALIVE = frozenset({"PENDING", "ENQUEUED", "DELAYED"})
MAX_GENERATIONS = 5


class StrandedRun(Frozen):
    """A run without a live workflow. `never_started` is True if DBOS does not know its workflow at all."""

    run_id: str
    workflow_id: str
    why: str
    never_started: bool = False


async def find_stranded_runs(rows: Sequence[Any]) -> list[StrandedRun]:
    """Compare rows of active runs with their workflows."""
    found = []
    for row in rows:
        status = await DBOS.get_workflow_status_async(row.workflow_id)
        if status is None:
            why = "its workflow was never started"
        elif status.status not in ALIVE:
            why = f"its workflow ended as {status.status} while the run had not"
        elif status.app_version not in (None, ENGINE_VERSION):
            why = f"its workflow belongs to engine version {status.app_version}, this is {ENGINE_VERSION}"
        else:
            continue
        stranded = StrandedRun(
            run_id=row.id, workflow_id=row.workflow_id, why=why, never_started=status is None
        )
        found.append(stranded)
    return found


async def resume_runs(found: Sequence[StrandedRun], *, store: Store, start: StartWorkflow) -> None:
    """Start a workflow for each stranded run. One that was stranded too often becomes FAILED, which frees its host."""
    for stranded in found:
        if RunStatus((await asyncio.to_thread(store.row, stranded.run_id)).status).final:
            continue  # it has ended since it was found
        log.warning("resuming a stranded run", run=stranded.run_id, why=stranded.why)
        workflow_id = stranded.workflow_id if stranded.never_started else _next_workflow_id(stranded)
        if workflow_id is not None:
            await asyncio.to_thread(store.update_run, stranded.run_id, workflow_id=workflow_id)
            await start(stranded.run_id, workflow_id)
            continue
        outcome = f"The run engine lost it {MAX_GENERATIONS} times ({stranded.why}). The state of the host is unknown."
        await asyncio.to_thread(
            store.move,
            stranded.run_id,
            allowed=[status for status in RunStatus if not status.final],
            to=RunStatus.FAILED,
            text=outcome,
            values={"outcome": outcome, "next_action": "check the host with triage"},
        )


def _next_workflow_id(stranded: StrandedRun) -> str | None:
    """Return the id of the next workflow (`RUN.r2`, `RUN.r3`, ...), or None after MAX_GENERATIONS."""
    _, _, number = stranded.workflow_id.rpartition(".r")
    generation = (int(number) if number.isdigit() else 1) + 1
    return f"{stranded.run_id}.r{generation}" if generation <= MAX_GENERATIONS else None
