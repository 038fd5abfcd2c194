"""The words of the product as data: findings, verdicts, artifacts.

Everything that crosses a boundary (a process, a database row, a file, a message) is one of these frozen pydantic
models. Units stand in the field names (`size_bytes`, `ttft_p99_ms`).
"""

from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

JsonObject = dict[str, Any]
"""A JSON object as Python data; what step arguments, step outputs and evidence are made of."""


class Frozen(BaseModel):
    """Base of all data that crosses a boundary: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Severity(StrEnum):
    """How bad one judged check is. `unknown` means the evidence is missing; it is never read as healthy."""

    OK = "ok"
    INFO = "info"
    WATCH = "watch"
    UNKNOWN = "unknown"
    CRITICAL = "critical"


class VerdictKind(StrEnum):
    """What triage concludes. The shell exit codes are `TRIAGE_EXIT_CODES`."""

    HEALTHY = "healthy"
    WATCH = "watch"
    FALL_BACK = "fall_back"
    UNKNOWN = "unknown"


TRIAGE_EXIT_CODES: dict[VerdictKind, int] = {
    VerdictKind.HEALTHY: 0,
    VerdictKind.WATCH: 1,
    VerdictKind.FALL_BACK: 3,
    VerdictKind.UNKNOWN: 4,
}


class Finding(Frozen):
    """One judged check.

    `id` is stable (`collective.hang`), `component` groups findings on the card (`gpu`, `nvlink`, `fabric`, `pcie`,
    `collective`, `serving`, `router`, `kernel_log`), `summary` is one line for a phone, `evidence` the figures behind it,
    `action` what to do about it.
    """

    id: str
    component: str
    severity: Severity
    summary: str
    evidence: JsonObject = Field(default_factory=dict)
    action: str = ""
    subject: str | None = Field(
        default=None, description="the GPU UUID, link, rank or tier that this is about"
    )


class FallbackGpu(Frozen):
    """The GPU that triage would serve from: chosen by health, named by UUID, with the reason for the choice."""

    uuid: str
    index: int
    reason: str


class Verdict(Frozen):
    """What triage says of a host: one kind, one cause (`none` when healthy), and every finding behind it."""

    verdict: VerdictKind
    cause: str
    summary: str
    findings: tuple[Finding, ...] = ()
    fallback_gpu: FallbackGpu | None = None
    action: str = ""


class Artifact(Frozen):
    """A file that a step made. `path` is on the host; the artifact store gives it a link later."""

    name: str
    path: Path
    size_bytes: int
    sha256: str
    media_type: str = "application/octet-stream"
    source: str = Field(description="the command or collector that made it")
    title: str = ""
    inline: bool = Field(default=False, description="worth showing in the thread itself (a picture)")
