"""The one generic workflow that executes every run, on DBOS.

It makes no decision: each of its steps reads the run's rows, does what they say and writes them. So a plan, a new step or
a new version never changes the workflow's own sequence, and an old run can always be resumed. If you change the sequence
here, raise `bot.runs.dbos_config.ENGINE_VERSION`; runs in progress are then started again from their rows.
"""

from collections.abc import Awaitable, Callable

from dbos import DBOS, SetWorkflowID, StepOptions
from sqlalchemy.exc import OperationalError

from bot.runs.approval_wait import ApprovalWait
from bot.runs.host_executor import HostExecutor
from bot.runs.plan_phase import PlanPhase

RUN_WORKFLOW = "gpu_oncall.run"
HOST_WORKFLOW = "gpu_oncall.host"

StartWorkflow = Callable[[str, str], Awaitable[None]]
"""`start(run_id, workflow_id)` begins a run's workflow and returns at once."""


def _database_is_away(error: BaseException) -> bool:
    return isinstance(error, OperationalError)


def _step(name: str) -> StepOptions:
    return {
        "name": name,
        "retries_allowed": True,
        "max_attempts": 8,
        "interval_seconds": 0.5,
        "backoff_rate": 2.0,
        "should_retry": _database_is_away,
    }


def register_workflows(
    plan_phase: PlanPhase, approval_wait: ApprovalWait, executor: HostExecutor
) -> StartWorkflow:
    """Register both workflows with DBOS, before its launch: recovery looks them up by name."""

    @DBOS.workflow(name=HOST_WORKFLOW, max_recovery_attempts=None)
    async def host_part(run_id: str) -> None:
        """Execute the part that follows the approvals: short-lived and free of human waits."""
        while not (await DBOS.run_step_async(_step("advance"), executor.advance, run_id))["ended"]:
            pass

    @DBOS.workflow(name=RUN_WORKFLOW, max_recovery_attempts=None)
    async def run(run_id: str) -> None:
        phase = await DBOS.run_step_async(_step("plan"), plan_phase.make, run_id)
        if phase == "gate":
            phase = await DBOS.run_step_async(_step("gate"), approval_wait.wait, run_id)
        if phase == "go":
            # Started directly, not through a queue: the host belongs to this process, and polling a queue often enough
            # to be fast costs more of a core than an idle bot may use.
            with SetWorkflowID(f"{DBOS.workflow_id}.host"):
                handle = await DBOS.start_workflow_async(host_part, run_id)
            await handle.get_result()

    async def start(run_id: str, workflow_id: str) -> None:
        with SetWorkflowID(workflow_id):
            await DBOS.start_workflow_async(run, run_id)

    return start
