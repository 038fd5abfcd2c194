"""The step `forensics.capture`: a bundle of evidence within a budget, before anything is stopped.

It never fails a run: a fallback must not wait for evidence. What is missing is named in the manifest and in the summary.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from gpu_actions.action import StepContext, StepResult, step
from gpu_actions.forensics.bundle import Bundle, make_bundle, read_manifest
from gpu_actions.forensics.item import Scope
from gpu_actions.forensics.registry import items_of
from gpu_actions.host import Host
from gpu_actions.plan import Step
from gpu_actions.system.files import artifact_of
from gpu_actions.tier import run_notes

NOTE = "bundle"
GAP_SHARE = 0.15
"""Share of the budget between two readings of what should move: 1.5 s of 10."""


def capture_step(host: Host, *, budget_s: float) -> Step:
    """Return the capture as a step of a plan."""
    return Step(
        id="capture",
        verb="forensics.capture",
        title="save the evidence",
        args={"budget_s": budget_s},
        details=(
            f"at most {budget_s:g} s: triage snapshot, /metrics twice, stacks of each rank (py-spy, no locals), "
            "process states, kernel log, NCCL RAS twice, GPU and link state, logs",
            "secrets are removed; a manifest lists every file with its sha256, and what is missing with the reason",
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
    """Collect everything concurrently into `path`. Raises OSError when the bundle cannot be written."""
    began = monotonic()
    scope = Scope(host=host, budget_s=budget_s, gap_s=min(1.5, budget_s * GAP_SHARE))
    items = await items_of(scope)
    left_s = budget_s - (monotonic() - began)
    return await make_bundle(
        items, path=path, host=host.name, run_id=run_id, budget_s=round(left_s, 1), report=report
    )


@step("forensics.capture")
async def run_capture(context: StepContext) -> StepResult:
    """Effect: one file in the run's folder. Verified: it was read back with its manifest. A second execution keeps the first
    bundle, since the evidence of that moment cannot be taken again."""
    run_notes.began_at_s(context.workdir)
    return await save_evidence(context, budget_s=float(context.args["budget_s"]))


async def save_evidence(context: StepContext, *, budget_s: float) -> StepResult:
    """Save the bundle of this run, or return the existing one."""
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
    entries, missing = bundle.manifest.entries, bundle.manifest.missing
    redactions = sum(sum(entry.redactions.values()) for entry in entries)
    truncated = [entry.path for entry in entries if entry.truncated]
    parts = [f"{len(entries)} files in {bundle.manifest.seconds:.1f} s"]
    parts += [f"{redactions} secrets removed"] if redactions else []
    parts += [f"{len(truncated)} truncated ({', '.join(truncated[:6])})"] if truncated else []
    parts += [f"{len(missing)} missing ({', '.join(entry.path for entry in missing[:6])})"] if missing else []
    return StepResult(
        summary="; ".join(parts),
        data={
            "bundle": str(bundle.path),
            "seconds": bundle.manifest.seconds,
            "files": [entry.path for entry in entries],
            "missing": [f"{entry.path}: {entry.reason}" for entry in missing],
            "truncated": truncated,
            "redactions": redactions,
        },
        artifacts=(artifact_of(bundle.path, source="forensics.capture", title="evidence bundle"),),
    )
