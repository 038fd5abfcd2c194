"""The triage action: one step that takes a snapshot of the host, judges it, and keeps it as an artifact."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field

from gpu_actions.action import ActionSpec, PlanRequest, StepContext, StepResult, step
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Artifact, Frozen, Verdict, VerdictKind
from gpu_actions.plan import Plan, Step
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.model import Snapshot, save_snapshot
from gpu_actions.snapshot.target import target_of_host
from gpu_actions.system.files import artifact_of
from gpu_actions.triage.baselines import TriageBaseline, baseline_from, load_baseline, save_baseline
from gpu_actions.triage.judge import judge
from gpu_actions.triage.matrix import matrix_of


class TriageArguments(Frozen):
    """Options of `/triage`."""

    deep: bool = Field(default=False, description="also run all-reduce, copies and GEMM on all GPUs")
    window: float | None = Field(default=None, ge=0.2, le=120, description="seconds between the two readings")
    tier: Literal["auto", "tp", "fallback"] = Field(
        default="auto", description="which tier; auto: the one that runs"
    )
    record_baseline: bool = Field(
        default=False, description="record the figures as the host's baseline, if the host is healthy"
    )
    since_minutes: float | None = Field(
        default=None, gt=0, le=44_640, description="how far back kernel messages count"
    )


async def plan_triage(request: PlanRequest) -> Plan:
    """Plan one snapshot and its judgement. Never refused: whatever cannot be read becomes a finding."""
    arguments: TriageArguments = request.arguments
    limits = request.host.thresholds
    window_s = arguments.window or limits.window_s
    return Plan(
        action="triage",
        host=request.host.name,
        title=f"Triage {request.host.name}" + (" (deep)" if arguments.deep else ""),
        steps=(
            Step(
                id="look",
                verb="triage.look",
                title="check GPUs, links, collectives and serving"
                + (", and probe the GPUs" if arguments.deep else ""),
                args={
                    "window_s": window_s,
                    "whole_window": arguments.window is not None,
                    "deep": arguments.deep,
                    "tier": arguments.tier,
                    "since_s": None if arguments.since_minutes is None else arguments.since_minutes * 60,
                    "thresholds": request.host.thresholds.model_dump(mode="json", exclude_defaults=True),
                    "baseline": None
                    if request.host.triage_baseline is None
                    else str(request.host.triage_baseline),
                    "record_baseline": arguments.record_baseline,
                },
                timeout_s=window_s + 60 + (limits.deep_deadline_s if arguments.deep else 0),
                expected_s=window_s + 1.5 + (12 if arguments.deep else 0),
                mutates=False,
            ),
        ),
        options=arguments.model_dump(mode="json"),
    )


@step("triage.look")
async def triage(context: StepContext) -> StepResult:
    """Take a snapshot and judge it. Effect: one synthetic completion, and with `deep` a probe on the GPUs. Verified by the
    saved snapshot, which judges to the same verdict."""
    args = context.args
    thresholds = TriageThresholds.model_validate(args.get("thresholds") or {})
    since_s = args.get("since_s")
    since = None if since_s is None else datetime.now(UTC) - timedelta(seconds=float(since_s))
    chosen = args.get("tier", "auto")
    target = await target_of_host(context.host, tier=None if chosen == "auto" else chosen, since=since)
    snapshot = await collect(
        target,
        thresholds,
        window_s=float(args["window_s"]),
        deep=bool(args["deep"]),
        whole_window=bool(args.get("whole_window") or args.get("record_baseline")),
        report=lambda line: context.report(line, None),
    )
    baseline, problem = _baseline(args.get("baseline"))
    verdict = judge(snapshot, thresholds, baseline)
    path = save_snapshot(snapshot, context.workdir / "snapshot.json")
    recorded = ""
    if args.get("record_baseline"):
        recorded = await asyncio.to_thread(_record_baseline, snapshot, verdict, args.get("baseline"))
    picture = await asyncio.to_thread(_picture, snapshot, verdict, context.workdir / "matrix.png")
    cause = "" if verdict.verdict is VerdictKind.HEALTHY else f"{verdict.cause}: "
    summary = f"{verdict.verdict.value.replace('_', ' ')}: {cause}{verdict.summary}"
    return StepResult(
        summary="; ".join(filter(None, (summary, problem, recorded))),
        data={
            **({"thread_text": note} if (note := "; ".join(filter(None, (problem, recorded)))) else {}),
            "cause": verdict.cause,
            "verdict": verdict.verdict.value,
            "tier": target.tier,
        },
        findings=verdict.findings,
        artifacts=(artifact_of(path, source="gpu_actions.triage", title="raw snapshot"), *picture),
        verdict=verdict,
        warning=verdict.verdict is VerdictKind.UNKNOWN,
    )


def _baseline(path: str | None) -> tuple[TriageBaseline, str]:
    """Return the host's baseline, or an empty one and the reason if its file is broken: triage goes on without it."""
    try:
        return load_baseline(path), ""
    except (OSError, ValueError) as error:
        return TriageBaseline(), f"judged without the baseline: {error}"


def _record_baseline(snapshot: Snapshot, verdict: Verdict, path: str | None) -> str:
    """Record a healthy snapshot as the host's baseline. Return what was recorded, or why nothing was."""
    if path is None:
        return "no baseline was recorded: there is no folder for baselines; set state_dir in the settings"
    if verdict.verdict is not VerdictKind.HEALTHY:
        word = verdict.verdict.value.replace("_", " ")
        return f"no baseline was recorded: the host is {word}, and only a healthy host sets a baseline"
    try:
        known = load_baseline(path)
    except ValueError:
        known = TriageBaseline()  # a broken file is replaced by the new one
    try:
        kept = save_baseline(baseline_from(snapshot, known), Path(path))
    except (OSError, ValueError) as error:
        return f"no baseline was recorded: {error}"
    baseline = load_baseline(str(kept))
    figures = [
        f"{name} {value:.4g}"
        for name, value in baseline.model_dump(exclude={"remote_ends", "nvlink_pairs"}).items()
        if value is not None
    ]
    return f"recorded as this host's baseline: {', '.join(figures) or 'no figure was measured'}"


def _picture(snapshot: Snapshot, verdict: Verdict, path: Path) -> tuple[Artifact, ...]:
    """Draw the GPU and link matrix for the thread, if there are GPUs. A verdict never fails because of its picture."""
    matrix = matrix_of(snapshot, verdict)
    if not matrix.gpus and not matrix.missing_gpus:
        return ()
    from gpu_actions.triage.picture import draw_matrix  # Pillow is loaded only if a picture is drawn

    title = f"{verdict.verdict.value.replace('_', ' ').upper()}: {verdict.cause} on {snapshot.host}"
    try:
        drawn = draw_matrix(matrix, path, title=title)
    except (OSError, ValueError):
        return ()
    return (
        (artifact_of(path, source="gpu_actions.triage.picture", title="GPUs and links", inline=True),)
        if drawn
        else ()
    )


SPEC = ActionSpec(
    name="triage",
    prefix="tri",
    summary="Find out what is wrong with a host: one verdict, its cause, its evidence. Reads only.",
    arguments=TriageArguments,
    plan=plan_triage,
    changes_host=False,
    usages=(
        ("[host]", "check everything within seconds and post the verdict"),
        ("[host] deep", "also run collectives, copies and a matrix product on the GPUs"),
        ("status [host]", "show the last verdict"),
    ),
    usage_hint="[host] [deep]",
    subcommands=("start", "status"),
    flags=("deep",),
    starts_by_name=True,
    diagnoses=True,
)
