"""The forensics action: save the evidence of a host, with more time than the first seconds of an incident allow.

`nvidia-bug-report.sh --safe-mode` takes minutes. It is an option for when the traffic is safe.
"""

import asyncio
import shutil
from pathlib import Path

from pydantic import Field

from gpu_actions.action import ActionSpec, PlanRefused, PlanRequest, StepContext, StepFailed, StepResult, step
from gpu_actions.forensics.step import capture_step
from gpu_actions.models import Frozen
from gpu_actions.plan import Plan, Step
from gpu_actions.system.files import artifact_of
from gpu_actions.system.folder_lock import locked_folder
from gpu_actions.system.processes import child_environment, run_process
from gpu_actions.system.redact import redacted_tail

BUG_REPORT = "nvidia-bug-report.sh"
BUG_REPORT_TIMEOUT_S = 600.0
"""NVIDIA's script can hang on a broken driver. A healthy 8-GPU host needs ten minutes at most."""


class ForensicsArguments(Frozen):
    """Options of `/forensics`."""

    budget: float = Field(default=30, gt=0, le=300, description="seconds for the bundle")
    bug_report: bool = Field(default=False, description="also run nvidia-bug-report.sh --safe-mode (minutes)")
    reason: str = Field(default="", max_length=300, description="why, for the record")


async def plan_forensics(request: PlanRequest) -> Plan:
    """Plan a capture. Refused when a bug report is requested and its script is not installed."""
    arguments: ForensicsArguments = request.arguments
    if arguments.bug_report and shutil.which(BUG_REPORT) is None:
        raise PlanRefused([f"{BUG_REPORT} is not installed on {request.host.name}: leave bug_report out"])
    steps = [capture_step(request.host, budget_s=arguments.budget)]
    if arguments.bug_report:
        steps.append(
            Step(
                id="bug_report",
                verb="forensics.bug_report",
                title="NVIDIA's bug report",
                details=(f"{BUG_REPORT} --safe-mode, at most {BUG_REPORT_TIMEOUT_S:g} s",),
                timeout_s=BUG_REPORT_TIMEOUT_S + 30,
                expected_s=240,
                mutates=False,
                on_failure="continue",
            )
        )
    return Plan(
        action="forensics",
        host=request.host.name,
        title="Save the evidence of this host",
        steps=tuple(steps),
        options=arguments.model_dump(mode="json", exclude_defaults=True),
    )


@step("forensics.bug_report")
async def bug_report(context: StepContext) -> StepResult:
    """Effect: a file in the run's folder. Verified: it exists and is not empty."""
    output = context.workdir / "nvidia-bug-report"
    progress = asyncio.create_task(_show_progress(context))
    try:
        # Two bug reports at once disturb each other.
        async with locked_folder(context.host.state_dir / "bug_report", timeout_s=0):
            result = await run_process(
                [BUG_REPORT, "--safe-mode", "--output-file", str(output)],
                timeout_s=BUG_REPORT_TIMEOUT_S,
                env=child_environment(),
                cwd=context.workdir,
            )
    except TimeoutError:
        raise StepFailed(
            "another bug report is running on this host", next_action="wait until it ends"
        ) from None
    finally:
        progress.cancel()
    files = [
        path for ending in ("", ".log", ".log.gz", ".gz") if (path := Path(f"{output}{ending}")).is_file()
    ]
    if not files or not files[-1].stat().st_size:
        raise StepFailed(
            f"{BUG_REPORT} wrote nothing: "
            + ("it was stopped at its deadline" if result.timed_out else redacted_tail(result.stderr, 300)),
            next_action="run it by hand as root",
        )
    files[-1].chmod(0o600)
    return StepResult(
        summary=f"{files[-1].name}, {files[-1].stat().st_size / 1024**2:.1f} MiB",
        artifacts=(artifact_of(files[-1], source=f"{BUG_REPORT} --safe-mode"),),
    )


async def _show_progress(context: StepContext) -> None:
    seconds = 0
    while True:
        context.report(f"{BUG_REPORT} is running, {seconds} s", min(0.95, seconds / BUG_REPORT_TIMEOUT_S))
        await asyncio.sleep(5)
        seconds += 5


SPEC = ActionSpec(
    name="forensics",
    prefix="fo",
    summary="Save the evidence of a host in one bundle: stacks, logs, GPU state and metrics.",
    arguments=ForensicsArguments,
    plan=plan_forensics,
    changes_host=False,
    usages=(
        ("[host]", "collect now"),
        ("plan [host]", "show what it would collect"),
        ("status [host]", "show where the last one is"),
        ("stop [host]", "end it early"),
    ),
    usage_hint="[host]",
    shell_verbs=("verify",),
    starts_by_name=True,
)
