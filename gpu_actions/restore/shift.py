"""The step `restore.shift`: one stage. Set the weights, observe, and move the traffic back at once if the stage fails.

`hold`, `next` and `abort` come from people while it runs (`StepContext.signals`).
"""

import asyncio
import contextlib
import secrets
import time

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.config.policies import RestorePolicy
from gpu_actions.host import Host
from gpu_actions.restore.analysis import (
    Orders,
    StageVerdict,
    Then,
    Window,
    decide_stage,
    describe,
    judge_stage,
    take_orders,
    weights_for,
)
from gpu_actions.restore.watch import Watcher
from gpu_actions.serving.interfaces import EngineError, RouterError, UnitError
from gpu_actions.tier import run_notes
from gpu_actions.tier.condition import generates, read_condition
from gpu_actions.tier.traffic import ready_router, route_to

READ_EVERY_S = 0.5
ORDERS_NOTE = "orders"
PROBE_S = 10.0
PROBE_PROMPT = "The service is coming back. In one sentence, say why that is good:"
PROBE_TOKENS = 4
ROUTER_AWAY_READINGS = 6
"""A router that is being restarted does not answer for a moment; this many readings without it end the stage."""


@step("restore.shift")
async def shift(context: StepContext) -> StepResult:
    """Effect: the stage's weights. Verified by reading them back and by the analysis of the observation period. A second
    execution continues with the window and the orders of the first."""
    host, args = context.host, context.args
    percent = int(args["percent"])
    policy = RestorePolicy.model_validate(args["policy"])
    tp, fallback = await asyncio.gather(generates(host.tp, timeout_s=PROBE_S), fallback_serves(host))
    if not tp:
        back = await move_back(context)
        raise StepFailed(
            f"{host.tp.label} does not generate, so it gets no traffic (stage {percent} %). {back}",
            next_action=f"/triage {host.name}",
        )
    asked_percent = percent
    if not fallback:  # it gets no share of the traffic, however small
        percent = 100
    await ready_router(host.router)
    watcher = Watcher(host, percent, policy, stall_s=float(args["stall_s"]))
    await watcher.begin(context)
    await set_stage(context, percent)
    probing = asyncio.create_task(_top_up(context, watcher, policy))
    try:
        then, reason, window = await _observe(context, watcher, policy)
    finally:
        probing.cancel()
        await asyncio.wait({probing})
    if percent != asked_percent:
        note = f"the fallback generates nothing, so {host.tp.label} got 100 % instead of {asked_percent} %"
        reason = f"{note}; {reason}" if reason else note
    data = {"percent": percent, "window": window.model_dump(mode="json"), "reason": reason}
    if then is Then.STEP_BACK:
        back = await move_back(context)
        raise StepFailed(
            f"{percent} %: {reason}. {back}",
            next_action=f"/triage {host.name}; then plan the restore again",
            data=data,
        )
    because = f" ({reason})" if reason else ""
    return StepResult(
        summary=f"{percent} % to {host.tp.label}: {describe(window)}{because}",
        data=data,
        warning=bool(window.missing or reason),
    )


async def set_stage(context: StepContext, percent: int) -> None:
    """Set the weights of a stage. tp becomes ready only after its weight is set, so that it never gets more than that."""
    tp, fallback = context.host.tp.config, context.host.fallback.config
    router = context.host.router
    tp_weight, fallback_weight = weights_for(
        percent,
        tp_weight=tp.weight,
        fallback_weight=fallback.weight,
        standby_weight=router.standby_weight,
    )
    if (await router.server(tp.server)).admin_state != "ready":
        await router.set_weight(tp.server, tp_weight, allow_zero_total=True)
        await router.undrain(tp.server)
    await router.shift({tp.server: tp_weight, fallback.server: fallback_weight})


async def fallback_serves(host: Host) -> bool:
    """Return True if the fallback generates now, however slowly. If its unit cannot be read, its tokens say so."""
    try:
        state = await host.fallback.unit.state()
    except (UnitError, OSError):
        return await generates(host.fallback, timeout_s=PROBE_S)
    reading = await read_condition(host.fallback, state, stall_s=PROBE_S)
    return reading.condition.serves


