"""The step `fallback.validate`: the runbook's load test, through the router, judged by its figures.

A missed limit is a warning, not a reason to go back: the fallback serves, and the tier it replaced does not.
"""

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.config.policies import LoadPolicy
from gpu_actions.loadtest.result import RunVerdict
from gpu_actions.models import Finding, Severity
from gpu_actions.serving.units.base import runs_although_frozen
from gpu_actions.tier.client_account import read_clients
from gpu_actions.tier.under_load import load_test


@step("fallback.validate")
async def validate(context: StepContext) -> StepResult:
    """Effect: some seconds of load on the service, and result files. Verified by the measured figures themselves."""
    host = context.host
    tested = await load_test(
        context,
        host.fallback,
        url=host.router.url,
        policy=LoadPolicy.model_validate(context.args["load"]),
        name="fallback validation",
        folder="single_gpu_fallback",
    )
    findings = await _tp_restarted(context)
    clients = await read_clients(context)
    if tested.result.verdict is RunVerdict.VOID:
        raise StepFailed(
            f"the load test does not tell whether the service is good: {tested.summary}",
            next_action=f"the fallback goes on serving; run /loadtest start {host.name}",
            artifacts=tested.artifacts,
            data={**tested.data, **clients.data},
            findings=findings,
        )
    summary = tested.summary
    if not tested.passed:
        summary += "; the fallback goes on serving: consider less traffic for this host"
    return StepResult(
        summary="; ".join([summary, *(finding.summary for finding in findings), clients.text]),
        data={**tested.data, **clients.data},
        artifacts=tested.artifacts,
        findings=findings,
        warning=not tested.passed or bool(findings),
    )


async def _tp_restarted(context: StepContext) -> tuple[Finding, ...]:
    """Return a finding if something started the frozen tp again."""
    tp = context.host.tp
    state = await tp.unit.state()
    who = await runs_although_frozen(state, tp.engine.url)
    if not who and not state.active:
        return ()
    frozen = "although it is frozen" if state.frozen else "and it is not frozen any more"
    return (
        Finding(
            id="serving.tp_restarted",
            component="serving",
            severity=Severity.WATCH,
            summary=f"something started tp again {frozen} ({who or f'process {state.main_pid}'})",
            evidence={"main_pid": state.main_pid, "started_at_s": state.started_at_s},
            action="find out what started it: it takes GPU memory from the fallback",
            subject="tp",
        ),
    )
