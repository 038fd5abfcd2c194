"""The step `tier.warm`: wait until the tier's own process generates tokens, prime it, and write down what it gives.

The runbook warmed a process of its own and wrote nothing when all failed; here the serving process is warmed over its API,
and a figure that is missing fails the step.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from gpu_actions.action import StepContext, StepFailed, StepResult, step, step_function
from gpu_actions.host import Host, Tier
from gpu_actions.models import Artifact, Frozen
from gpu_actions.plan import Step
from gpu_actions.serving.interfaces import Completion, EngineError
from gpu_actions.system.clock import process_age_s
from gpu_actions.system.files import artifact_of, write_atomically
from gpu_actions.tier import run_notes
from gpu_actions.tier.gpu_memory import read_gpus

WARM_PROMPT = "The on-call engineer looked at the graph and said that the service would be back in "
WARM_TOKENS = 8
AT_ONCE = 16
"""The playbook's batch limit of the fallback."""
CORES_TO_SPARE = 8
SMALL_HOST_PATIENCE_S = 10.0
"""On a host with few cores a capture would slow the engine's start, so it waits whether the engine is there soon."""


class BenchmarkMemory(Frozen):
    """Memory of the GPU that serves, against the limit of the playbook (80 %)."""

    gpu_uuid: str
    used_percent: float
    limit_percent: float
    headroom_gib: float = Field(description="below the limit; negative when over it")


class Benchmark(Frozen):
    """The tier's latency envelope right after its start: what `fallback_benchmark.json` holds."""

    created_at: str
    host: str
    tier: str
    engine: str
    model: str
    run_id: str
    warmup: int = Field(ge=1, description="completions before the measured ones: the first token itself")
    iterations: int = Field(ge=1, description="measured completions, up to 16 at once")
    startup_s: float = Field(ge=0, description="from the process's start to its first generated token")
    first_ttft_ms: float = Field(gt=0)
    ttft_ms_p50: float = Field(gt=0)
    ttft_ms_max: float = Field(gt=0)
    e2e_ms_p50: float = Field(gt=0)
    tokens_per_s: float = Field(gt=0, description="of all measured completions together")
    memory: BenchmarkMemory | None = None
    memory_missing: str = Field(default="", description="why `memory` is not there")


def startup_path(host: Host, tier_name: str) -> Path:
    """Where a host remembers how long a tier took to its first token, for the next plan's expected time."""
    return host.state_dir / f"startup_{tier_name}.json"


