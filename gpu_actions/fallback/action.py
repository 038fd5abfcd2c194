"""The fallback action: probe the host, choose one of three orders, and lay out every step with what it will use.

`planned`: the fallback is launched and proved beside a serving tier, then the traffic moves. `overlapped`:
the tier does not serve but there is room, so the launch comes first. `in_place`: no room, so the tier stops first.

With a ladder the highest rung that today's GPUs can carry comes first, and each further attempt is the next rung below.
"""

import asyncio

from pydantic import Field

from gpu_actions.action import ActionSpec, PlanRefused, PlanRequest
from gpu_actions.config.host import LAST_RUNG, HostConfig, Rung
from gpu_actions.fallback import hold, settle, validate
from gpu_actions.fallback.gpus import Candidate, Choice, attributable, choose_gpus
from gpu_actions.fallback.ladder import gpu_states, needs_of, pick_rungs, with_rungs
from gpu_actions.fallback.plan_steps import (
    GROUPED,
    ORDERS,
    Order,
    fallback_steps,
    refused_text,
    rung_arguments,
    settle_step,
)
from gpu_actions.host import Host
from gpu_actions.loadtest.knee_limits import fallback_limits
from gpu_actions.models import Frozen, Verdict
from gpu_actions.plan import Plan
from gpu_actions.serving.condition import Condition
from gpu_actions.tier import drain, launch, scope, stop, traffic, warm
from gpu_actions.tier.condition import KnownHang
from gpu_actions.tier.preflight import Facts, common_problems, gather_facts, start_problems, unit_problems
from gpu_actions.trace.in_plan import trace_steps

STEP_MODULES = (drain, hold, launch, scope, settle, stop, traffic, validate, warm)
"""Importing them registers their step functions."""

GROUP = "serve"

HANG_CAUSE = "nccl_hang"
"""Triage's cause for a hung collective. It needs two sources of evidence, so planning only confirms it."""


class FallbackArguments(Frozen):
    """Options of `/fallback plan` and `/fallback start`."""

    gpu: str = Field(
        default="auto",
        pattern=r"^(auto|\d{1,2}|GPU-[A-Za-z0-9-]+)$",
        description="auto (triage's choice), a UUID or an index",
    )
    rung: str = Field(
        default="",
        pattern=r"^[a-z0-9_-]*$",
        description="begin with this rung of the ladder instead of the highest that can be carried",
    )
    reason: str = Field(default="", max_length=300, description="why, for the record")
    skip_validation: bool = Field(default=False, description="leave the load test out")


def choose_order(tp: Condition, *, beside: bool) -> Order:
    """Choose the order: without room for the fallback the tier stops first; `planned` needs a serving tier."""
    if not beside:
        return Order.IN_PLACE
    return Order.PLANNED if tp.serves else Order.OVERLAPPED


def problems_of(config: HostConfig, facts: Facts) -> list[str]:
    """Return why a fallback cannot work now; empty if it can."""
    problems = common_problems(config, facts)
    if not config.ladder:
        problems += start_problems(config.every_tier, LAST_RUNG, facts.fallback)
    server = facts.fallback.server
    serving = facts.fallback.condition.serves and not facts.tp.active
    if serving and server is not None and server.weight > 0:
        problems.append(
            f"the fallback tier already serves (weight {server.weight}) and tp is stopped, so there is nothing to do; "
            f"to return to tp: /restore plan {config.name}"
            + (
                f"; to step up to a bigger rung beside it: /restore start {config.name} rung=NAME"
                if config.ladder
                else ""
            )
        )
    return problems


