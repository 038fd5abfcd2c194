"""The trace action: profile the live engine for a few seconds under load, and tabulate where its time went.

The profiler is always stopped again, also when the step fails or is cancelled; the engine keeps serving. The trace files are
parsed in a child process (see `gpu_actions.trace.__main__`).
"""

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from gpu_actions.action import ActionSpec, PlanRefused, PlanRequest, StepContext, StepFailed, StepResult, step
from gpu_actions.host import Host, Tier
from gpu_actions.models import Artifact, Frozen
from gpu_actions.plan import Plan, Step
from gpu_actions.serving.interfaces import EngineError
from gpu_actions.system.contained import FileRefused, copy_contained
from gpu_actions.system.files import artifact_of, write_atomically
from gpu_actions.system.listening import listening_process
from gpu_actions.system.processes import run_process
from gpu_actions.system.redact import redacted_json, redacted_tail
from gpu_actions.system.urls import port_of
from gpu_actions.trace.leaks import leak_in, secrets_of
from gpu_actions.trace.nsys import export
from gpu_actions.trace.profilers import NsysProfiler, Profiler, how_traced, profiler_of
from gpu_actions.trace.summary import TraceSummary, compare, short_table, table, top_chart

ANALYSIS_TIMEOUT_S = 120
LOAD_STREAMS = 2
SUMMARY_NAME = "trace_summary.json"


class TraceArguments(Frozen):
    """Options of `/trace start`."""

    duration: float | None = Field(default=None, gt=0, le=60, description="seconds to trace")
    tier: Literal["auto", "tp", "fallback"] = Field(
        default="auto", description="which tier; auto: the one that serves"
    )
    load: bool = Field(default=True, description="send a little load of our own while tracing")
    against: str = Field(
        default="",
        pattern=r"^$|^[a-z]{2,4}-[a-z0-9]{4,12}$",
        description="an earlier trace run to compare with",
    )


async def serving_tier(host: Host) -> Tier | None:
    """Return the tier whose unit is active and whose engine is live, the full one first; None when neither is."""
    for tier in (host.tp, host.fallback):
        if (await tier.unit.state()).active and await tier.engine.is_live():
            return tier
    return None


async def plan_trace(request: PlanRequest) -> Plan:
    """Plan a trace. Refused when the tier does not answer."""
    arguments: TraceArguments = request.arguments
    policy = request.host.config.trace
    if arguments.tier == "auto":
        tier = await serving_tier(request.host)
        if tier is None:
            raise PlanRefused(["no tier is serving, so there is nothing to trace: see /triage"])
    else:
        tier = request.host.tiers[arguments.tier]
        if not await tier.engine.is_live():
            raise PlanRefused([f"the tier {tier.name} does not answer at {tier.engine.url}: see /triage"])
    if arguments.against and not _summary_of(request.host, arguments.against).is_file():
        raise PlanRefused(
            [f"against={arguments.against}: there is no trace of that run on {request.host.name}"]
        )
    duration_s = arguments.duration or policy.duration_s
    return Plan(
        action="trace",
        host=request.host.name,
        title=f"Trace the {tier.name} tier for {duration_s:g} s",
        steps=(
            Step(
                id="profile",
                verb="trace.profile",
                title=f"profile {tier.name} for {duration_s:g} s",
                args={
                    "tier": tier.name,
                    "duration_s": duration_s,
                    "load": arguments.load,
                    "max_iterations": policy.max_iterations,
                    "max_trace_mib": policy.max_trace_mib,
                },
                details=(how_traced(tier),),
                timeout_s=duration_s + 120,
                expected_s=duration_s + 5,
                mutates=False,
            ),
            Step(
                id="tabulate",
                verb="trace.tabulate",
                title="tabulate kernels",
                args={"top": policy.top_kernels, "against": arguments.against},
                timeout_s=ANALYSIS_TIMEOUT_S + 10,
                expected_s=5,
                mutates=False,
            ),
        ),
        options=arguments.model_dump(mode="json"),
    )