def expected_startup_s(host: Host, tier_name: str) -> float | None:
    """Seconds that this tier's last start took; None when it never ran here."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return float(json.loads(startup_path(host, tier_name).read_text(encoding="utf-8"))["startup_s"])
    return None


def summarise(completions: list[Completion], *, seconds: float) -> tuple[float, float, float, float]:
    """TTFT p50 and max, E2E p50 (all ms) and tokens a second of completions that took `seconds` in all. Raises ValueError
    without any."""
    if not completions:
        raise ValueError("no completion was measured")
    ttft = [completion.ttft_ms for completion in completions]
    e2e = [completion.e2e_ms for completion in completions]
    tokens = sum(completion.completion_tokens for completion in completions)
    return statistics.median(ttft), max(ttft), statistics.median(e2e), tokens / seconds


@step("tier.warm")
async def warm(context: StepContext) -> StepResult:
    """Effect: the engine's caches are primed. Verified by generated tokens and a fresh benchmark file with every figure; a disk
    without room for that file is a warning."""
    tier = context.host.tiers[context.args["tier"]]
    first = await _first_token(context, tier)
    startup_s = await _startup_s(context, tier)
    iterations = int(context.args["iterations"])
    context.report(f"warming with {iterations} completions", None)
    (completions, seconds), (memory, missing) = await asyncio.gather(
        _prime(tier, iterations), _memory(context, tier)
    )
    ttft_p50, ttft_max, e2e_p50, tokens_per_s = summarise(completions, seconds=seconds)
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
        first_ttft_ms=first.ttft_ms,
        ttft_ms_p50=ttft_p50,
        ttft_ms_max=ttft_max,
        e2e_ms_p50=e2e_p50,
        tokens_per_s=tokens_per_s,
        memory=memory,
        memory_missing=missing,
    )
    artifacts, not_written = _write(context, benchmark, iterations)
    over = memory is not None and memory.used_percent > memory.limit_percent
    space = (
        f"; GPU memory {memory.used_percent:.0f} % of at most {memory.limit_percent:g} %" if memory else ""
    )
    return StepResult(
        summary=f"{tier.name} generates: first token {startup_s:.1f} s after its start, TTFT {ttft_p50:.0f} ms, "
        f"{tokens_per_s:.0f} tokens/s of {min(iterations, AT_ONCE)} at once{space}{not_written}",
        data=benchmark.model_dump(mode="json"),
        artifacts=artifacts,
        warning=over or bool(not_written),
    )


def _write(context: StepContext, benchmark: Benchmark, iterations: int) -> tuple[tuple[Artifact, ...], str]:
    """Write the figures down; gives the file, or why there is none: a tier that generates is not given up for a full disk."""
    tier = context.host.tiers[context.args["tier"]]
    startup = json.dumps({"startup_s": benchmark.startup_s})
    try:
        path = write_atomically(
            context.workdir / f"{tier.name}_benchmark.json", benchmark.model_dump_json(indent=1)
        )
        write_atomically(startup_path(context.host, tier.name), startup)
        return (artifact_of(path, source=f"{iterations} completions over {tier.engine.url}"),), ""
    except OSError as error:
        return (), f"; its figures could not be written: {error}"


async def _prime(tier: Tier, iterations: int) -> tuple[list[Completion], float]:
    """Generate at once: it primes the batched path too, and clients wait for one of them and not for all. Gives the
    completions and how many seconds they took together."""
    at_once = asyncio.Semaphore(AT_ONCE)

    async def complete() -> Completion:
        async with at_once:
            return await tier.engine.complete(
                WARM_PROMPT, max_tokens=WARM_TOKENS, timeout_s=tier.config.engine.request_timeout_s
            )

    began = time.monotonic()
    try:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(complete()) for _ in range(iterations)]
        return [task.result() for task in asked], time.monotonic() - began
    except ExceptionGroup as errors:
        refusals = errors.subgroup(EngineError)
        if refusals is None:
            raise
        error = refusals.exceptions[0]
        raise StepFailed(
            f"{tier.name} generated its first token, then failed in warm-up: {error}",
            next_action="see the tail of its log",
        ) from error


async def _first_token(context: StepContext, tier: Tier) -> Completion:
    """Wait for the first generated token and say how long it has been; a process that died is not waited for."""
    timeout_s = float(context.args["ready_timeout_s"])
    expected_s = context.args.get("expected_s")
    began = await tier.unit.state()

    async def still_starting() -> bool:
        state = await tier.unit.state()
        return state.active and state.restarts == began.restarts

    async def tell() -> None:
        started = time.monotonic()
        of = f" of about {expected_s:.0f} s" if expected_s else ""
        while True:
            elapsed = time.monotonic() - started
            context.report(
                f"waiting for the first token: {elapsed:.0f} s{of}",
                min(0.95, elapsed / (expected_s or timeout_s)),
            )
            await asyncio.sleep(1)

    if not began.active:
        raise await _died(tier, f"the process of {tier.name} is gone")
    telling = asyncio.create_task(tell())
    saving = asyncio.create_task(_save_meanwhile(context))
    try:
        return await tier.engine.wait_ready(timeout_s=timeout_s, still_starting=still_starting)
    except EngineError as error:
        raise await _died(tier, str(error)) from error
    finally:
        telling.cancel()
        saving.cancel()
        await asyncio.wait({saving})


async def _save_meanwhile(context: StepContext) -> None:
    """Run the plan's `meanwhile` step while an engine loads its weights. It is cancelled when the engine is ready first."""
    if context.args.get("meanwhile") is None:
        return
    meanwhile = Step.model_validate(context.args["meanwhile"])
    if (os.cpu_count() or 1) < CORES_TO_SPARE:
        await asyncio.sleep(SMALL_HOST_PATIENCE_S)
    await step_function(meanwhile.verb)(dataclasses.replace(context, step=meanwhile))


async def _startup_s(context: StepContext, tier: Tier) -> float:
    """Seconds from the process's start to its first token; kept in the run's folder, so that a repeated step tells the same."""
    pid = (await tier.unit.state()).main_pid
    age_s = None if pid is None else process_age_s(pid)
    if age_s is None:  # a unit that does not tell its process
        return 0.0
    name = f"first_token_{tier.name}"
    note = run_notes.recall(context.workdir, name)
    if note is None or note["pid"] != pid:
        note = run_notes.keep(context.workdir, name, {"pid": pid, "startup_s": age_s})
    return float(note["startup_s"])


async def _died(tier: Tier, what: str) -> StepFailed:
    tail = (await tier.unit.log_tail(4000)).strip().splitlines()
    said = f"; its log ends: {tail[-1][:300]}" if tail else ""
    return StepFailed(f"{tier.name} never got ready: {what}{said}", next_action="see its log")


async def _memory(context: StepContext, tier: Tier) -> tuple[BenchmarkMemory | None, str]:
    """Memory of the GPU that the tier was scoped to, or why it cannot be told."""
    uuid = context.args.get("gpu")
    if tier.config.gpus == 0 or uuid is None:
        return None, "the tier runs on the CPU" if tier.config.gpus == 0 else "no single GPU was chosen"
    memories = await read_gpus()
    gpu = memories.by_uuid(str(uuid))
    if gpu is None:
        return None, memories.error or f"NVML does not list {uuid}"
    limit = float(context.args["memory_limit_percent"])
    return (
        BenchmarkMemory(
            gpu_uuid=gpu.uuid,
            used_percent=round(gpu.used_percent, 1),
            limit_percent=limit,
            headroom_gib=round((limit - gpu.used_percent) / 100 * gpu.total_mib / 1024, 2),
        ),
        "",
    )