def choose(host: Host, facts: Facts, request: PlanRequest) -> Choice:
    """Choose the rungs and their GPUs, in the order in which they are tried."""
    arguments: FallbackArguments = request.arguments
    limit_percent = host.config.fallback.memory_limit_percent
    tp_holds_memory = facts.tp.active and host.tp.config.gpus > 0
    standby = facts.on_rung(LAST_RUNG).fallback
    last = choose_gpus(
        host.rungs[LAST_RUNG].config,
        facts.memories,
        request.verdict,
        wanted=arguments.gpu,
        limit_percent=limit_percent,
        own_pids=facts.pids,
        tp_holds_memory=tp_holds_memory,
        names=facts.process_names,
        standby_on=standby.asleep_on,
    )
    wanted = arguments.rung
    if not host.has_ladder:
        if wanted in ("", LAST_RUNG):
            return last
        return Choice(problems=(f"rung={wanted}: {host.name} has no ladder (hosts.tiers.ladder)",))
    if wanted not in ("", *host.rungs):
        return Choice(problems=(f"there is no rung {wanted!r} here; rung= takes: {', '.join(host.rungs)}",))
    if arguments.gpu != "auto":
        if wanted not in ("", LAST_RUNG):
            return Choice(problems=(f"gpu= chooses the GPU of rung {LAST_RUNG}, not of rung {wanted}",))
        wanted = LAST_RUNG
    gpus = gpu_states(
        facts.memories,
        request.verdict,
        limit_percent=limit_percent,
        own_pids=facts.pids,
        count_others=attributable(facts.memories, facts.pids, tp_holds_memory=tp_holds_memory),
    )
    resident = host.rungs[LAST_RUNG].config.standby == "resident" and standby.condition.serves
    return with_rungs(
        last,
        pick_rungs(needs_of(host.config.ladder), gpus),
        wanted=wanted,
        blocked=blocked_rungs(host, facts, links_are_known=bool(request.verdict and request.verdict.gpus)),
        standby_is_ready=standby.asleep_on is not None or resident,
    )


def blocked_rungs(host: Host, facts: Facts, *, links_are_known: bool) -> dict[str, str]:
    """Return by rung why it cannot start now, whatever the GPUs are."""
    blocked = {}
    for name, tier in host.rungs.items():
        rung = facts.rungs[name]
        problems = [*unit_problems(name, rung), *start_problems(host.config.every_tier, name, rung)]
        needs_links = isinstance(tier.config, Rung) and tier.config.needs_nvlink and tier.config.gpus > 1
        if needs_links and not links_are_known:
            problems.append("no triage of the last hour says which GPUs reach each other: run /triage first")
        if needs_links and not facts.memories.gpus:
            problems.append(f"the GPUs cannot be read ({facts.memories.error or 'NVML lists no GPU'})")
        if problems:
            blocked[name] = "; ".join(problems)
    return blocked


def losses_of(order: Order, host: Host, facts: Facts, *, woken: bool = False) -> str:
    """Describe in one sentence what the fallback costs the clients."""
    sessions = facts.tp.server.sessions if facts.tp.server else 0
    refused = refused_text(host, woken=woken)
    if facts.tp.condition is Condition.STOPPED:
        return f"nothing more, because tp is stopped already; {refused}"
    if order is Order.PLANNED:
        return (
            "no request is expected to be lost: traffic moves after the fallback generates; "
            "tp's caches are lost when it stops"
        )
    if facts.tp.condition.serves:
        return (
            f"requests that do not finish within {host.config.fallback.drain_timeout_s:g} s of draining "
            f"({sessions} are running now); {refused}; tp's caches"
        )
    return (
        f"the requests that hang on tp ({sessions} now): those without an answer yet are sent to the fallback, "
        f"the others are aborted; {refused}"
    )


async def plan_fallback(request: PlanRequest) -> Plan:
    """Plan a fallback. Raises PlanRefused with every problem found. Reads only; a hung tier takes about 4 s."""
    arguments: FallbackArguments = request.arguments
    host = request.host
    facts = await gather_facts(host, known=known_hang(request.verdict, age_s=request.verdict_age_s))
    choice = choose(host, facts, request)
    problems = [*problems_of(host.config, facts), *choice.problems]
    if problems:
        raise PlanRefused(problems)
    return lay_out(host, facts, choice, arguments)


async def plan_start(request: PlanRequest) -> Plan:
    """Hold new requests as soon as tp seems to serve nothing, while the plan finds out. Without a plan, or if tp serves,
    they are given back. A plan that is made sooner, of a hang that triage has found, is not kept waiting for that."""
    planned = asyncio.Event()
    holding = asyncio.create_task(hold.hold_first(request.host, planned))
    keep = False
    try:
        plan = await plan_fallback(request)
        keep = any(step.verb == "fallback.hold" for step in plan.steps)
        return plan
    finally:
        planned.set()
        if await holding and not keep:
            await hold.give_back(request.host)


