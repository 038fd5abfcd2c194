"""The step `tier.warm`: wait until the tier's own process generates tokens, prime it, and measure its latency.

The serving process itself is warmed, over its API. A figure that is missing fails the step.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import statistics
import time
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from gpu_actions.action import StepContext, StepFailed, StepResult, step, step_function
from gpu_actions.config.host import TierName
from gpu_actions.host import Host, Tier
from gpu_actions.models import Artifact, Frozen, JsonObject
from gpu_actions.plan import Step
from gpu_actions.serving.interfaces import Completion, EngineError, UnitError
from gpu_actions.serving.startup_phases import describe_start, log_since, phases_of
from gpu_actions.system.clock import Moment, process_age_s
from gpu_actions.system.files import artifact_of, write_atomically
from gpu_actions.system.proc import disk_read_gib
from gpu_actions.tier import run_notes
from gpu_actions.tier.gpu_memory import read_gpus
from gpu_actions.tier.launch import explain_end, log_note, woken_note

WARM_PROMPT = "The on-call engineer looked at the graph and said that the service would be back in "
WARM_TOKENS = 8
AT_ONCE = 16
"""Concurrent completions: the fallback's batch limit."""
CORES_TO_SPARE = 8
STARTUP_LOG_BYTES = 262_144
SMALL_HOST_DELAY_S = 10.0
"""On a host with fewer cores a capture slows the engine's start, so it begins only if the engine takes longer than this."""


class BenchmarkMemory(Frozen):
    """Memory of the GPU that serves, against the configured limit."""

    gpu_uuid: str
    used_percent: float
    limit_percent: float
    headroom_gib: float = Field(description="below the limit; negative when over it")


class Benchmark(Frozen):
    """The tier's latency right after its start; the content of `fallback_benchmark.json`."""

    created_at: str
    host: str
    tier: str
    engine: str
    model: str
    run_id: str
    warmup: int = Field(ge=1, description="completions before the measured ones: the first token itself")
    iterations: int = Field(ge=1, description="measured completions, up to 16 at once")
    startup_s: float = Field(
        ge=0, description="from the process's start, or the wake-up, to the first generated token"
    )
    woken: bool = Field(default=False, description="a standby was woken; no process was started")
    startup_phases: dict[str, float] = Field(
        default_factory=dict,
        description="seconds by phase, from the engine's own log; empty if it names none",
    )
    disk_read_gib: float | None = Field(
        default=None, description="read from disk by its processes; the page cache's part is not counted"
    )
    first_ttft_ms: float = Field(gt=0)
    ttft_ms_p50: float = Field(gt=0)
    ttft_ms_max: float = Field(gt=0)
    e2e_ms_p50: float = Field(gt=0)
    tokens_per_s: float = Field(gt=0, description="of all measured completions together")
    memory: BenchmarkMemory | None = None
    memory_missing: str = Field(default="", description="why `memory` is missing")


def startup_path(host: Host, tier_name: TierName, *, woken: bool = False) -> Path:
    """Return the file that records how long a tier's last start, or the last wake-up of its standby, took."""
    return host.state_dir / f"{'wake' if woken else 'startup'}_{host.tiers[tier_name].key}.json"


def expected_startup_s(host: Host, tier_name: TierName, *, woken: bool = False) -> float | None:
    """Return how many seconds this tier's last start or wake-up took, or None if there was none here."""
    path = startup_path(host, tier_name, woken=woken)
    with contextlib.suppress(OSError, ValueError, KeyError):
        return float(json.loads(path.read_text(encoding="utf-8"))["startup_s"])
    return None


def summarise(completions: list[Completion], *, seconds: float) -> dict[str, float]:
    """Return the benchmark figures of completions that took `seconds` together. Raises ValueError if there are none."""
    if not completions:
        raise ValueError("no completion was measured")
    ttft = [completion.ttft_ms for completion in completions]
    return {
        "ttft_ms_p50": statistics.median(ttft),
        "ttft_ms_max": max(ttft),
        "e2e_ms_p50": statistics.median(completion.e2e_ms for completion in completions),
        "tokens_per_s": sum(completion.completion_tokens for completion in completions) / seconds,
    }


