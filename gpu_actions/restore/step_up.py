"""Step up the ladder: a bigger rung starts beside the smaller one that serves, and takes the traffic in judged stages.

The plan is a restore's own, over a view of the host in which the bigger rung plays tp and the smaller one the fallback
(`Host.stepping_up`). What differs: the GPUs of the rung must be well, not the whole host; it gets their scope; and there is no
comparison with a baseline, which is tp's.
"""

from gpu_actions.action import PlanRefused, PlanRequest
from gpu_actions.config.host import Rung
from gpu_actions.fallback.action import blocked_rungs
from gpu_actions.fallback.gpus import attributable
from gpu_actions.fallback.ladder import Pick, gpu_states, needs_of, pick_gpus
from gpu_actions.host import Host
from gpu_actions.loadtest.request import lower_to_caps
from gpu_actions.models import JsonObject
from gpu_actions.plan import Plan, Step
from gpu_actions.restore.plan_steps import Way, ending_of, order_of, restore_steps, stepback_step
from gpu_actions.tier.preflight import Facts, common_problems, gather_facts
from gpu_actions.tier.scope import NCCL_LEFTOVERS, scope_for

LEFT_OUT = ("compare",)


def problems_of(host: Host, facts: Facts, wanted: str) -> list[str]:
    """Return why there is nothing to step up to or from; empty if there is."""
    rungs = list(host.rungs)
    if not host.has_ladder or wanted not in rungs:
        return [f"there is no rung {wanted!r} here; the ladder has: {', '.join(rungs)}"]
    problems = common_problems(host.config, facts)
    if facts.tp.condition.serves or not facts.fallback.condition.serves:
        problems.append(
            f"no smaller rung serves to step up from (tp is {facts.tp.condition.value}, the fallback is "
            f"{facts.fallback.condition.value}): /fallback start {host.name} rung={wanted}"
        )
    if rungs.index(wanted) >= rungs.index(host.rung):
        problems.append(f"rung {wanted} is not above rung {host.rung}, which serves")
    return problems


def pick_beside(host: Host, rung: Rung, facts: Facts, request: PlanRequest) -> Pick:
    """Choose GPUs for the rung that have room now, beside the smaller rung."""
    states = gpu_states(
        facts.memories,
        request.verdict,
        limit_percent=host.config.fallback.memory_limit_percent,
        own_pids=facts.pids,
        count_others=attributable(facts.memories, facts.pids, tp_holds_memory=False),
    )
    free = [one.model_copy(update={"usable_gib": min(one.usable_gib, one.free_gib)}) for one in states]
    pick = pick_gpus(needs_of([rung])[0], free)
    if pick.carried and not pick.beside:
        return Pick(rung=rung.name, passed_over="memory_gib_per_gpu of the rung is not set")
    return pick


async def plan_step_up(request: PlanRequest, wanted: str) -> Plan:
    """Plan the step up to rung `wanted`. Raises PlanRefused with every problem found. Reads only."""
    host = request.host
    facts = await gather_facts(host)
    problems = problems_of(host, facts, wanted)
    if wanted not in host.rungs or problems:
        raise PlanRefused(problems)
    rung = host.rungs[wanted].config
    assert isinstance(rung, Rung), "only the last rung is none, and it is above no other"  # noqa: S101
    linked = bool(request.verdict and request.verdict.gpus)
    blocked = blocked_rungs(host, facts, links_are_known=linked).get(wanted, "")
    pick = pick_beside(host, rung, facts, request)
    if why := blocked or pick.passed_over:
        raise PlanRefused([f"rung {wanted} does not fit beside rung {host.rung}: {why}"])
    return _lay_out(host, facts, rung, pick, request)


def _lay_out(host: Host, facts: Facts, rung: Rung, pick: Pick, request: PlanRequest) -> Plan:
    view = host.stepping_up(host.rung, rung.name)
    seen = facts.model_copy(update={"tp": facts.rungs[rung.name], "rungs": {}})
    policy, folder = host.config.restore, request.baselines_dir
    load, load_notes = lower_to_caps(host.config.fallback.validate_load, host.config.loadtest, host.name)
    options: JsonObject = {
        "override_reason": "",
        "accept_no_baseline": True,
        "load": load.model_dump(mode="json"),
        "load_notes": list(load_notes),
        "baseline": None,
        "baselines_dir": None if folder is None else str(folder),
    }
    gpus = [gpu.uuid for gpu in pick.gpus]
    more: dict[str, JsonObject] = {
        "check": {"gpus": gpus, "needs_links": rung.needs_nvlink and rung.gpus > 1, "deep": False},
        "prepare": {"variables": scope_for(",".join(gpus) or None), "unset": list(NCCL_LEFTOVERS)},
        "warm": {"gpus": gpus},
    }
    ways = {"from": host.rung, "to": rung.name}

    def of_step_up(one: Step) -> Step:
        return one.model_copy(update={"args": {**one.args, **more.get(one.id, {}), "steps_up": ways}})

    steps = restore_steps(view, seen, Way.BESIDE, options=options)
    ids = order_of(Way.BESIDE, policy.stages_percent, ending_of(view.fallback.config, Way.BESIDE))
    stages = " -> ".join(f"{percent} %" for percent in policy.stages_percent)
    return Plan(
        action="restore",
        host=host.name,
        title=f"Step up from rung {host.rung} to rung {rung.name}: beside it, then {stages}; {pick.note}",
        steps=tuple(of_step_up(steps[one]) for one in ids if one not in LEFT_OUT),
        compensation=(of_step_up(stepback_step(view, last_stage=f"shift-{policy.stages_percent[-1]}")),),
        losses=f"no request is expected to be lost: rung {rung.name} gets traffic only after it generates, "
        "in stages that step back automatically",
        options=request.arguments.model_dump(mode="json", exclude_defaults=True),
    )