def known_hang(verdict: Verdict | None, *, age_s: float) -> KnownHang | None:
    """Return the hang of the tier that a verdict reports, or None."""
    if verdict is None or verdict.cause != HANG_CAUSE:
        return None
    progress = [
        finding.evidence["progress"] for finding in verdict.findings if "progress" in finding.evidence
    ]
    tokens = progress[0].get("generation_tokens_last") if progress else None
    return KnownHang(age_s=age_s, tokens=tokens)


def lay_out(host: Host, facts: Facts, choice: Choice, arguments: FallbackArguments) -> Plan:
    """Build the plan from the facts and the chosen GPUs. It reads nothing but how long the last start took."""
    first = choice.candidates[0]
    beside = all(one.beside for one in choice.candidates) if host.has_ladder else first.beside
    now = facts.fallback
    if host.has_ladder and now.active and now.asleep_on is None and not now.condition.serves:
        beside = False  # a rung that hangs is stopped before the next one starts, so its evidence comes first
    host, facts = host.on_rung(first.rung), facts.on_rung(first.rung)
    order = choose_order(facts.tp.condition, beside=beside)
    steps = {step.id: step for step in fallback_steps(host, facts, choice, order)}
    left_out = {"validate"} if arguments.skip_validation else set()
    if facts.tp.condition.serves:
        left_out.add("hold")
    ids = [i for i in ORDERS[order] if i not in left_out]
    # The last step is the outcome of the run, and says what clients saw.
    last = steps[ids[-1]]
    steps[last.id] = last.model_copy(update={"args": {**last.args, "with_clients": True}})
    warnings = [*choice.passed_over, *choice.warnings]
    if facts.router_error:
        warnings.append(f"the router does not answer and will be started: {facts.router_error}")
    warnings += fallback_limits(host).warnings
    if arguments.skip_validation:
        warnings.append("the load test is left out, so nothing will prove the fallback under load")
    start = "wake the standby" if first.wakes else "launch it"
    how = {
        Order.PLANNED: f"{start} beside the serving tp tier, then move the traffic",
        Order.OVERLAPPED: f"tp is {facts.tp.condition.value}: {start} at once, tp stays for the evidence until tokens flow",
        Order.IN_PLACE: "stop tp first, because the fallback needs its GPU memory",
    }[order]
    traced = () if arguments.skip_validation else trace_steps(host, host.fallback)
    return Plan(
        action="fallback",
        host=host.name,
        title=f"Fall back to {_where(host, first)} ({order.value}): {how}",
        steps=(
            *(steps[i].model_copy(update={"group": GROUP}) if i in GROUPED else steps[i] for i in ids),
            *traced,
        ),
        alternatives={
            GROUP: tuple(
                {
                    "gpu": candidate.gpu,
                    "variables": scope.scope_for(candidate.devices),
                    "attempt": number,
                    "wake": candidate.wakes,
                    **(rung_arguments(host.on_rung(candidate.rung), candidate) if host.has_ladder else {}),
                }
                for number, candidate in enumerate(choice.candidates, start=1)
            )
        },
        compensation=(settle_step(host, facts),),
        losses=losses_of(order, host, facts, woken=first.wakes),
        warnings=tuple(warnings),
        options=arguments.model_dump(mode="json", exclude_defaults=True),
    )


def _where(host: Host, first: Candidate) -> str:
    """Return what the fallback runs on, in a few words."""
    count = host.fallback.config.gpus
    if not host.has_ladder:
        return "one GPU"
    return f"rung {first.rung} ({'on the CPU' if not count else '1 GPU' if count == 1 else f'{count} GPUs'})"


SPEC = ActionSpec(
    name="fallback",
    prefix="fb",
    summary="Save the evidence, then serve from one healthy GPU.",
    arguments=FallbackArguments,
    plan=plan_fallback,
    plan_start=plan_start,
    give_back=hold.give_back,
    changes_host=True,
    usages=(
        ("plan [host]", "show every step with its commands, files and weights; changes nothing"),
        ("start [host]", "run it; one message shows each step"),
        ("status [host]", "show where it is"),
        ("stop [host]", "stop it and leave one defined state"),
    ),
)
