"""The one generic workflow that carries every run, on DBOS.

It makes no decision: each of its steps reads the run's rows, does what they say and writes them. So a plan, a new step
or a new version never changes the workflow's own sequence, and an old run can always be resumed. Whoever changes the
sequence here must raise `bot.runs.dbos_engine.ENGINE_VERSION`; runs in progress are then started again from their rows.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dbos import DBOS, SetWorkflowID
from sqlalchemy.exc import OperationalError

from bot.runs.approval_wait import ApprovalWait, Phase
from bot.runs.host_executor import HostWalker
from gpu_actions.models import JsonObject

RUN_WORKFLOW = "gpu_oncall.run"
HOST_WORKFLOW = "gpu_oncall.host"


@dataclass(frozen=True, kw_only=True)
class Workflows:
    """The registered workflows; `start(run_id, workflow_id)` begins one and returns at once."""

    start: Callable[[str, str], Awaitable[None]]


def _database_is_away(error: BaseException) -> bool:
    return isinstance(error, OperationalError)


def register_workflows(approval_wait: ApprovalWait, walker: HostWalker) -> Workflows:
    """Register both workflows with the process's DBOS; before its launch, since recovery looks them up by name."""

    async def step(
        name: str, function: Callable[[str], Awaitable[Phase | JsonObject]], run_id: str
    ) -> object:
        async def body() -> Phase | JsonObject:
            return await function(run_id)

        return await DBOS.run_step_async(
            {
                "name": name,
                "retries_allowed": True,
                "max_attempts": 8,
                "interval_seconds": 0.5,
                "backoff_rate": 2.0,
                "should_retry": _database_is_away,
            },
            body,
        )

    @DBOS.workflow(name=HOST_WORKFLOW, max_recovery_attempts=None)
    async def host_part(run_id: str) -> None:
        """Short-lived and without human waits: the part that a host's own queue will carry in a fleet (trap 7)."""
        while True:
            made = await step("advance", walker.advance, run_id)
            if isinstance(made, dict) and made["ended"]:
                return

    @DBOS.workflow(name=RUN_WORKFLOW, max_recovery_attempts=None)
    async def run(run_id: str) -> None:
        phase = await step("plan", approval_wait.plan, run_id)
        if phase == "gate":
            phase = await step("gate", approval_wait.wait, run_id)
        if phase == "go":
            # started directly, not through a queue: the host is this process's own, and a queue polled often
            # enough not to be felt costs more of a core than an idle bot may use
            with SetWorkflowID(f"{DBOS.workflow_id}.host"):
                handle = await DBOS.start_workflow_async(host_part, run_id)
            await handle.get_result()

    async def start(run_id: str, workflow_id: str) -> None:
        with SetWorkflowID(workflow_id):
            await DBOS.start_workflow_async(run, run_id)

    return Workflows(start=start)
