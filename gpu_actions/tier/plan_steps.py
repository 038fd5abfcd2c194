"""The steps that a fallback and a restore share, as data: start, warm, drain and stop a tier, and put load on it."""

from collections.abc import Sequence

from gpu_actions.config.policies import LoadPolicy, limits_text, token_range
from gpu_actions.host import Host, Tier
from gpu_actions.models import JsonObject
from gpu_actions.plan import Step
from gpu_actions.serving.condition import TokenSample
from gpu_actions.tier.preflight import TierFacts
from gpu_actions.tier.warm import expected_startup_s

SLEEP_TIMEOUT_S = 180.0
"""Locking host memory takes about 0.4 s per GiB the first time (measured on an H200), so 300 GiB take two minutes."""

HUNG_GRACE_S = 2.0
"""A rank inside a dead collective does not react to SIGTERM, and has no work worth saving."""


def start_step(tier: Tier, facts: TierFacts, *, step_id: str, title: str) -> Step:
    """Return the step that starts a tier's process."""
    engine = tier.config.engine
    return Step(
        id=step_id,
        verb="tier.start",
        title=title,
        args={"tier": tier.name},
        details=(facts.command, f"engine: {engine.kind} at {engine.url}"),
        timeout_s=120,
        expected_s=0.5,
    )


def warm_step(host: Host, tier: Tier, *, meanwhile: Step | None = None, woken: bool = False) -> Step:
    """Return the step that waits for a tier's first token and primes it. `meanwhile` is a step that runs during the wait;
    `woken`: a standby is woken instead of started."""
    engine = tier.config.engine
    startup_s = expected_startup_s(host, tier.name, woken=woken)
    args: JsonObject = {
        "tier": tier.name,
        "iterations": engine.warmup_requests,
        "ready_timeout_s": engine.ready_timeout_s,
        "expected_s": startup_s,
        "memory_limit_percent": host.config.fallback.memory_limit_percent,
        "meanwhile": None if meanwhile is None else meanwhile.model_dump(mode="json"),
    }
    return Step(
        id="warm",
        verb="tier.warm",
        title=f"warm {'the fallback' if tier.name == 'fallback' else tier.name}",
        args=args,
        details=(
            f"waits at most {engine.ready_timeout_s:g} s for a generated token at {engine.url}",
            f"{engine.warmup_requests} completions; writes {tier.name}_benchmark.json",
        ),
        timeout_s=engine.ready_timeout_s + (engine.warmup_requests + 1) * engine.request_timeout_s + 60,
        expected_s=startup_s,
    )


def drain_step(
    host: Host,
    tier: Tier,
    *,
    timeout_s: float,
    expected_s: float,
    allow_zero_total: bool,
    flat_since: TokenSample | None = None,
    found_silent: bool = False,
    details: Sequence[str] = (),
) -> Step:
    """Return the step that drains a tier. `allow_zero_total`: no other tier takes requests, so clients get 503 meanwhile."""
    stall_s = host.config.fallback.drain_stall_s
    return Step(
        id="drain",
        verb="tier.drain",
        title=f"drain {'the fallback' if tier.name == 'fallback' else tier.name}",
        args={
            "tier": tier.name,
            "timeout_s": timeout_s,
            "stall_s": stall_s,
            "allow_zero_total": allow_zero_total,
            "flat_since": None if flat_since is None else flat_since.model_dump(),
            "found_silent": found_silent,
        },
        details=(
            f"router: {host.config.router.describe_drain(tier.config.server)}",
            f"waits at most {timeout_s:g} s; aborts at once when the token counter does not move for {stall_s:g} s",
            *details,
        ),
        timeout_s=timeout_s + 60,
        expected_s=expected_s,
    )


def stop_step(
    tier: Tier, *, freeze_reason: str, title: str, expected_s: float, details: Sequence[str] = ()
) -> Step:
    """Return the step that stops a tier; with a reason it is frozen first, so that nothing restarts it."""
    grace_s = tier.config.unit.stop_grace_s
    return Step(
        id="stop",
        verb="tier.stop",
        title=title,
        args={
            "tier": tier.name,
            "freeze_reason": freeze_reason,
            "grace_s": grace_s,
            "hung_grace_s": HUNG_GRACE_S,
        },
        details=(
            f"{'freeze so that nothing restarts it, ' if freeze_reason else ''}SIGTERM, SIGKILL after {grace_s:g} s "
            f"({HUNG_GRACE_S:g} s if it hangs)",
            *details,
            "then no process may hold GPU memory",
        ),
        timeout_s=grace_s + 90,
        expected_s=expected_s,
    )


def sleep_step(tier: Tier, *, or_stop: bool) -> Step:
    """Return the step that puts a tier to sleep. `or_stop`: if it cannot sleep it is stopped, with a warning."""
    return Step(
        id="sleep",
        verb="tier.sleep",
        title="put the fallback to sleep",
        args={"tier": tier.name, "or_stop": or_stop},
        details=(
            "its weights move to host memory, its GPU memory is released",
            *(("if it cannot sleep, it is stopped",) if or_stop else ()),
        ),
        timeout_s=SLEEP_TIMEOUT_S + 60,
        expected_s=5,
    )


def load_details(load: LoadPolicy, url: str) -> tuple[str, ...]:
    """Describe a load test and its limits."""
    new_tokens = token_range(load.min_new_tokens, load.max_new_tokens)
    return (
        f"{load.duration_s:g} s at {load.target_qps:g} requests/s at {url}, "
        f"{new_tokens} new tokens, prompts {load.prompt_len_min}-{load.prompt_len_max}",
        f"limits: {limits_text(load)}, errors {load.max_error_percent:g} %",
    )
