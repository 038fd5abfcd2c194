"""What this host measured on a known-good day; triage compares with it where it exists.

The figures come from `loadtest baseline` and from a deep probe; without them checks use the floors of `thresholds` and
`deep.floors`, or say that they cannot judge.
"""

from pathlib import Path

from pydantic import Field, ValidationError

from gpu_actions.models import Frozen

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
