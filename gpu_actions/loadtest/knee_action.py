"""The step that searches for the knee: `/loadtest start find=knee`."""

from gpu_actions.action import StepContext, StepResult, step
from gpu_actions.config.policies import limits_text
from gpu_actions.loadtest.child import find_knee_in_child
from gpu_actions.loadtest.knee_limits import keep_knee, limits_of
from gpu_actions.loadtest.knee_result import KNEE_JSON, KNEE_PNG, knee_chart, knee_lines, knee_text, read_knee
from gpu_actions.loadtest.report import TEXT_NAME, files_of
from gpu_actions.loadtest.result import RunVerdict
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.stoppable import run_until_stopped
from gpu_actions.plan import Step

FILES = {KNEE_PNG: "knee", KNEE_JSON: "figures", TEXT_NAME: "summary"}
OVERHEAD_S = 90.0
"""Beside the budget: start of the child, the last trial's drain, the picture."""


def knee_step(
    spec: LoadSpec, tier: str, *, target: str, max_qps: float, budget_s: float, notes: tuple[str, ...]
) -> Step:
    """Return the step that searches for `budget_s` up to `max_qps`."""
    limits = f"{limits_text(spec)}, errors {spec.max_error_percent:g} %"
    return Step(
        id="knee",
        verb="loadtest.knee",
        title=f"search for the highest rate on {target} that holds {limits}",
        args={
            "spec": spec.model_dump(mode="json", exclude={"api_key"}),
            "tier": tier,
            "target": target,
            "max_qps": max_qps,
            "budget_s": budget_s,
        },
        details=(
            f"{spec.url} with model {spec.model}, {spec.new_tokens_text} new tokens, prompts "
            f"{spec.prompt_len_min}-{spec.prompt_len_max}",
            f"trials of some seconds from {min(spec.target_qps, max_qps):g} up to {max_qps:g} requests/s",
            "it overloads the service for some seconds at a time: real requests wait or fail meanwhile",
            *notes,
        ),
        timeout_s=budget_s + OVERHEAD_S,
        expected_s=budget_s,
        mutates=False,
    )


@step("loadtest.knee")
async def knee(context: StepContext) -> StepResult:
    """Effect: trials of some seconds on the service. Verified by the measured figures in knee.json. A finished search of this
    run is not repeated."""
    folder = context.workdir / context.step.id
    try:
        result = read_knee(folder / KNEE_JSON)
    except ValueError:  # none yet
        result = await run_until_stopped(
            context,
            lambda spec, stop: find_knee_in_child(
                spec,
                folder,
                lambda now: context.report(now.text, now.fraction),
                max_qps=context.args["max_qps"],
                budget_s=context.args["budget_s"],
                stop=stop,
            ),
        )
    offered = limits_of(result)
    text = knee_text(result)
    if offered is not None:
        text += f"limits that fit: {offered.text}\n"
        if context.args.get("target") == context.args["tier"]:
            keep_knee(context.host, context.args["tier"], result)
        else:
            text += (
                "not kept for the fallback: it was measured through the router, with the limits of the router; "
                f"measure with target={context.args['tier']}\n"
            )
    return StepResult(
        summary=knee_lines(result)[0],
        data={
            "verdict": result.verdict.value,
            "thread_text": text,
            "chart": knee_chart(result),
            "limits": None if offered is None else offered.model_dump(),
            "knee_folder": str(folder),
            "knee_qps": result.knee_qps,
        },
        artifacts=files_of(folder, FILES),
        warning=result.verdict is not RunVerdict.PASSED,
    )
