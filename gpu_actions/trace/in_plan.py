"""Traces that a fallback and a restore take by plan, right after their load test and under a little load of their own.

Not during the load test: a profiled engine is slower, and the load test's figures decide about traffic. The profiler is
stopped in the background, because an engine may write for ten minutes: the run goes on, and `trace.finish` takes the files.
What cannot be traced here is said with the setting that would allow it; no run fails for want of a trace.
"""

import asyncio
import contextlib
import shutil
import time
from pathlib import Path

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.host import Host, Tier
from gpu_actions.plan import Step
from gpu_actions.serving.interfaces import EngineError
from gpu_actions.tier.condition import generates
from gpu_actions.trace.action import ANALYSIS_TIMEOUT_S, load, table_of, take
from gpu_actions.trace.nsys import EXPORT_TIMEOUT_S
from gpu_actions.trace.profilers import STOP_TIMEOUT_S, how_traced, profiler_of

LEFT_ON_S = 60.0
SERVING_S = 1.0
SERVING_ITERATIONS = 25
"""Of an engine that already has the traffic: enough for the table of kernels, and written in a moment."""
PROBE_S = 10.0
PROBE_PERIOD_S = 1.0
DISK_FACTOR = 20
"""A trace unpacks to about this many times its size while the engine writes it."""

_stops: dict[tuple[str, str], "asyncio.Task[tuple[Path, ...]]"] = {}
"""The running stops of this process, by run and tier. After a restart `trace.finish` stops the profiler itself."""


def trace_steps(host: Host, tier: Tier, *, before_traffic: bool = False) -> tuple[Step, ...]:
    """Return the two steps of a trace by plan, or none if `trace.in_plans` is off.

    `before_traffic`: traffic moves to the tier next, so the first step ends once the tier generates again.
    """
    policy = host.config.trace
    if not policy.in_plans:
        return ()
    duration_s, iterations = policy.duration_s, policy.max_iterations
    if not before_traffic:  # clients wait while it writes
        duration_s, iterations = min(duration_s, SERVING_S), min(iterations, SERVING_ITERATIONS)
    bounds = f"{duration_s:g} s, {iterations} engine steps, {policy.max_trace_mib} MiB a file"
    return (
        Step(
            id="trace",
            verb="trace.begin",
            title=f"trace {tier.name} for {duration_s:g} s",
            args={
                "tier": tier.name,
                "duration_s": duration_s,
                "max_iterations": iterations,
                "max_trace_mib": policy.max_trace_mib,
                "before_traffic": before_traffic,
            },
            details=(
                f"{how_traced(tier)}; it is stopped in the background; {bounds}",
                "an engine may stand still while it writes its trace; "
                + (
                    "traffic waits until it generates again"
                    if before_traffic
                    else "trace.in_plans = false leaves the trace out"
                ),
            ),
            timeout_s=duration_s + 90 + (STOP_TIMEOUT_S if before_traffic else 0),
            expected_s=duration_s + 1,
            mutates=False,
            on_failure="continue",
        ),
        Step(
            id="trace-files",
            verb="trace.finish",
            title="take the trace and tabulate it",
            args={"tier": tier.name, "max_trace_mib": policy.max_trace_mib, "top": policy.top_kernels},
            timeout_s=STOP_TIMEOUT_S + EXPORT_TIMEOUT_S + ANALYSIS_TIMEOUT_S + 30,
            expected_s=5,
            mutates=False,
            on_failure="continue",
        ),
    )


