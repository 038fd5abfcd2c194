"""Which runs nobody carries: their row is active, and DBOS has no workflow that will go on with them.

It happens when the bot was killed between the row and its workflow, when another version or a refused row left a workflow
behind, and it is silent in DBOS itself (engine.md, trap 1).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from dbos import DBOS

from bot.runs.dbos_engine import ENGINE_VERSION
from bot.store.records import RunStatus
from bot.store.store import Store
from gpu_actions.models import Frozen

log = structlog.get_logger()

ALIVE = frozenset({"PENDING", "ENQUEUED", "DELAYED"})
MAX_GENERATIONS = 5


class Stranded(Frozen):
    """One run that nobody carries."""

    run_id: str
    workflow_id: str
    status: str
    why: str
    never_began: bool = False


async def find_stranded(rows: Sequence[Any]) -> list[Stranded]:
    """Compare active run rows with their workflows."""
    found = []
    for row in rows:
        why, never_began = await _why(row.workflow_id)
        if why:
            found.append(
                Stranded(
                    run_id=row.id,
                    workflow_id=row.workflow_id,
                    status=row.status,
                    why=why,
                    never_began=never_began,
                )
            )
    return found


async def _why(workflow_id: str) -> tuple[str, bool]:
    status = await DBOS.get_workflow_status_async(workflow_id)
    if status is None:
        return "its workflow was never started", True
    if status.status not in ALIVE:
        return f"its workflow ended as {status.status} while the run had not", False
    if status.app_version not in (None, ENGINE_VERSION):
        return f"its workflow belongs to engine version {status.app_version}, this is {ENGINE_VERSION}", False
    return "", False


def next_generation(lost: Stranded) -> str | None:
    """The id of the workflow that takes over (`RUN.r2`, `RUN.r3`, ...), or None when that was tried often enough."""
    _, _, number = lost.workflow_id.rpartition(".r")
    generation = (int(number) if number.isdigit() else 1) + 1
    return f"{lost.run_id}.r{generation}" if generation <= MAX_GENERATIONS else None


async def take_up(
    found: Sequence[Stranded], *, store: Store, start: Callable[[str, str], Awaitable[None]]
) -> None:
    """Start a workflow for each stranded run; one that was lost too often ends as FAILED and frees its host."""
    for lost in found:
        if RunStatus((await asyncio.to_thread(store.row, lost.run_id)).status).final:
            continue  # it ended between the two looks
        log.warning("stranded run taken up again", run=lost.run_id, why=lost.why)
        workflow_id = lost.workflow_id if lost.never_began else next_generation(lost)
        if workflow_id is None:
            outcome = (
                f"The run engine lost it {MAX_GENERATIONS} times ({lost.why}). "
                "What the host is doing now is not known."
            )
            await asyncio.to_thread(
                store.move,
                lost.run_id,
                allowed=[status for status in RunStatus if not status.final],
                to=RunStatus.FAILED,
                actor="bot",
                text=outcome,
                values={"outcome": outcome, "next_action": "look at the host with triage"},
            )
            continue
        await asyncio.to_thread(store.update_run, lost.run_id, workflow_id=workflow_id)
        await start(lost.run_id, workflow_id)