async def load(tier: Tier, until: float) -> int:
    """Keep a few streams busy until the deadline. Return how many requests finished."""
    finished = 0

    async def stream(number: int) -> None:
        nonlocal finished
        while time.monotonic() < until:
            try:
                await tier.engine.complete(f"trace load {number}", max_tokens=16, timeout_s=10)
                finished += 1
            except EngineError:
                await asyncio.sleep(0.2)  # the profile is the result; the count shows if there was load

    await asyncio.gather(*(stream(number) for number in range(LOAD_STREAMS)))
    return finished


@step("trace.profile")
async def profile(context: StepContext) -> StepResult:
    """Profile the engine and copy the traces into the run's folder. Effect: the engine runs slower meanwhile. Verified by
    fresh, non-empty trace files."""
    tier = context.host.tiers[context.args["tier"]]
    duration_s = float(context.args["duration_s"])
    started = time.time()
    try:
        profiler = await profiler_of(context, tier)
        await profiler.stop_left_on()  # by an earlier run that was killed
        try:
            await profiler.start(max_iterations=int(context.args["max_iterations"]))
        except asyncio.CancelledError:  # it may have started
            await asyncio.shield(profiler.stop_left_on())
            raise
    except EngineError as error:
        raise StepFailed(
            f"the profiler did not start: {error}", next_action="start the engine with its profiler"
        ) from error
    busy = load(tier, time.monotonic() + duration_s) if context.args["load"] else asyncio.sleep(duration_s, 0)
    loading = asyncio.create_task(busy)
    files: tuple[Path, ...] = ()
    try:
        for second in range(int(duration_s)):
            context.report(f"tracing, {second} of {duration_s:g} s", second / duration_s)
            await asyncio.wait([loading], timeout=1)
        finished = await loading
    finally:
        loading.cancel()
        try:
            files = await asyncio.shield(profiler.stop())
        except EngineError as error:
            raise StepFailed(
                f"the profiler did not stop: {error}", next_action="it may still be on: see the engine's log"
            ) from error
    taken, refused = await take(context, tier, profiler, files, started)
    if not taken.files:
        raise StepFailed(
            f"no trace was taken: {'; '.join(refused) or 'the engine wrote none'}",
            next_action="see the engine's log for its profiler's messages, or set trace.folder in the settings",
        )
    own = f", {finished} requests of our own meanwhile" if finished else ""
    return StepResult(
        summary="; ".join([f"{len(taken.files)} trace file(s){own}", *refused]),
        data={"files": [str(path) for path in taken.files], "requests": finished},
        artifacts=taken.artifacts,
        warning=bool(refused),
    )


class Taken(Frozen):
    """The files of a trace: those to tabulate, and those to publish."""

    files: tuple[Path, ...] = ()
    artifacts: tuple[Artifact, ...] = ()


async def take(
    context: StepContext, tier: Tier, profiler: Profiler, files: Sequence[Path], started: float
) -> tuple[Taken, list[str]]:
    """Copy the fresh traces into the run's folder. Return them and why others were refused.

    What a profiler names is taken only from its trace folder, and only if the engine's own process owns it.
    """
    taken, refused = await asyncio.to_thread(_copy, context, tier, profiler, files, started)
    if not isinstance(profiler, NsysProfiler) or not taken:
        return Taken(files=tuple(one.path for one in taken), artifacts=taken), refused
    report = taken[0].path
    sqlite = report.with_suffix(".sqlite")
    try:
        await export(profiler.session, report, sqlite)
    except EngineError as error:
        return Taken(), [*refused, f"{error} ({report} is kept)"]
    pids = (await tier.unit.state()).pids
    leak = await asyncio.to_thread(lambda: leak_in((report, sqlite), secrets_of(pids)))
    if leak:  # a report holds the environment and the arguments of the unit in clear
        refused.append(
            f"{report.name} holds a secret ({leak}), so it stays on {context.host.name} as {report}: "
            "give the unit its secrets in files and not in its environment"
        )
    return Taken(files=(sqlite,), artifacts=() if leak else taken), refused


def _copy(
    context: StepContext, tier: Tier, profiler: Profiler, files: Sequence[Path], started: float
) -> tuple[tuple[Artifact, ...], list[str]]:
    folder = profiler.folder
    if folder is None:
        return (), ["the engine's trace folder is not known"]
    process = listening_process(port_of(tier.engine.url))
    owner_uid = os.geteuid() if process is None else process.uids().effective
    taken, refused = [], []
    for path in files:
        kept = context.workdir / path.name
        try:
            copy_contained(
                path,
                kept,
                folder=folder,
                owner_uid=owner_uid,
                max_bytes=int(context.args["max_trace_mib"]) * 1024**2,
                since_s=started - 1,
            )
        except FileRefused as error:
            refused.append(str(error))
        else:
            taken.append(artifact_of(kept, source=profiler.name))
    return tuple(taken), refused


