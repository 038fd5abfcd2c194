"""The steps of a fallback with every command, file, variable and weight they will use, and the three orders they come in.

What stands in the arguments here is what runs later: nothing is decided again on the way but what the steps probe.
"""

from enum import StrEnum

from gpu_actions.fallback.gpus import Choice
from gpu_actions.forensics.step import capture_step
from gpu_actions.host import Host
from gpu_actions.models import JsonObject
from gpu_actions.plan import Step
from gpu_actions.tier import scope, warm
from gpu_actions.tier.condition import Condition
from gpu_actions.tier.preflight import OWN_FREEZE, OWN_PREFIX, Facts

HUNG_GRACE_S = 2.0
"""A rank inside a dead collective does not answer SIGTERM, and nothing of it is worth saving."""


class Order(StrEnum):
    """In which order a fallback goes."""

    PLANNED = "planned"
    OVERLAPPED = "overlapped"
    IN_PLACE = "in_place"


ORDERS: dict[Order, tuple[str, ...]] = {
    Order.PLANNED: ("capture", "scope", "launch", "warm", "route", "backpressure", "drain", "stop", "validate"),
    Order.OVERLAPPED: ("hold", "scope", "launch", "warm", "route", "backpressure", "capture", "drain", "stop", "validate"),
    Order.IN_PLACE: ("capture", "drain", "stop", "scope", "launch", "warm", "route", "backpressure", "validate"),
}  # fmt: skip
"""In every order evidence is saved before anything is stopped or cut, and traffic moves after a generated token. A launch
beside the tier destroys nothing: where the tier is dead anyway, clients come first, and it stands untouched until its
evidence is saved. An engine that loads for long leaves time for that: then the warm step saves it meanwhile."""

GROUPED = ("scope", "launch", "warm")
"""Steps that are tried again with the next GPU."""


def settle_step(host: Host, facts: Facts) -> Step:
    """The one compensation step: whatever was cut or failed, it leaves one of three states."""
    ready_s = host.tp.config.engine.ready_timeout_s
    return Step(
        id="settle",
        verb="fallback.settle",
        title="leave one defined state",
        args={
            "own_freeze": OWN_FREEZE,
            "tp_served_before": facts.tp.condition is Condition.SERVING,
            "ready_timeout_s": ready_s,
            "capture_budget_s": host.config.fallback.capture_budget_s,
        },
        timeout_s=ready_s + 180,
    )


