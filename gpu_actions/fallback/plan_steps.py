"""The steps of a fallback with every command, file, variable and weight they will use, and the three orders of them.

The arguments set here are what runs later. The steps decide nothing anew, except by probing.
"""

from enum import StrEnum

from gpu_actions.fallback.gpus import Candidate, Choice
from gpu_actions.fallback.hold import held_until_serving, hold_limits
from gpu_actions.forensics.step import capture_step
from gpu_actions.host import Host
from gpu_actions.loadtest.knee_limits import FallbackLimits, fallback_limits
from gpu_actions.loadtest.request import lower_to_caps
from gpu_actions.models import JsonObject
from gpu_actions.plan import Step
from gpu_actions.serving.condition import Condition
from gpu_actions.tier import scope
from gpu_actions.tier.plan_steps import drain_step, load_details, start_step, stop_step, warm_step
from gpu_actions.tier.preflight import OWN_FREEZE, OWN_PREFIX, Facts
from gpu_actions.tier.standby import DEVICES
from gpu_actions.tier.warm import expected_startup_s


class Order(StrEnum):
    """The order of a fallback's steps; see `gpu_actions.fallback.action`."""

    PLANNED = "planned"
    OVERLAPPED = "overlapped"
    IN_PLACE = "in_place"


ORDERS: dict[Order, tuple[str, ...]] = {
    Order.PLANNED: ("capture", "scope", "launch", "warm", "route", "backpressure", "drain", "stop", "validate"),
    Order.OVERLAPPED: ("hold", "scope", "launch", "warm", "route", "backpressure", "capture", "drain", "stop", "validate"),
    Order.IN_PLACE: ("hold", "capture", "drain", "stop", "scope", "launch", "warm", "route", "backpressure", "validate"),
}  # fmt: skip
"""In every order evidence is saved before anything is stopped or aborted, and traffic moves after a generated token.

A launch beside the tier destroys nothing. Where the tier is dead anyway, clients come first: the fallback starts at once, and
the dead tier is left untouched until its evidence is saved. While an engine loads its weights the warm step saves it."""

GROUPED = ("scope", "launch", "warm")
"""Steps that are tried again with the next GPU if one of them fails."""


def refused_text(host: Host, *, woken: bool) -> str:
    """Return what happens to new requests while nothing generates."""
    policy, retry = host.config.router.hold, host.config.router.back_pressure.retry_after_s
    refused = f"get 503 with Retry-After: {retry} until the fallback generates"
    if policy.wait_s > 0 and host.config.router.managed and held_until_serving(host, woken=woken):
        return f"new requests wait at most {policy.wait_s:g} s for the fallback; later ones {refused}"
    return f"new requests {refused}"


def settle_step(host: Host, facts: Facts) -> Step:
    """Return the one compensation step. Whatever happened, it leaves one of three states."""
    ready_s = host.tp.config.engine.ready_timeout_s
    return Step(
        id="settle",
        verb="fallback.settle",
        title="leave one defined state",
        args={
            "own_freeze": OWN_FREEZE,
            "tp_served_before": facts.tp.condition.serves,
            "ready_timeout_s": ready_s,
            "capture_budget_s": host.config.fallback.capture_budget_s,
        },
        timeout_s=ready_s + host.config.fallback.drain_timeout_s + 180,
    )


def fallback_steps(host: Host, facts: Facts, choice: Choice, order: Order) -> list[Step]:
    """Return every step of a fallback, in no particular order; `ORDERS` sorts them."""
    policy, config = host.config.fallback, host.config
    tp, fallback = host.tp.config, host.fallback.config
    settings = config.router.back_pressure
    limits = fallback_limits(host)
    rungs = dict.fromkeys(one.rung for one in choice.candidates) if host.has_ladder else {}
    load, load_notes = lower_to_caps(policy.validate_load, config.loadtest, host.name)
    woken = choice.candidates[0].wakes
    meanwhile = refused_text(host, woken=woken)
    refused = f"meanwhile new requests get 503 with Retry-After: {settings.retry_after_s}"
    capture = capture_step(host, budget_s=policy.capture_budget_s)
    pids = facts.tp.state.pids if facts.tp.state and facts.tp.active else ()
    return [
        capture,
        Step(
            id="hold",
            verb="fallback.hold",
            title="keep new requests from the dead tier",
            args={"tier": "tp", "hold": hold_limits(host) if held_until_serving(host, woken=woken) else None},
            details=(
                f"router: {config.router.describe_drain(tp.server)}; "
                "what hangs there is kept for the evidence",
                meanwhile,
            ),
            timeout_s=60,
            expected_s=0.1,
        ),
        drain_step(
            host,
            host.tp,
            timeout_s=policy.drain_timeout_s,
            expected_s=policy.drain_stall_s + 1,
            allow_zero_total=order is Order.IN_PLACE,
            flat_since=facts.tp.flat_since,
            found_silent=facts.tp.condition is Condition.SILENT,
            details=(refused,) if order is Order.IN_PLACE else (),
        ),
        stop_step(
            host.tp,
            freeze_reason=OWN_FREEZE,
            title="stop and freeze tp",
            expected_s=5,
            details=(f"processes now: {', '.join(map(str, pids)) or 'none'}",),
        ),
        scope_step(host, choice),
        launch_step(host, facts, choice),
        _patient(
            warm_step(
                host,
                host.fallback,
                meanwhile=capture if order is Order.OVERLAPPED else None,
                woken=woken,
            ),
            host,
            choice,
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
            args={
                **_limit_arguments(host),
                **({"rungs": {one: _limit_arguments(host.on_rung(one)) for one in rungs}} if rungs else {}),
            },
            details=(
                *(f"{name} {value}" for name, value in limits.pressure.model_dump().items()),
                *limits.notes,
                *limits.warnings,
            ),
            timeout_s=30,
            expected_s=0.1,
        ),
        Step(
            id="validate",
            verb="fallback.validate",
            title="validate under load",
            args={"load": load.model_dump(mode="json")},
            details=(
                *load_details(load, config.router.url),
                *load_notes,
                "a missed limit is a warning, because the fallback serves",
            ),
            timeout_s=load.duration_s * 3 + 180,
            expected_s=load.duration_s + 5,
            on_failure="continue",
        ),
    ]


