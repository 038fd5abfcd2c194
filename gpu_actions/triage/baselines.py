"""Figures of a host on a known-good day, recorded by `/triage deep record_baseline=yes`.

Without them the checks use the thresholds and the floors of the GPU's model, or say that they cannot judge.
"""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from gpu_actions.models import Frozen
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.system.files import write_atomically

MAX_BASELINE_BYTES = 1024 * 1024


class TriageBaseline(Frozen):
    """Known-good figures of one host; each is optional."""

    busbw_gbps: float | None = Field(
        default=None, gt=0, description="all-reduce bus bandwidth of the deep probe"
    )
    p2p_gbps: float | None = Field(default=None, gt=0, description="slowest pair's copy rate")
    gemm_tflops: float | None = Field(default=None, gt=0, description="slowest GPU's GEMM rate")
    memory_gbps: float | None = Field(default=None, gt=0, description="slowest GPU's memory copy")
    host_link_gbps: float | None = Field(
        default=None, gt=0, description="slowest copy between the host and a GPU"
    )
    completion_ms: float | None = Field(default=None, gt=0, description="synthetic completion, end to end")
    ttft_mean_ms: float | None = Field(default=None, gt=0)
    tokens_per_s: float | None = Field(default=None, gt=0, description="under a queue")
    remote_ends: dict[str, dict[int, str]] = Field(
        default_factory=dict,
        description="GPU UUID -> link -> bus id of its remote end, for links that hide it while down",
    )
    nvlink_pairs: tuple[tuple[str, str], ...] = Field(
        default=(), description="UUIDs of the pairs of GPUs that reach each other over NVLink"
    )

    @property
    def uuids(self) -> frozenset[str]:
        """The GPUs that it knows."""
        return frozenset(self.remote_ends) | {uuid for pair in self.nvlink_pairs for uuid in pair}

    def expects_nvlink(self, one: str, other: str) -> bool | None:
        """Return True if two GPUs reached each other over NVLink, None if the baseline does not know both."""
        known = {uuid for pair in self.nvlink_pairs for uuid in pair}
        if one not in known or other not in known:
            return None
        return (one, other) in self.nvlink_pairs or (other, one) in self.nvlink_pairs


def load_baseline(path: str | None) -> TriageBaseline:
    """Load a baseline, or an empty one if there is no file. Raises ValueError that names a broken file and its field."""
    if path is None or not Path(path).is_file():
        return TriageBaseline()
    try:
        return TriageBaseline.model_validate_json(Path(path).read_bytes()[:MAX_BASELINE_BYTES])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "baseline"
        raise ValueError(f"{path}: {field}: {first['msg']}; correct it or record a new baseline") from None


def baseline_from(snapshot: Snapshot, known: TriageBaseline | None = None) -> TriageBaseline:
    """Return the known figures, updated with those that a healthy snapshot measured."""
    figures: dict[str, Any] = {}
    deep = snapshot.deep
    if deep is not None and deep.outcome == "ok":
        figures["busbw_gbps"] = deep.busbw_gbps
        figures["p2p_gbps"] = min((pair.gbps for pair in deep.pairs), default=None)
        for name in ("gemm_tflops", "memory_gbps"):
            values = [value for gpu in deep.gpus if (value := getattr(gpu, name)) is not None]
            figures[name] = min(values, default=None)
        figures["host_link_gbps"] = min(
            (rate for gpu in deep.gpus if (rate := gpu.host_link_gbps) is not None), default=None
        )
    if snapshot.completion is not None and snapshot.completion.outcome == "ok":
        figures["completion_ms"] = snapshot.completion.e2e_ms
    if snapshot.engine is not None and len(snapshot.engine.samples) > 1:
        figures["ttft_mean_ms"], _ = snapshot.engine.ttft_mean()
        figures["tokens_per_s"] = snapshot.engine.tokens_per_s_under_queue()
    if snapshot.nvml is not None:
        ends = {
            gpu.uuid: {link.index: link.remote_pci for link in gpu.links if link.remote_pci}
            for gpu in snapshot.nvml.gpus
        }
        figures["remote_ends"] = {uuid: links for uuid, links in ends.items() if links}
        uuids = {gpu.index: gpu.uuid for gpu in snapshot.nvml.gpus}
        figures["nvlink_pairs"] = tuple(
            (uuids[pair.first], uuids[pair.second]) for pair in snapshot.nvml.pairs if pair.nvlink_p2p == 0
        )
    measured = {
        name: value
        for name, value in figures.items()
        if (value if isinstance(value, dict | tuple) else (value or 0) > 0)
    }
    return TriageBaseline.model_validate({**(known or TriageBaseline()).model_dump(), **measured})


def save_baseline(baseline: TriageBaseline, path: Path) -> Path:
    """Write a host's baseline and read it back. Raises OSError, or ValueError if the file differs."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, baseline.model_dump_json(indent=1) + "\n")
    if load_baseline(str(path)) != baseline:
        raise ValueError(f"{path} differs from what was written: check the disk")
    return path
