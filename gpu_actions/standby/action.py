"""The standby action: start the fallback's engine beside a serving tier, prove it with a token, and put it to sleep.

If a standby sleeps already, the run wakes it, asks it for a token, and puts it to sleep again, which is the only proof that a
fallback could use it. A standby never gets traffic and is no capacity.
"""

from gpu_actions.action import ActionSpec, PlanRefused, PlanRequest, StepContext, StepResult, step
from gpu_actions.config.host import LAST_RUNG, TierConfig
from gpu_actions.fallback.gpus import Candidate, Choice, choose_gpus
from gpu_actions.fallback.plan_steps import launch_step, scope_step
from gpu_actions.host import Host
from gpu_actions.models import Frozen
from gpu_actions.plan import Plan, Step
from gpu_actions.serving.condition import Condition
from gpu_actions.serving.interfaces import RouterError
from gpu_actions.serving.registry import ENGINES
from gpu_actions.tier import launch, scope, sleep, warm
from gpu_actions.tier.plan_steps import sleep_step, warm_step
from gpu_actions.tier.preflight import Facts, common_problems, gather_facts, start_problems
from gpu_actions.tier.standby import forget_note, is_asleep

STEP_MODULES = (launch, scope, sleep, warm)
"""Importing them registers their step functions."""


class StandbyArguments(Frozen):
    """`/standby` takes no options."""


def problems_of(host: Host, facts: Facts) -> list[str]:
    """Return why a standby cannot be made or tested now; empty if it can."""
    config, fallback = host.config, facts.fallback
    problems = [*common_problems(config, facts), *start_problems(config.every_tier, host.rung, fallback)]
    if host.fallback.config.standby == "off":
        problems.append("no standby is configured: set tiers.fallback.standby to sleep or resident")
    if fallback.server is not None and fallback.server.weight > 0 and fallback.active:
        problems.append("the fallback has the traffic: a restore leaves it as the standby")
    elif not facts.tp.condition.serves:
        problems.append(
            f"tp is {facts.tp.condition.value}, so this is no time for a standby: /triage {config.name}, "
            f"then /fallback start {config.name}"
        )
    return problems


def beside_only(choice: Choice) -> Choice:
    """Keep the GPUs on which the standby fits while tp runs. Without one, the problem says how to make room."""
    beside = tuple(candidate for candidate in choice.candidates if candidate.beside)
    if beside or choice.problems:
        return choice.model_copy(update={"candidates": beside})
    first = choice.candidates[0]
    if first.wakes:
        return Choice(
            problems=(f"the standby sleeps, but there is no room beside tp to test it: {first.note}",)
        )
    return Choice(
        problems=(
            f"the standby does not fit beside tp: {first.note}; give tp less memory, "
            "or let the next restore put the fallback to sleep before tp starts",
        )
    )


async def plan_standby(request: PlanRequest) -> Plan:
    """Plan to make the standby, or to test one that sleeps. Raises PlanRefused with every problem found."""
    host = request.host.on_rung(LAST_RUNG)
    facts = await gather_facts(host)
    choice = beside_only(
        choose_gpus(
            host.fallback.config,
            facts.memories,
            request.verdict,
            limit_percent=host.config.fallback.memory_limit_percent,
            own_pids=facts.pids,
            tp_holds_memory=facts.tp.active and host.tp.config.gpus > 0,
            names=facts.process_names,
            standby_on=facts.fallback.asleep_on,
            used_by_tp=_gpus_of_tp(facts),
        )
    )
    problems = [*problems_of(host, facts), *choice.problems]
    if problems:
        raise PlanRefused(problems)
    return lay_out(host, facts, choice)


def _gpus_of_tp(facts: Facts) -> frozenset[str]:
    """Return the GPUs on which tp's processes hold memory, by UUID."""
    pids = set(facts.tp.state.pids) if facts.tp.state is not None else set()
    return frozenset(gpu.uuid for gpu in facts.memories.gpus if pids & set(gpu.pids or ()))