@step("tier.warm")
async def warm(context: StepContext) -> StepResult:
    """Effect: the engine's caches are primed. Verified by generated tokens and a fresh benchmark file with every figure.

    A full disk that takes no benchmark file is a warning: a tier that generates is not given up for it.
    """
    tier = context.host.tiers[context.args["tier"]]
    first = await _first_token(context, tier)
    startup_s = await _startup_s(context, tier)
    iterations = int(context.args["iterations"])
    context.report(f"warming with {iterations} completions", None)
    (completions, seconds), (memory, missing), (phases, disk_gib) = await asyncio.gather(
        _prime(tier, iterations), _memory(context, tier), _phases(context, tier)
    )
    benchmark = Benchmark(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=context.host.name,
        tier=tier.name,
        engine=tier.engine.kind,
        model=tier.engine.model,
        run_id=context.run_id,
        warmup=1,
        iterations=iterations,
        startup_s=round(startup_s, 3),
        startup_phases=phases,
        disk_read_gib=disk_gib,
        woken=context.args.get("wake") is True,
        first_ttft_ms=first.ttft_ms,
        **summarise(completions, seconds=seconds),
        memory=memory,
        memory_missing=missing,
    )
    artifacts, not_written = _write(context, tier, benchmark)
    over = memory is not None and memory.used_percent > memory.limit_percent
    space = (
        f"; GPU memory {memory.used_percent:.0f} %, the limit is {memory.limit_percent:g} %" if memory else ""
    )
    return StepResult(
        summary=f"{tier.label} generates: first token {benchmark.startup_s:.1f} s after its "
        f"{'wake-up' if benchmark.woken else 'start'}, TTFT "
        f"{benchmark.ttft_ms_p50:.0f} ms, {benchmark.tokens_per_s:.0f} tokens/s with "
        f"{min(iterations, AT_ONCE)} at once{space}{not_written}",
        data={**benchmark.model_dump(mode="json"), **_card(benchmark)},
        artifacts=artifacts,
        warning=over or bool(not_written),
    )


def _card(benchmark: Benchmark) -> JsonObject:
    """Return the line for the run's card that says what the start spent; nothing for a standby or without phases."""
    spent = describe_start(benchmark.startup_s, benchmark.startup_phases, benchmark.disk_read_gib)
    return {"card": {"Start-up": spent}} if spent else {}


async def _phases(context: StepContext, tier: Tier) -> tuple[dict[str, float], float | None]:
    """Return what the start spent by phase, from the engine's log, and how much was read from disk. A standby has none."""
    if context.args.get("wake") is True or not tier.engine.startup_phases:
        return {}, None
    before = (run_notes.recall(context.workdir, log_note(tier)) or {"end": ""})["end"]
    try:
        log, state = await asyncio.gather(tier.unit.log_tail(STARTUP_LOG_BYTES), tier.unit.state())
    except (UnitError, OSError):
        return {}, None
    return phases_of(log_since(log, before), tier.engine.startup_phases), disk_read_gib(state.pids)


def _write(context: StepContext, tier: Tier, benchmark: Benchmark) -> tuple[tuple[Artifact, ...], str]:
    """Write the figures. Return the file, or why there is none."""
    try:
        path = write_atomically(
            context.workdir / f"{tier.name}_benchmark.json", benchmark.model_dump_json(indent=1)
        )
        startup = json.dumps({"startup_s": benchmark.startup_s})
        write_atomically(startup_path(context.host, tier.name, woken=benchmark.woken), startup)
        source = f"{benchmark.iterations} completions over {tier.engine.url}"
        return (artifact_of(path, source=source),), ""
    except OSError as error:
        return (), f"; its figures could not be written: {error}"


async def _prime(tier: Tier, iterations: int) -> tuple[list[Completion], float]:
    """Generate concurrently, which primes the batched path too. Return the completions and the seconds they took together."""
    at_once = asyncio.Semaphore(AT_ONCE)

    async def complete() -> Completion:
        async with at_once:
            return await tier.engine.complete(
                WARM_PROMPT, max_tokens=WARM_TOKENS, timeout_s=tier.config.engine.request_timeout_s
            )

    began = time.monotonic()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(complete()) for _ in range(iterations)]
        return [task.result() for task in tasks], time.monotonic() - began
    except ExceptionGroup as errors:
        refusals = errors.subgroup(EngineError)
        if refusals is None:
            raise
        error = refusals.exceptions[0]
        raise StepFailed(
            f"{tier.name} generated its first token, then failed in warm-up: {error}",
            next_action="read the end of its log",
        ) from error


