"""The restore action: start the full tier beside the fallback, prove it, compare it, and shift the traffic in watched stages.

The bot adds the approval gate from its settings. What approvers should know is in the plan's warnings.
"""

from pydantic import Field

from gpu_actions.action import ActionSpec, PlanRefused, PlanRequest
from gpu_actions.config.host import HostConfig
from gpu_actions.host import Host
from gpu_actions.models import Frozen
from gpu_actions.plan import Plan, Step
from gpu_actions.restore import check, finish, golden, loadcheck, shift, stepback
from gpu_actions.restore.loadcheck import likely_baseline, restore_load
from gpu_actions.restore.plan_steps import (
    Way,
    ending_of,
    fits_beside,
    gap_s,
    order_of,
    restore_steps,
    stepback_step,
)
from gpu_actions.restore.step_up import plan_step_up
from gpu_actions.tier import drain, launch, stop, warm
from gpu_actions.tier.preflight import Facts, common_problems, gather_facts, start_problems
from gpu_actions.trace.in_plan import trace_steps

STEP_MODULES = (check, drain, finish, golden, launch, loadcheck, shift, stepback, stop, warm)
"""Importing them registers their step functions."""


class RestoreArguments(Frozen):
    """Options of `/restore plan` and `/restore start`."""

    cause: str = Field(
        default="", max_length=300, description="what was wrong and how it was repaired, for the record"
    )
    override_reason: str = Field(
        default="", max_length=300, description="why to continue although triage is not healthy"
    )
    accept_no_baseline: bool = Field(
        default=False, description="yes: restore without a baseline to compare with"
    )
    rung: str = Field(
        default="",
        pattern=r"^[a-z0-9_-]*$",
        description="step up to this rung of the ladder beside the smaller one that serves, instead of returning to tp",
    )
    cut_over: bool = Field(default=False, description="stop the fallback first even where both would fit")


def problems_of(config: HostConfig, facts: Facts) -> list[str]:
    """Return why a restore cannot work now; empty if it can."""
    problems = [*common_problems(config, facts), *start_problems(config.every_tier, "tp", facts.tp)]
    server = facts.tp.server
    has_traffic = server is not None and server.weight > 0 and server.admin_state == "ready"
    if facts.tp.condition.serves and has_traffic and not facts.fallback.active:
        problems.append("the tp tier already serves all the traffic, so there is nothing to restore")
    if facts.tp.active and not facts.tp.condition.serves and has_traffic:
        problems.append(
            f"the tp tier runs, has traffic and does not generate: /fallback start {config.name} comes first"
        )
    return problems


def losses_of(way: Way, host: Host) -> str:
    """Describe in one sentence what the restore costs the clients."""
    if way is Way.BESIDE:
        return (
            "no request is expected to be lost: tp gets traffic only after it generates, "
            "in stages that step back automatically"
        )
    gap = gap_s(host)
    length = (
        "a gap as long as tp's start-up (not measured here yet)"
        if gap is None
        else f"a gap of about {gap:.0f} s"
    )
    retry = host.config.router.back_pressure.retry_after_s
    return f"{length} in which every request gets 503 with Retry-After: {retry}; the fallback stops before tp starts"


async def plan_restore(request: PlanRequest) -> Plan:
    """Plan a restore. Raises PlanRefused with every problem found. Reads only."""
    arguments: RestoreArguments = request.arguments
    if arguments.rung:
        return await plan_step_up(request, arguments.rung)
    host, policy = request.host, request.host.config.restore
    facts = await gather_facts(host)
    problems = problems_of(host.config, facts)
    if problems:
        raise PlanRefused(problems)
    fits, arithmetic = fits_beside(host.tp.config, facts.memories)
    serving = facts.fallback.condition.serves
    way = Way.BESIDE if fits and not arguments.cut_over else Way.CUT_OVER
    load, load_notes = await restore_load(host)
    baseline = likely_baseline(host, request.baselines_dir, load)
    steps = restore_steps(
        host,
        facts,
        way,
        options={
            "override_reason": arguments.override_reason,
            "accept_no_baseline": arguments.accept_no_baseline,
            "load": load.model_dump(mode="json"),
            "load_notes": list(load_notes),
            "baseline": baseline,
            "baselines_dir": None if request.baselines_dir is None else str(request.baselines_dir),
        },
    )
    warnings = []
    if baseline is None and not arguments.accept_no_baseline:
        warnings.append(
            "there is no baseline of this host: the run will stop at the comparison and ask; accept it now with "
            "accept_no_baseline=yes, or record one with /loadtest baseline on a good day"
        )
    if not arguments.cause:
        warnings.append("the plan does not say what was wrong and how it was repaired (cause=...)")
    if arguments.override_reason:
        warnings.append(f"triage is overridden: {arguments.override_reason}")
    if not serving:
        warnings.append(
            f"the fallback does not serve now ({facts.fallback.condition.value}): there is nothing to step back to"
        )
    if facts.router_error:
        warnings.append(f"the router does not answer and will be started: {facts.router_error}")
    stages = " -> ".join(f"{percent} %" for percent in policy.stages_percent)
    how = f"beside the fallback, then {stages}" if way is Way.BESIDE else "cut over: the fallback stops first"
    last_stage = f"shift-{policy.stages_percent[-1]}"
    return Plan(
        action="restore",
        host=host.name,
        title=f"Bring the full tier back ({way.value}): {how}; {arithmetic}",
        steps=_with_trace(
            host,
            way,
            tuple(
                steps[step_id]
                for step_id in order_of(way, policy.stages_percent, ending_of(host.fallback.config, way))
            ),
        ),
        compensation=(stepback_step(host, last_stage=last_stage),),
        losses=losses_of(way, host),
        warnings=tuple(warnings),
        options=arguments.model_dump(mode="json", exclude_defaults=True),
    )


def _with_trace(host: Host, way: Way, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Add the trace after the proof under load; its files are taken at the end, when the traffic has long moved."""
    traced = trace_steps(host, host.tp, before_traffic=way is Way.BESIDE)
    proved = next(number for number, step in enumerate(steps, 1) if step.id == "compare")
    return (*steps[:proved], *traced[:1], *steps[proved:], *traced[1:])


SPEC = ActionSpec(
    name="restore",
    prefix="rs",
    summary="Bring the full tier back behind approvals: start it, prove it, shift the traffic in stages.",
    arguments=RestoreArguments,
    plan=plan_restore,
    changes_host=True,
    usages=(
        ("plan [host]", "show every step, what is lost, and who must approve"),
        ("start [host]", "ask for the approvals, then run it"),
        ("status [host]", "show where it is"),
        ("stop [host]", "stop it; the traffic goes back to the fallback"),
    ),
    needs_approval=True,
    overrides=frozenset({"override_reason"}),
)
