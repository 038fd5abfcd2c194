"""What this host measured on a known-good day; triage compares with it where it exists.

The figures come from a healthy look that a person declares to be one (`/triage deep record_baseline=yes`); without them
checks use the floors of `thresholds` and of the GPU's model, or say that they cannot judge.
"""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from gpu_actions.models import Frozen
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.system.files import write_atomically

MAX_BASELINE_BYTES = 1024 * 1024


class TriageBaseline(Frozen):
    """Known-good figures of one host; each may be missing."""

    busbw_gbps: float | None = Field(
        default=None, gt=0, description="all-reduce bus bandwidth of the deep probe"
    )
    p2p_gbps: float | None = Field(default=None, gt=0, description="slowest pair's copy rate")
    gemm_tflops: float | None = Field(default=None, gt=0, description="slowest GPU's GEMM rate")
    completion_ms: float | None = Field(default=None, gt=0, description="synthetic completion, end to end")
    ttft_mean_ms: float | None = Field(default=None, gt=0)
    tokens_per_s: float | None = Field(default=None, gt=0, description="under a queue")
    remote_ends: dict[str, dict[int, str]] = Field(
        default_factory=dict,
        description="GPU UUID -> link -> bus id of its far end, for links that hide it when down",
    )


def load_baseline(path: str | None) -> TriageBaseline:
    """The baseline of a file, the empty one where there is none. Raises ValueError naming a file that is broken."""
    if path is None or not Path(path).is_file():
        return TriageBaseline()
    try:
        return TriageBaseline.model_validate_json(Path(path).read_bytes()[:MAX_BASELINE_BYTES])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "baseline"
        raise ValueError(f"{path}: {field}: {first['msg']}; correct it or record a new baseline") from None


def baseline_from(snapshot: Snapshot, known: TriageBaseline | None = None) -> TriageBaseline:
    """The figures of a healthy snapshot, on top of what is known: a figure that this look did not take stays as it was."""
    figures: dict[str, Any] = {}
    deep = snapshot.deep
    if deep is not None and deep.outcome == "ok":
        figures["busbw_gbps"] = deep.busbw_gbps
        figures["p2p_gbps"] = min((pair.gbps for pair in deep.pairs), default=None)
        figures["gemm_tflops"] = min(
            (gpu.gemm_tflops for gpu in deep.gpus if gpu.gemm_tflops is not None), default=None
        )
    if snapshot.completion is not None and snapshot.completion.outcome == "ok":
        figures["completion_ms"] = snapshot.completion.e2e_ms
    figures.update(_serving_figures(snapshot))
    if snapshot.nvml is not None:
        ends = {
            gpu.uuid: {link.index: link.remote_pci for link in gpu.links if link.remote_pci}
            for gpu in snapshot.nvml.gpus
        }
        figures["remote_ends"] = {uuid: links for uuid, links in ends.items() if links}
    measured = {name: value for name, value in figures.items() if value}
    return TriageBaseline.model_validate({**(known or TriageBaseline()).model_dump(), **measured})


def _serving_figures(snapshot: Snapshot) -> dict[str, float]:
    """Mean TTFT of the window's requests, and tokens/s where requests were waiting all the while."""
    if snapshot.engine is None or len(snapshot.engine.samples) < 2:
        return {}
    first, last = snapshot.engine.samples[0], snapshot.engine.samples[-1]
    figures = {}
    if None not in (first.ttft_count, last.ttft_count, first.ttft_sum_s, last.ttft_sum_s):
        requests = (last.ttft_count or 0) - (first.ttft_count or 0)
        if requests > 0:
            figures["ttft_mean_ms"] = 1000 * ((last.ttft_sum_s or 0) - (first.ttft_sum_s or 0)) / requests
    seconds = last.at_s - first.at_s
    queued = (first.waiting or 0) > 0 and (last.waiting or 0) > 0
    if queued and seconds > 0 and None not in (first.tokens, last.tokens):
        figures["tokens_per_s"] = ((last.tokens or 0) - (first.tokens or 0)) / seconds
    return {name: value for name, value in figures.items() if value > 0}


def save_baseline(baseline: TriageBaseline, path: Path) -> Path:
    """Write a host's baseline whole, and read it back. Raises OSError, and ValueError for what cannot be read back."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, baseline.model_dump_json(indent=1) + "\n")
    if load_baseline(str(path)) != baseline:
        raise ValueError(f"{path} does not hold what was written: check the disk")
    return path