def _patient(warm: Step, host: Host, choice: Choice) -> Step:
    """Return the step with time for the slowest rung that may be tried."""
    engines = [host.rungs[one.rung].config.engine for one in choice.candidates]
    longest_s = max(
        one.ready_timeout_s + (one.warmup_requests + 1) * one.request_timeout_s for one in engines
    )
    return warm.model_copy(update={"timeout_s": longest_s + 60})


def launch_step(host: Host, facts: Facts, choice: Choice) -> Step:
    """Return the step that starts the fallback, or wakes its standby where the first candidate says so."""
    cold = start_step(host.fallback, facts.fallback, step_id="launch", title="launch the fallback")
    if not choice.candidates[0].wakes:
        return cold
    note, wake_timeout_s = facts.fallback.asleep_note, host.config.fallback.wake_timeout_s
    return cold.model_copy(
        update={
            "title": "wake the standby",
            "args": {**cold.args, "wake_timeout_s": wake_timeout_s},
            "details": (
                f"standby: {note}; at most {wake_timeout_s:g} s to wake",
                f"if it does not wake, a cold start: {facts.fallback.command}",
                *cold.details[1:],
            ),
            "timeout_s": cold.timeout_s + wake_timeout_s,
        }
    )


def scope_step(host: Host, choice: Choice) -> Step:
    """Return the step that sets the environment of the fallback's next start."""
    first = choice.candidates[0]
    leftovers = scope.leftovers_in(getattr(host.fallback.config.unit, "env", {}))
    return Step(
        id="scope",
        verb="fallback.scope",
        title="scope the environment",
        args={
            "variables": scope.scope_for(first.devices),
            "unset": list(scope.NCCL_LEFTOVERS),
            "leftovers": list(leftovers),
            "own_freeze": OWN_PREFIX,
            **({"passed_over": list(choice.passed_over)} if choice.passed_over else {}),
        },
        details=(
            f"{DEVICES}={first.devices}" if first.devices else "no GPU variable: the tier runs on the CPU",
            f"{first.reason}; {first.note}",
            *(f"else: {candidate.reason}" for candidate in choice.candidates[1:]),
            f"removed: {', '.join(scope.NCCL_LEFTOVERS)}",
            *((f"found set now: {', '.join(leftovers)}",) if leftovers else ()),
        ),
        timeout_s=60,
        expected_s=0.1,
    )


def rung_arguments(host: Host, candidate: Candidate) -> JsonObject:
    """Return the arguments of an attempt that depend on its rung, which is the fallback of `host` here."""
    engine = host.fallback.config.engine
    return {
        "rung": candidate.rung,
        "gpus": list(candidate.gpus),
        "iterations": engine.warmup_requests,
        "ready_timeout_s": engine.ready_timeout_s,
        "expected_s": expected_startup_s(host, "fallback", woken=candidate.wakes),
    }


def _limit_arguments(host: Host) -> JsonObject:
    limits = fallback_limits(host)
    return {
        "wanted": _wanted_limits(host, limits),
        "given": dict(limits.given),
        "notes": [*limits.notes, *limits.warnings],
    }


def _wanted_limits(host: Host, limits: FallbackLimits) -> JsonObject:
    """Return the limits that must be read back from the router. An existing router can only be given `max_concurrent`."""
    wanted: JsonObject = limits.pressure.model_dump()
    names = {"max_concurrent"}
    if host.config.router.managed:
        names |= {"max_queue", "queue_timeout_s", "long_window_s", "retry_after_s", "long_body_bytes"}
    return {name: value for name, value in wanted.items() if name in names}