def flags_missing(tier: TierConfig) -> tuple[str, ...]:
    """Return a warning if the unit's command line, where it is known, lacks a flag that sleeping needs."""
    words = tier.command_words
    if tier.standby != "sleep" or not words:
        return ()
    kind = ENGINES[tier.engine.kind]
    missing = [flag for flag in kind.sleep_flags if flag not in words]
    return (f"unit.argv does not name {', '.join(missing)}: {kind.sleep_hint}",) if missing else ()


def lay_out(host: Host, facts: Facts, choice: Choice) -> Plan:
    """Build the plan from the facts and the chosen GPUs."""
    first, sleeps = choice.candidates[0], host.fallback.config.standby == "sleep"
    steps = [
        scope_step(host, choice),
        launch_step(host, facts, choice),
        warm_step(host, host.fallback, woken=first.wakes),
    ]
    measure = Step(
        id="cost",
        verb="standby.cost",
        title="measure what it costs",
        timeout_s=60,
        expected_s=0.3,
        mutates=False,
    )
    end = [sleep_step(host.fallback, or_stop=False)] if sleeps else [measure]
    how = "wake it, ask it for a token, put it to sleep again" if first.wakes else "start it, prove it"
    return Plan(
        action="standby",
        host=host.name,
        title=f"Standby of the fallback ({host.fallback.config.standby}): {how}",
        steps=(*(one.model_copy(update={"group": "serve"}) for one in steps), *end),
        alternatives={
            "serve": tuple(_override(one, number) for number, one in enumerate(choice.candidates, 1))
        },
        compensation=(
            Step(
                id="remove",
                verb="standby.remove",
                title="stop what is no standby",
                timeout_s=120,
            ),
        ),
        losses="nothing: tp keeps its traffic; the GPU's bandwidth is shared while the weights move"
        + (f"; it costs {facts.fallback.asleep_note}" if facts.fallback.asleep_note else ""),
        warnings=(*choice.warnings, *flags_missing(host.fallback.config)),
    )


def _override(candidate: Candidate, attempt: int) -> dict[str, object]:
    return {
        "gpu": candidate.gpu,
        "variables": scope.scope_for(candidate.devices),
        "attempt": attempt,
        "wake": candidate.wakes,
    }


@step("standby.remove")
async def remove(context: StepContext) -> StepResult:
    """Effect: no half-started standby is left. One that sleeps, or a fallback that has the traffic, stays."""
    host, fallback = context.host, context.host.fallback
    try:
        server = await host.router.server(fallback.config.server)
        if server.weight > 0:
            return StepResult(summary="the fallback has the traffic and stays", data={"asleep": False})
    except RouterError:
        pass  # without a router nothing can have moved the traffic
    state = await fallback.unit.state()
    if await is_asleep(fallback, state):
        return StepResult(summary="the standby sleeps", data={"asleep": True})
    forget_note(fallback)
    await fallback.unit.stop()
    await fallback.unit.set_scope({})
    return StepResult(
        summary="there is no standby: the next fallback starts cold", data={"asleep": False}, warning=True
    )


def needs_care(host: Host, facts: Facts, *, ruled_out: frozenset[str] = frozenset()) -> str:
    """Return why the standby must be made anew; empty if it is well, or if now is no time for it.

    `ruled_out` are the GPUs, by UUID, that the last triage excludes.
    """
    fallback, wanted = facts.fallback, host.fallback.config.standby
    has_traffic = fallback.server is not None and fallback.server.weight > 0 and fallback.active
    if wanted == "off" or has_traffic or not facts.tp.condition.serves:
        return ""
    if not fallback.active:
        return "its process does not run"
    if wanted == "sleep" and fallback.asleep_on is None:
        return "it is awake"
    if fallback.asleep_on in ruled_out:
        return "triage excludes its GPU"
    if wanted == "resident" and fallback.condition is not Condition.SERVING:
        return f"it is {fallback.condition.value}"
    return ""


SPEC = ActionSpec(
    name="standby",
    prefix="sb",
    summary="Keep a fallback ready: start it, prove it, put it to sleep.",
    arguments=StandbyArguments,
    plan=plan_standby,
    changes_host=True,
    usages=(
        ("plan [host]", "show what would be started or tested, and where"),
        ("start [host]", "make the standby, or wake it, ask it for a token and put it to sleep again"),
        ("status [host]", "show where it is"),
        ("stop [host]", "stop it and remove a half-started standby"),
    ),
)
