"""The steps of a restore with everything they will use, and the two orders of them.

`beside`: the tier starts while the fallback serves, and traffic moves in watched stages. `cut_over`: both do not fit on the
GPUs, so the fallback stops first and clients wait out the gap that the plan shows.
"""

from enum import StrEnum
from pathlib import Path

from gpu_actions.config.host import TierConfig
from gpu_actions.config.policies import LoadPolicy
from gpu_actions.host import Host
from gpu_actions.models import JsonObject
from gpu_actions.plan import Step
from gpu_actions.restore.analysis import weights_for
from gpu_actions.restore.check import CLEARED, leftovers_of
from gpu_actions.serving.golden.record import golden_path
from gpu_actions.tier.gpu_memory import GpuMemories
from gpu_actions.tier.plan_steps import drain_step, load_details, sleep_step, start_step, stop_step, warm_step
from gpu_actions.tier.preflight import Facts
from gpu_actions.tier.warm import expected_startup_s

CHECK_EXPECTED_S = 5.0
DEEP_EXPECTED_S = 15.0
"""A deep probe took 11-13 s on 2 x H100, nearly all of it imports."""


class Way(StrEnum):
    """How the tier comes back."""

    BESIDE = "beside"
    CUT_OVER = "cut_over"


def fits_beside(tier: TierConfig, memories: GpuMemories) -> tuple[bool, str]:
    """Return True if the full tier fits beside what its GPUs hold now, and the arithmetic in words.

    The tier takes the first `gpus` GPUs by index. If the settings do not say what it needs, it does not fit.
    """
    if tier.gpus == 0:
        return True, "both tiers run on the CPU"
    if not memories.gpus:
        why = memories.error or "NVML lists no GPU"
        return False, f"GPU memory is unknown ({why}), so they are not run side by side"
    if tier.memory_gib_per_gpu is None:
        return False, "memory_gib_per_gpu of tp is not set, so they are not run side by side"
    taken = sorted(memories.gpus, key=lambda gpu: gpu.index)[: tier.gpus]
    if len(taken) < tier.gpus:
        return False, f"tp needs {tier.gpus} GPUs, {len(taken)} can be read"
    tightest = min(taken, key=lambda gpu: gpu.free_mib)
    fits = tightest.free_mib / 1024 >= tier.memory_gib_per_gpu
    return fits, (
        f"tp needs {tier.memory_gib_per_gpu:g} GiB on each of {tier.gpus} GPUs; "
        f"GPU {tightest.index} has {tightest.free_mib / 1024:.0f} GiB free"
    )


def ending_of(tier: TierConfig, way: Way) -> tuple[str, ...]:
    """Return the step that ends the fallback's service: a standby sleeps, or stays resident where there is room for both."""
    if tier.standby == "sleep":
        return ("sleep",)
    return () if tier.standby == "resident" and way is Way.BESIDE else ("stop",)


def order_of(way: Way, stages: tuple[int, ...], ending: tuple[str, ...] = ("stop",)) -> tuple[str, ...]:
    """Return the ids of the steps in order."""
    before = ("check", "prepare")
    after = ("warm", "environment", "golden")
    proof = ("loadtest", "compare")
    if way is Way.BESIDE:
        shifts = tuple(f"shift-{percent}" for percent in stages)
        return (*before, "start", *after, *proof, *shifts, "keep-warm", "drain", *ending, "finish")
    # While no tier serves every second counts: the load test comes after the traffic.
    return (*before, "drain", *ending, "start", *after, "shift-100", *proof, "finish")


def gap_s(host: Host) -> float | None:
    """Return the expected seconds without service of a cut-over, or None if tp never ran here."""
    startup = expected_startup_s(host, "tp")
    return None if startup is None else startup + 3.0