async def move_back(context: StepContext) -> str:
    """Move all traffic to the fallback if it generates. Return a sentence that says what was done. Never raises."""
    host = context.host
    try:
        if not await fallback_serves(host):
            return (
                "The fallback does not generate, so the weights stay until the clean-up has probed both tiers"
            )
        await route_to(host, host.fallback, host.tp)
    except RouterError as error:
        return f"The weights could not be set back: {error}"
    return "All traffic is back on the fallback"


async def _observe(context: StepContext, watcher: Watcher, policy: RestorePolicy) -> tuple[Then, str, Window]:
    """Read and judge until the stage is decided."""
    args = context.args
    hold_s = float(args["hold_s"])
    away = 0
    window = Window(percent=watcher.percent, seconds=0, requests=0)
    while True:
        orders = await read_orders(context)
        try:
            window = await watcher.read()
            away = 0
        except RouterError as error:
            away += 1
            if away >= ROUTER_AWAY_READINGS:
                return Then.STEP_BACK, f"the router does not answer: {error}", window
            with contextlib.suppress(RouterError):  # the next reading counts it
                await ready_router(context.host.router)
            await asyncio.sleep(READ_EVERY_S)
            continue
        judged = judge_stage(window, policy, min_requests=args.get("min_requests"))
        then, reason = decide_stage(
            judged,
            orders,
            elapsed_s=window.seconds,
            hold_s=hold_s,
            inconclusive_wait_s=policy.inconclusive_wait_s,
        )
        if then is Then.PASS and judged.verdict is StageVerdict.INCONCLUSIVE:
            reason = f"{reason}, though {'; '.join(judged.reasons)}"
        if then is not Then.WAIT:
            return then, reason, window
        context.report(f"{reason}; {describe(window)}", min(1.0, window.seconds / hold_s) if hold_s else None)
        await asyncio.sleep(READ_EVERY_S)


async def _top_up(context: StepContext, watcher: Watcher, policy: RestorePolicy) -> None:
    """Send the bot's own requests to tp while the stage has too few, so that it is not judged on two requests.

    Behind a router that looks into no answer they are all that finds an error event in an answer of status 200. They are
    spread over the observation period and limited to `max_probes_per_s`. Each prompt is new, so that a prefix cache does not
    answer it.
    """
    wanted = context.args.get("min_requests")
    wanted = policy.min_requests_per_stage if wanted is None else int(wanted)
    if not policy.max_probes_per_s or not wanted:
        return
    hold_s, started = float(context.args["hold_s"]), time.monotonic()
    tp = context.host.tp

    async def probe() -> None:
        prompt = f"{secrets.token_hex(4)} {PROBE_PROMPT}"
        try:
            await tp.engine.complete(prompt, max_tokens=PROBE_TOKENS, timeout_s=PROBE_S)
        except EngineError:
            watcher.failed_probes += 1
        watcher.probes += 1

    async with asyncio.TaskGroup() as group:
        while True:
            if watcher.judged_requests >= wanted:
                await asyncio.sleep(READ_EVERY_S)
                continue
            left_s = max(1.0, hold_s - (time.monotonic() - started))
            pace = min(policy.max_probes_per_s, (wanted - watcher.judged_requests) / left_s)
            group.create_task(probe())
            await asyncio.sleep(1 / pace)


async def read_orders(context: StepContext) -> Orders:
    """Return what people requested of this step. A pause and an abort carry over to later steps.

    `next` counts for one step, and only if it came after the step called this function for the first time: before that
    the person cannot have seen the question.
    """
    stage = context.step.id
    note = run_notes.recall(context.workdir, ORDERS_NOTE)
    orders = Orders() if note is None else Orders.model_validate(note["orders"])
    orders = take_orders(orders, await context.signals())
    if note is None or note["stage"] != stage:
        orders = orders.model_copy(update={"go_on": False})
    run_notes.keep(context.workdir, ORDERS_NOTE, {"stage": stage, "orders": orders.model_dump()})
    return orders