async def _first_token(context: StepContext, tier: Tier) -> Completion:
    """Wait for the first generated token. A process that dies is not waited for."""
    began = await tier.unit.state()

    async def still_starting() -> bool:
        state = await tier.unit.state()
        return state.active and state.restarts == began.restarts

    if not began.active:
        raise await _died(tier, f"the process of {tier.label} is gone")
    timeout_s = float(context.args["ready_timeout_s"])
    try:
        async with _in_background(_report_wait(context, timeout_s), _run_meanwhile(context)):
            return await tier.engine.wait_ready(timeout_s=timeout_s, still_starting=still_starting)
    except EngineError as error:
        raise await _died(tier, str(error)) from error


@contextlib.asynccontextmanager
async def _in_background(*work: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Run coroutines beside the block and cancel them at its end."""
    tasks = {asyncio.create_task(one) for one in work}
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _report_wait(context: StepContext, timeout_s: float) -> None:
    """Report every second how long the first token has been waited for."""
    expected_s = context.args.get("expected_s")
    started = time.monotonic()
    of = f" of about {expected_s:.0f} s" if expected_s else ""
    while True:
        elapsed = time.monotonic() - started
        fraction = min(0.95, elapsed / (expected_s or timeout_s))
        context.report(f"waiting for the first token: {elapsed:.0f} s{of}", fraction)
        await asyncio.sleep(1)


async def _run_meanwhile(context: StepContext) -> None:
    """Run the plan's `meanwhile` step while an engine loads its weights. It is cancelled when the engine is ready first."""
    if context.args.get("meanwhile") is None:
        return
    meanwhile = Step.model_validate(context.args["meanwhile"])
    if (os.cpu_count() or 1) < CORES_TO_SPARE:
        await asyncio.sleep(SMALL_HOST_DELAY_S)
    await step_function(meanwhile.verb)(dataclasses.replace(context, step=meanwhile))


async def _startup_s(context: StepContext, tier: Tier) -> float:
    """Return the seconds from the start, or the wake-up, to the first token; 0 for a unit that does not report its process.

    It is kept in the run's folder, so that a repeated step returns the same.
    """
    pid = (await tier.unit.state()).main_pid
    woken = run_notes.recall(context.workdir, woken_note(tier)) if context.args.get("wake") else None
    if woken is not None:
        age_s: float | None = Moment.model_validate(woken).seconds_ago()
    else:
        age_s = None if pid is None else process_age_s(pid)
    if age_s is None:
        return 0.0
    name = f"first_token_{tier.name}"
    note = run_notes.recall(context.workdir, name)
    if note is None or note["pid"] != pid:
        note = run_notes.keep(context.workdir, name, {"pid": pid, "startup_s": age_s})
    return float(note["startup_s"])


async def _died(tier: Tier, what: str) -> StepFailed:
    return StepFailed(
        f"{tier.label} never became ready: {what}; its log: {await explain_end(tier.unit)}",
        next_action="read the end of its log",
    )


async def _memory(context: StepContext, tier: Tier) -> tuple[BenchmarkMemory | None, str]:
    """Return the memory of the GPU that the tier was scoped to, of several the fullest, or why it is unknown."""
    uuids = [str(uuid) for uuid in context.args.get("gpus") or [context.args.get("gpu")] if uuid is not None]
    if tier.config.gpus == 0 or not uuids:
        return None, "the tier runs on the CPU" if tier.config.gpus == 0 else "no GPU was chosen"
    memories = await read_gpus()
    read = [gpu for uuid in uuids if (gpu := memories.by_uuid(uuid)) is not None]
    if len(read) < len(uuids):
        return None, memories.error or f"NVML does not list all of {', '.join(uuids)}"
    gpu = max(read, key=lambda one: one.used_percent)
    limit = float(context.args["memory_limit_percent"])
    memory = BenchmarkMemory(
        gpu_uuid=gpu.uuid,
        used_percent=round(gpu.used_percent, 1),
        limit_percent=limit,
        headroom_gib=round((limit - gpu.used_percent) / 100 * gpu.total_mib / 1024, 2),
    )
    return memory, ""