def fallback_steps(host: Host, facts: Facts, choice: Choice, order: Order) -> list[Step]:
    """Every step of a fallback with what it will use, in no particular order; `ORDERS` puts them in line."""
    policy, config = host.config.fallback, host.config
    tp, fallback = host.tp.config, host.fallback.config
    startup_s = warm.expected_startup_s(host, "fallback")
    first = choice.candidates[0]
    leftovers = _leftovers(host)
    settings = config.router.back_pressure
    load = policy.validate_load
    refused = f"meanwhile new requests get 503 with Retry-After: {settings.retry_after_s}"
    capture = capture_step(host, budget_s=policy.capture_budget_s)
    return [
        capture,
        Step(
            id="hold",
            verb="fallback.hold",
            title="keep new requests from the dead tier",
            args={"tier": "tp"},
            details=(
                f"router: set server {config.router.backend}/{tp.server} state drain; what hangs there stays for the evidence",
                refused,
            ),
            timeout_s=60,
            expected_s=0.1,
        ),
        Step(
            id="drain",
            verb="tier.drain",
            title="drain tp",
            # Where the fallback has no weight yet, the total becomes 0 knowingly: clients get 503 with Retry-After.
            args={
                "tier": "tp",
                "timeout_s": policy.drain_timeout_s,
                "stall_s": policy.drain_stall_s,
                "allow_zero_total": order is Order.IN_PLACE,
                "flat_since": facts.tp.flat_since.model_dump() if facts.tp.flat_since else None,
            },
            details=(
                f"router: set server {config.router.backend}/{tp.server} state drain",
                f"waits at most {policy.drain_timeout_s:g} s; cut at once when the token counter stands still "
                f"{policy.drain_stall_s:g} s",
                *((refused,) if order is Order.IN_PLACE else ()),
            ),
            timeout_s=policy.drain_timeout_s + 60,
            expected_s=policy.drain_stall_s + 1,
        ),
        Step(
            id="stop",
            verb="tier.stop",
            title="stop and freeze tp",
            args={
                "tier": "tp",
                "freeze_reason": OWN_FREEZE,
                "grace_s": tp.unit.stop_grace_s,
                "hung_grace_s": HUNG_GRACE_S,
            },
            details=(
                f"freeze so that nothing restarts it, SIGTERM, SIGKILL after {tp.unit.stop_grace_s:g} s "
                f"({HUNG_GRACE_S:g} s when it hangs)",
                f"processes now: {', '.join(map(str, facts.tp.state.pids)) if facts.tp.state and facts.tp.active else 'none'}",
                "then no process may hold GPU memory",
            ),
            timeout_s=tp.unit.stop_grace_s + 90,
            expected_s=5,
        ),
        Step(
            id="scope",
            verb="fallback.scope",
            title="scope the environment",
            args={
                "variables": scope.scope_for(first.gpu),
                "unset": list(scope.NCCL_LEFTOVERS),
                "leftovers": list(leftovers),
                "own_freeze": OWN_PREFIX,
            },
            details=(
                f"{scope.DEVICES}={first.gpu}" if first.gpu else "no GPU variable: the tier runs on the CPU",
                f"{first.reason}; {first.note}",
                *(f"else: {c.reason}" for c in choice.candidates[1:]),
                f"removed: {', '.join(scope.NCCL_LEFTOVERS)}",
                *((f"found set now: {', '.join(leftovers)}",) if leftovers else ()),
            ),
            timeout_s=60,
            expected_s=0.1,
        ),
        Step(
            id="launch",
            verb="tier.start",
            title="launch the fallback",
            args={"tier": "fallback"},
            details=(facts.fallback.command, f"engine: {fallback.engine.kind} at {fallback.engine.url}"),
            timeout_s=120,
            expected_s=0.5,
        ),
        warm_step(
            host,
            "fallback",
            startup_s=startup_s,
            meanwhile=capture if order is Order.OVERLAPPED else None,
        ),
        Step(
            id="route",
            verb="fallback.route",
            title="route to the fallback",
            details=(
                f"weights: {fallback.server} {fallback.weight}, {tp.server} 0",
                f"proved by a token through {config.router.url}",
            ),
            timeout_s=60,
            expected_s=0.5,
        ),
        Step(
            id="backpressure",
            verb="fallback.backpressure",
            title="apply back-pressure",
            args={"wanted": _wanted_limits(host)},
            details=tuple(f"{name} {value}" for name, value in settings.model_dump().items()),
            timeout_s=30,
            expected_s=0.1,
        ),
        Step(
            id="validate",
            verb="fallback.validate",
            title="validate under load",
            args={"load": load.model_dump(mode="json")},
            details=(
                f"{load.duration_s:g} s at {load.target_qps:g} requests/s through {config.router.url}, "
                f"{load.max_new_tokens} new tokens, prompts {load.prompt_len_min}-{load.prompt_len_max}",
                f"limits: TTFT p99 {load.slo_ttft_ms:g} ms, E2E p99 {load.slo_e2e_ms:g} ms, "
                f"errors {load.max_error_percent:g} %",
                "a failed limit is a warning: the tier serves",
            ),
            timeout_s=load.duration_s * 3 + 180,
            expected_s=load.duration_s + 5,
            on_failure="continue",
        ),
    ]


def warm_step(host: Host, tier_name: str, *, startup_s: float | None, meanwhile: Step | None = None) -> Step:
    """The step that waits for a tier's first token and primes it; `startup_s` is what its last start took, `meanwhile`
    a step that runs while it waits."""
    tier = host.tp if tier_name == "tp" else host.fallback
    engine = tier.config.engine
    args: JsonObject = {
        "tier": tier_name,
        "iterations": engine.warmup_requests,
        "ready_timeout_s": engine.ready_timeout_s,
        "expected_s": startup_s,
        "memory_limit_percent": host.config.fallback.memory_limit_percent,
        "meanwhile": None if meanwhile is None else meanwhile.model_dump(mode="json"),
    }
    return Step(
        id="warm",
        verb="tier.warm",
        title=f"warm {'the fallback' if tier_name == 'fallback' else tier_name}",
        args=args,
        details=(
            f"waits at most {engine.ready_timeout_s:g} s for a generated token at {engine.url}",
            f"{engine.warmup_requests} completions; writes {tier_name}_benchmark.json",
        ),
        timeout_s=engine.ready_timeout_s + (engine.warmup_requests + 1) * engine.request_timeout_s + 60,
        expected_s=startup_s,
    )


def _leftovers(host: Host) -> tuple[str, ...]:
    """Leftover variables that the fallback would get now, by its configuration or from the tp tier's processes' environment."""
    unit = host.fallback.config.unit
    return scope.leftovers_in(getattr(unit, "env", {}))


def _wanted_limits(host: Host) -> JsonObject:
    """What must be read back from the router: the figures that every kind of router can set."""
    pressure = host.config.router.back_pressure
    wanted: JsonObject = {"max_concurrent": pressure.max_concurrent}
    if host.config.router.managed:
        wanted |= {
            "max_queue": pressure.max_queue,
            "queue_timeout_s": pressure.queue_timeout_s,
            "long_window_s": pressure.long_window_s,
            "retry_after_s": pressure.retry_after_s,
            "long_body_bytes": pressure.long_body_bytes,
        }
    return wanted