def _summary_of(host: Host, run_id: str) -> Path:
    return host.state_dir / "runs" / run_id / SUMMARY_NAME


def _changes(host: Host, against: str, summary: TraceSummary) -> tuple[str, ...] | None:
    """Return what changed since an earlier trace, or None if none was named."""
    if not against:
        return None
    try:
        before = TraceSummary.model_validate_json(_summary_of(host, against).read_bytes())
    except (OSError, ValueError):
        return (f"{against} cannot be read any more: nothing was compared",)
    return compare(summary, before)


@step("trace.tabulate")
async def tabulate(context: StepContext) -> StepResult:
    """Parse the traces in a child and show the table. Effect: writes trace_summary.json. Verified by its content."""
    files = [str(path) for path in context.outputs["profile"]["files"]]
    against = str(context.args.get("against", ""))
    return await table_of(context, files, top=int(context.args["top"]), against=against)


async def table_of(context: StepContext, files: Sequence[str], *, top: int, against: str = "") -> StepResult:
    """Tabulate trace files in a child, with a picture. Raises StepFailed if they cannot be read."""
    picture = context.workdir / "trace_summary.png"
    picture.unlink(missing_ok=True)
    options = ["--top", str(top), "--picture", str(picture)]
    timeline = context.workdir / "trace_perfetto.json.gz"
    timeline.unlink(missing_ok=True)
    if str(files[0]).endswith(".sqlite"):
        options += ["--perfetto", str(timeline)]
    result = await run_process(
        [sys.executable, "-m", "gpu_actions.trace", *options, *files], timeout_s=ANALYSIS_TIMEOUT_S
    )
    if result.exit_code != 0:
        reason = (
            "took too long"
            if result.timed_out
            else redacted_tail(result.stderr.strip(), 300) or f"exit code {result.exit_code}"
        )
        raise StepFailed(
            f"the trace could not be tabulated: {reason}",
            next_action="the files are kept: open them in Perfetto",
        )
    summary = TraceSummary.model_validate_json(result.stdout)
    path = write_atomically(
        context.workdir / SUMMARY_NAME,
        redacted_json(summary.model_dump_json()),
    )
    for file in files:
        # An export is many times its report, and holds the environment of the unit.
        if file.endswith(".sqlite"):
            Path(file).unlink(missing_ok=True)
    changes = _changes(context.host, against, summary)
    artifacts = [artifact_of(path, source="python -m gpu_actions.trace")]
    if picture.is_file():
        drawn = artifact_of(picture, source="python -m gpu_actions.trace", title="trace", inline=True)
        artifacts.insert(0, drawn)
    if timeline.is_file():
        artifacts.append(artifact_of(timeline, source="the export of nsys, for Perfetto"))
    first = summary.ranks[0].top[0]
    return StepResult(
        summary=f"top: {first.name} {first.share_percent:.0f} % of {summary.ranks[0].span_ms:.0f} ms"
        + (f"; skipped: {'; '.join(summary.skipped)}" if summary.skipped else ""),
        data={
            "thread_text": table(summary, changes=changes),
            "table": short_table(summary),
            "chart": top_chart(summary),
            "table_notes": list(changes or ()),
            "summary": summary.model_dump(mode="json"),
        },
        artifacts=tuple(artifacts),
        warning=bool(summary.skipped),
    )


SPEC = ActionSpec(
    name="trace",
    prefix="tr",
    summary="Profile the live engine for a few seconds and show its top kernels.",
    arguments=TraceArguments,
    plan=plan_trace,
    changes_host=False,
    disturbs_service=True,
    usages=(
        ("start [host]", "profile it now"),
        ("plan [host]", "show what it would do"),
        ("status [host]", "show where the last one is"),
        ("stop [host]", "end it early"),
    ),
    keeps_partial_results=True,
    pauses_monitors=frozenset({"hang", "probe", "regression", "mirror"}),
)