def restore_steps(host: Host, facts: Facts, way: Way, *, options: JsonObject) -> dict[str, Step]:
    """Return every step of a restore by id."""
    config, policy = host.config, host.config.restore
    tp, fallback = host.tp.config, host.fallback.config
    beside = way is Way.BESIDE
    deep = policy.deep_triage and config.gpus != 0
    configured = leftovers_of(getattr(tp.unit, "env", {}), tp)
    load = LoadPolicy.model_validate(options.get("load", policy.load))
    last_stage = _shift_step(host, 100)
    steps = [
        Step(
            id="check",
            verb="restore.check",
            title="check the host" + (" (deep)" if deep else ""),
            args={"deep": deep, "override_reason": options["override_reason"]},
            details=(
                "triage must say healthy or watch; unknown is not healthy",
                *((f"overridden: {options['override_reason']}",) if options["override_reason"] else ()),
            ),
            timeout_s=300,
            expected_s=DEEP_EXPECTED_S if deep else CHECK_EXPECTED_S,
            mutates=deep,
        ),
        Step(
            id="prepare",
            verb="restore.prepare",
            title=f"unfreeze {host.tp.label} and clear leftovers",
            args={"unset": sorted({*CLEARED, *configured}), "found": list(configured)},
            details=(
                f"freeze now: {facts.tp.state.frozen_reason or 'none'}"
                if facts.tp.state
                else "freeze unknown",
                f"cleared for its next start: the scope, {', '.join(sorted({*CLEARED, *configured}))}",
                f"router: {tp.server} drained, weight 0 until it generates",
            ),
            timeout_s=60,
            expected_s=0.2,
        ),
        start_step(
            host.tp,
            facts.tp,
            step_id="start",
            title=f"start {host.tp.label}" + (" beside the fallback" if beside else ""),
        ),
        warm_step(host, host.tp),
        Step(
            id="environment",
            verb="restore.environment",
            title="read its environment back",
            details=("/proc/PID/environ of its processes must hold no leftover",),
            timeout_s=30,
            expected_s=0.1,
            mutates=False,
        ),
        _golden_step(host, options),
        Step(
            id="loadtest",
            verb="restore.loadtest",
            title=f"load-test {host.tp.label}" + (" off the router" if beside else ""),
            args={"load": load.model_dump(mode="json"), "enforce": beside},
            details=(*load_details(load, tp.engine.url), *options.get("load_notes", ())),
            timeout_s=load.duration_s * 3 + 120 + load.timeout_s,
            expected_s=load.duration_s + 5,
            on_failure="stop" if beside else "continue",
        ),
        Step(
            id="compare",
            verb="restore.compare",
            title="compare with the baseline",
            args={
                "baselines_dir": options["baselines_dir"],
                "enforce": beside,
                "accepted": options["accept_no_baseline"],
                "wait_s": policy.inconclusive_wait_s,
            },
            details=(
                f"baseline: {options['baseline'] or 'none'}",
                "a regression keeps the traffic on the fallback"
                if beside
                else "a regression is a warning, because tp serves already",
            ),
            timeout_s=policy.inconclusive_wait_s + 60,
            expected_s=0.5,
            mutates=False,
            on_failure="stop" if beside else "continue",
        ),
        *(_shift_step(host, percent) for percent in policy.stages_percent),
        last_stage.model_copy(
            update={
                "id": "keep-warm",
                "title": "keep the fallback warm",
                "args": {**last_stage.args, "hold_s": policy.keep_fallback_warm_s, "min_requests": 0},
                "details": (
                    f"observes for {policy.keep_fallback_warm_s:g} s; next ends it early, abort moves the traffic back",
                ),
                "expected_s": policy.keep_fallback_warm_s,
            }
        ),
        drain_step(
            host,
            host.fallback,
            timeout_s=policy.drain_timeout_s,
            expected_s=2,
            allow_zero_total=not beside,
            details=() if beside else ("until tp's first token new requests get 503 with Retry-After",),
        ),
        stop_step(host.fallback, freeze_reason="", title="stop the fallback", expected_s=2),
        sleep_step(host.fallback, or_stop=True),
        Step(
            id="finish",
            verb="restore.finish",
            title="lift the limits",
            details=(
                f"router: limits of {fallback.server} lifted; weights {tp.server} {tp.weight}, {fallback.server} 0",
                f"proved by a token through {config.router.url}",
            ),
            timeout_s=60,
            expected_s=0.5,
        ),
    ]
    return {step.id: step for step in steps}


def _golden_step(host: Host, options: JsonObject) -> Step:
    folder = options["baselines_dir"]
    path = None if folder is None else golden_path(Path(folder), host=host.name, tier=host.tp.key)
    recorded = path is not None and path.is_file()
    return Step(
        id="golden",
        verb="restore.golden",
        title="compare with its golden prompts",
        args={
            "golden": None if path is None else str(path),
            "override_reason": options["override_reason"],
        },
        details=(
            "a tier that answers wrongly gets no traffic"
            if recorded
            else "none are recorded, so its correctness will be unknown: gpu-oncall golden record",
        ),
        timeout_s=90,
        expected_s=5 if recorded else 0.1,
        mutates=False,
    )


def _shift_step(host: Host, percent: int) -> Step:
    config, policy = host.config, host.config.restore
    tp, fallback = host.tp.config, host.fallback.config
    weights = weights_for(
        percent,
        tp_weight=tp.weight,
        fallback_weight=fallback.weight,
        standby_weight=host.router.standby_weight,
    )
    return Step(
        id=f"shift-{percent}",
        verb="restore.shift",
        title=f"{percent} % to {host.tp.label}",
        args={
            "percent": percent,
            "hold_s": policy.hold_s,
            "stall_s": config.fallback.drain_stall_s,
            "min_requests": None,
            "policy": policy.model_dump(mode="json"),
        },
        details=(
            f"weights: {tp.server} {weights[0]}, {fallback.server} {weights[1]}; observe for {policy.hold_s:g} s",
            f"steps back on: errors over {policy.max_error_percent:g} %, TTFT p99 over {policy.max_ttft_p99_ms:g} ms, "
            f"E2E p99 over {policy.max_e2e_p99_ms:g} ms, queue over {policy.max_queue}, a hang, a new Xid",
            f"fewer than {policy.min_requests_per_stage} requests: waits for more, or for a person",
        ),
        timeout_s=policy.hold_s + policy.keep_fallback_warm_s + policy.inconclusive_wait_s + 86_400,
        expected_s=policy.hold_s,
    )


def stepback_step(host: Host, *, last_stage: str) -> Step:
    """Return the one compensation step of a restore."""
    ready_s = host.fallback.config.engine.ready_timeout_s
    return Step(
        id="stepback",
        verb="restore.stepback",
        title="return the traffic, leave one defined state",
        args={
            "last_stage": last_stage,
            "ready_timeout_s": ready_s,
            "capture_budget_s": host.config.fallback.capture_budget_s,
        },
        timeout_s=ready_s + host.config.fallback.drain_timeout_s + 180,
    )
