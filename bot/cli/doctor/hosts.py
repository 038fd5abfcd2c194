"""A serving host: its units, engines and router, and the plans that an incident would need."""

import asyncio

from gpu_actions.action import ActionSpec, PlanRefused, PlanRequest
from gpu_actions.host import Host, Tier
from gpu_actions.loadtest.knee_limits import fallback_limits, latest_knee
from gpu_actions.registry import actions
from gpu_actions.serving.golden.record import GoldenUnreadable, load_golden
from gpu_actions.serving.interfaces import RouterError
from gpu_actions.serving.registry import ENGINES
from gpu_actions.serving.setup_checks import SetupCheck, failed, ok, warning
from gpu_actions.tier.page_cache_state import page_cache_of


async def check_units(host: Host) -> list[SetupCheck]:
    """Check what starts and stops each tier."""
    checks = []
    for name, tier in host.config.every_tier.items():
        hazard = ENGINES[tier.engine.kind].group_stop_hazard
        checks += await tier.unit.setup_checks(f"{host.name}.{name}.unit", group_stop_hazard=hazard)
    return checks


async def check_engines(host: Host) -> list[SetupCheck]:
    """Check that the engine of each tier answers, or is meant to be down."""
    return [await _engine(f"{host.name}.{tier.key}.engine", tier) for tier in host.every_tier]


async def _engine(name: str, tier: Tier) -> SetupCheck:
    url = tier.config.engine.url
    if await tier.engine.is_live():
        return ok(name, f"answers at {url}")
    state = await tier.unit.state()
    problem = f"does not answer at {url} ({'running' if state.active else 'not running'})"
    if tier.name == "fallback":
        return warning(name, problem, "fine while it is meant to be down")
    return (warning if state.frozen else failed)(name, problem, "see /triage")


async def check_page_cache(host: Host) -> list[SetupCheck]:
    """Check what is in the page cache of the weights that should be kept there. Nothing is read into it."""
    checks = []
    for tier in host.every_tier:
        if tier.config.page_cache is None:
            continue
        name = f"{host.name}.{tier.key}.page_cache"
        try:
            state = await page_cache_of(tier.config.page_cache, look=True)
        except OSError as error:
            checks.append(failed(name, str(error), "see docs/standby.md"))
            continue
        cold = state.resident_bytes is not None and state.resident_bytes < state.bytes
        said = "; ".join((state.text, *state.problems))
        if state.problems or cold:
            fix = "correct page_cache of the tier, or wait: the bot reads them while all is well"
            checks.append(warning(name, said, fix))
        else:
            checks.append(ok(name, said))
    return checks


async def check_router(host: Host) -> list[SetupCheck]:
    """Check the router's set-up, and that it answers."""
    name = f"{host.name}.router"
    config = host.config.router
    checks = await config.setup_checks(name)
    if any(check.status == "failed" for check in checks):
        return checks
    try:
        servers = await host.router.servers()
    except RouterError as error:
        if config.managed:
            return [*checks, warning(name, str(error), "the first plan starts it")]
        return [*checks, failed(name, str(error), f"check the router and {host.router.address}")]
    shown = ", ".join(f"{s.server}={s.weight}" for s in servers if s.backend == config.backend)
    return [*checks, ok(name, f"answers; weights {shown}")]


async def check_golden(host: Host) -> list[SetupCheck]:
    """Check that golden prompts of the full tier are recorded. Without them a tier that answers wrongly is not noticed."""
    name, path = f"{host.name}.tp.golden", host.golden_path("tp")
    fix = f"on a good day: gpu-oncall golden record --host {host.name}"
    if path is None:
        return []
    try:
        record = load_golden(path)
    except GoldenUnreadable as error:
        return [warning(name, str(error), fix)]
    if record is None:
        return [warning(name, "no golden prompts are recorded: wrong answers would not be noticed", fix)]
    engine = host.tp.engine
    if (record.engine_kind, record.model) != (engine.kind, engine.model):
        was = f"golden prompts are of {record.engine_kind} with {record.model}"
        return [warning(name, f"{was}, the settings name {engine.kind} with {engine.model}", fix)]
    return [ok(name, f"{len(record.prompts)} golden prompts, recorded on {record.recorded_at:%Y-%m-%d}")]


async def check_knee(host: Host) -> list[SetupCheck]:
    """Check that the limits of the fallback agree with its latest knee."""
    name = f"{host.name}.fallback.limits"
    knee, limits = latest_knee(host, "fallback"), fallback_limits(host)
    if knee.result is None:
        fix = f"while the fallback serves: /loadtest start {host.name} target=fallback find=knee"
        return [warning(name, f"{knee.problem}, so its limits are those of the settings", fix)]
    said = "; ".join((*limits.warnings, *limits.notes)) or f"they agree with {knee.text}"
    if limits.warnings:
        return [warning(name, said, "take the setting out, so that the knee decides, or measure again")]
    return [ok(name, said)]


async def check_plans(host: Host) -> list[SetupCheck]:
    """Make the plan of each action that changes the host, as an incident would. Nothing is started."""

    async def check(spec: ActionSpec) -> SetupCheck:
        name = f"{host.name}.plan.{spec.name}"
        try:
            plan = await spec.plan(PlanRequest(host=host, arguments=spec.arguments()))
        except PlanRefused as refused:
            return warning(name, "; ".join(refused.problems), "what preflight would say now")
        return ok(name, f"{len(plan.steps)} steps, about {plan.expected_s:.0f} s")

    return await asyncio.gather(*(check(spec) for spec in actions().values() if spec.changes_host))