@step("trace.begin")
async def begin(context: StepContext) -> StepResult:
    """Effect: the engine is profiled for some seconds. Verified by the files that `trace.finish` takes."""
    tier = context.host.tiers[context.args["tier"]]
    needed = int(context.args["max_trace_mib"]) * DISK_FACTOR * 2**20
    try:
        profiler = await profiler_of(context, tier)
    except EngineError as error:
        return _without(str(error))
    folder = profiler.folder or context.workdir
    free = shutil.disk_usage(folder if folder.is_dir() else context.workdir).free
    if free < needed:
        return _without(
            f"{free / 2**30:.1f} GiB are free at {folder}, a trace may need {needed / 2**30:.1f}: "
            "free some space or lower trace.max_trace_mib"
        )
    key = (context.run_id, tier.name)
    begun = context.workdir / f"{tier.name}_profiler_started"
    if begun.exists():  # this step was killed: the profiler may be on, or its trace is being written
        with contextlib.suppress(EngineError, TimeoutError):
            await asyncio.wait_for(_stops.pop(key) if key in _stops else profiler.stop_left_on(), LEFT_ON_S)
    begun.touch()
    started = time.time()
    try:
        await profiler.start(max_iterations=int(context.args["max_iterations"]))
    except EngineError as error:
        return _without(str(error))
    except asyncio.CancelledError:  # it may have started
        _stops[key] = asyncio.create_task(profiler.stop())
        raise
    duration_s = float(context.args["duration_s"])
    try:
        context.report(f"tracing for {duration_s:g} s", None)
        finished = await load(tier, time.monotonic() + duration_s)
    finally:  # also when the run is stopped
        _stops[key] = asyncio.create_task(profiler.stop())
    if context.args.get("before_traffic"):
        await _generates_again(context, tier)
    return StepResult(
        summary=f"traced {tier.name} for {duration_s:g} s with {finished} requests of our own; the engine writes its files",
        data={"started": started, "requests": finished},
    )


async def _generates_again(context: StepContext, tier: Tier) -> None:
    """Wait until the engine generates again: it may stand still while it writes. Raises StepFailed if it does not."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    await asyncio.wait({_stops[context.run_id, tier.name]}, timeout=PROBE_PERIOD_S)  # let it begin to write
    while not await generates(tier, timeout_s=PROBE_S):
        if time.monotonic() > deadline:
            raise StepFailed(
                f"{tier.name} has not generated for {STOP_TIMEOUT_S:g} s after its trace",
                next_action=f"see its log; the next step gives it no traffic. /triage {context.host.name}",
            )
        context.report(f"{tier.name} writes its trace; traffic waits until it generates again", None)
        await asyncio.sleep(PROBE_PERIOD_S)


def _without(reason: str) -> StepResult:
    return StepResult(summary=f"no trace: {reason}", data={"reason": reason})


@step("trace.finish")
async def finish(context: StepContext) -> StepResult:
    """Effect: the trace files and their summary in the run's folder. Verified by their content."""
    begun = context.outputs.get("trace", {})
    if "started" not in begun:
        return StepResult(summary=f"no trace was taken: {begun.get('reason', 'the profiler did not start')}")
    tier = context.host.tiers[context.args["tier"]]
    context.report("waiting for the engine to write its trace", None)
    try:
        profiler = await profiler_of(context, tier)
        stopping = _stops.pop((context.run_id, tier.name), None) or asyncio.create_task(profiler.stop())
        files = await asyncio.wait_for(stopping, STOP_TIMEOUT_S)
    except (EngineError, TimeoutError) as error:
        raise StepFailed(
            f"the trace is not there: {error or f'not written within {STOP_TIMEOUT_S:g} s'}",
            next_action="the tier serves; see the engine's log, and take one by hand: /trace start",
        ) from error
    taken, refused = await take(context, tier, profiler, files, float(begun["started"]))
    if not taken.files:
        raise StepFailed(
            f"no trace was taken: {'; '.join(refused) or 'the engine wrote none'}",
            next_action="set trace.folder or raise trace.max_trace_mib in the settings",
        )
    told = await table_of(context, [str(path) for path in taken.files], top=int(context.args["top"]))
    return told.model_copy(
        update={
            "artifacts": (*told.artifacts, *taken.artifacts),
            "summary": "; ".join([told.summary, *refused]),
            "warning": told.warning or bool(refused),
        }
    )
