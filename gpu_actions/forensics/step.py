"""The step `forensics.capture`: a bundle of evidence within a budget, before anything is stopped.

It never fails a run: a fallback must not wait for evidence. What is missing stands in the manifest and in the summary.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from gpu_actions.action import StepContext, StepResult, step
from gpu_actions.forensics.bundle import Bundle, Collected, Item, make_bundle, read_manifest
from gpu_actions.forensics.items import host_items, tier_items
from gpu_actions.forensics.look import look
from gpu_actions.host import Host
from gpu_actions.plan import Step
from gpu_actions.system.files import artifact_of
from gpu_actions.tier import run_notes

NOTE = "bundle"
SNAPSHOT_SHARE = 0.3
"""Share of the budget for triage's window: 3 s of 10, as triage has by default."""

GAP_SHARE = 0.15
"""Between two readings of what should move: 1.5 s of 10."""


def capture_step(host: Host, *, budget_s: float) -> Step:
    """The capture as a step of a plan."""
    return Step(
        id="capture",
        verb="forensics.capture",
        title="save the evidence",
        args={"budget_s": budget_s},
        details=(
            f"at most {budget_s:g} s: triage snapshot, /metrics twice, stacks of each rank (py-spy, no locals), "
            "process states, kernel log, NCCL RAS twice, GPU and link state, logs",
            "secrets are cut; a manifest lists every file with its sha256, and what is missing with the reason",
            f"GPUs: {'none expected' if host.config.gpus == 0 else 'nvidia-smi, NVML'}",
        ),
        timeout_s=budget_s + 60,
        expected_s=budget_s * 0.7,
        mutates=False,
        on_failure="continue",
    )


async def capture(
    host: Host,
    *,
    run_id: str,
    path: Path,
    budget_s: float,
    report: Callable[[str, float | None], None] = lambda text, fraction: None,
) -> Bundle:
    """Collect everything at once into `path`. Raises OSError when the bundle cannot be written."""
    gap_s = min(1.5, budget_s * GAP_SHARE)
    judged: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def snapshot() -> Collected:
        window_s = max(0.5, min(3.0, budget_s * SNAPSHOT_SHARE))
        limits = host.thresholds.model_copy(
            update={
                "completion_deadline_s": window_s + 0.5,
                "stacks_timeout_s": max(1.0, budget_s * SNAPSHOT_SHARE),
            }
        )
        taken, verdict = await look(host, window_s=window_s, thresholds=limits)
        judged.set_result(verdict.model_dump_json(indent=1))
        return Collected(text=taken.model_dump_json(indent=1))

    async def verdict() -> Collected:
        return Collected(text=await judged)

    items = [
        Item(path="triage/snapshot.json", source="triage: one snapshot", collect=snapshot),
        Item(path="triage/verdict.json", source="triage: its judgement", collect=verdict),
        *host_items(host, gap_s=gap_s),
        *await tier_items(host.tp, gap_s=gap_s),
        *await tier_items(host.fallback, gap_s=gap_s),
    ]
    return await make_bundle(
        items, path=path, host=host.name, run_id=run_id, budget_s=budget_s, report=report
    )


@step("forensics.capture")
async def run_capture(context: StepContext) -> StepResult:
    """Effect: one file in the run's folder. Verified: it was read back with its manifest. A second execution keeps the first
    bundle, since the evidence of that moment cannot be taken again."""
    run_notes.began_at_s(context.workdir)
    return await save_evidence(context, budget_s=float(context.args["budget_s"]))


async def save_evidence(context: StepContext, *, budget_s: float) -> StepResult:
    """Save the bundle of this run, or give the one that it has already."""
    note = run_notes.recall(context.workdir, NOTE)
    if note is None or not Path(note["path"]).is_file():
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        bundle = await capture(
            context.host,
            run_id=context.run_id,
            path=context.workdir / f"evidence_{context.host.name}_{stamp}.tar.gz",
            budget_s=budget_s,
            report=context.report,
        )
        note = run_notes.keep(context.workdir, NOTE, {"path": str(bundle.path)})
    path = Path(note["path"])
    return _result(Bundle(path=path, manifest=read_manifest(path)))


def _result(bundle: Bundle) -> StepResult:
    manifest = bundle.manifest
    cut = sum(sum(entry.redactions.values()) for entry in manifest.entries)
    missing = [f"{entry.path}: {entry.reason}" for entry in manifest.missing]
    parts = [f"{len(manifest.entries)} files in {manifest.seconds:.1f} s"]
    parts += [f"{cut} secrets cut"] if cut else []
    parts += (
        [f"{len(missing)} missing ({', '.join(entry.path for entry in manifest.missing[:6])})"]
        if missing
        else []
    )
    return StepResult(
        summary="; ".join(parts),
        data={
            "bundle": str(bundle.path),
            "seconds": manifest.seconds,
            "files": [entry.path for entry in manifest.entries],
            "missing": missing,
            "redactions": cut,
        },
        artifacts=(artifact_of(bundle.path, source="forensics.capture", title="evidence bundle"),),
    )
