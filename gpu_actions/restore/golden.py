"""The step before the first traffic stage: `restore.golden` compares the returning tier with its golden prompts.

A tier that answers quickly and wrongly must not get traffic. It is still idle here, so its tokens must equal the recorded ones.
"""

from pathlib import Path

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.serving.golden.check import check_golden
from gpu_actions.serving.golden.judgement import GoldenOutcome
from gpu_actions.tier import run_notes

BUDGET_S = 60.0
"""Four prompts of 16 tokens, twice, take 4-8 s on a slow 70B model."""

WRONG = "wrong_tokens"


def answered_wrongly(workdir: Path) -> bool:
    """Return True if the tier failed this check in this run, so that it must not be taken for one that serves."""
    return run_notes.recall(workdir, WRONG) is not None


@step("restore.golden")
async def compare_golden(context: StepContext) -> StepResult:
    """Effect: completions at the tier itself. Verified token by token against the record. A difference fails the step; what
    cannot be compared is a warning."""
    file, override = context.args["golden"], str(context.args["override_reason"])
    context.report("golden prompts", None)
    judgement = await check_golden(
        context.host.tp.engine, None if file is None else Path(str(file)), budget_s=BUDGET_S
    )
    data = judgement.model_dump(mode="json", exclude_none=True)
    if judgement.outcome is GoldenOutcome.MATCHES:
        return StepResult(summary=judgement.summary, data=data)
    if judgement.outcome is GoldenOutcome.DIFFERS and not override:
        run_notes.keep(context.workdir, WRONG, data)
        raise StepFailed(
            judgement.summary,
            next_action=f"{judgement.action} To restore it anyway: /restore start {context.host.name} "
            "override_reason=...",
            data=data,
        )
    note = f"; overridden: {override}" if judgement.outcome is GoldenOutcome.DIFFERS else ""
    return StepResult(summary=f"{judgement.summary}{note}; {judgement.action}", data=data, warning=True)
