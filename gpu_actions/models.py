"""The shared data models: findings, verdicts, artifacts.

Everything that crosses a boundary (a process, a database row, a file, a message) is a frozen pydantic model. Field names
include their units (`size_bytes`, `ttft_p99_ms`).
"""

from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

JsonObject = dict[str, Any]
"""A JSON object as Python data: step arguments, step outputs, evidence."""


class Frozen(BaseModel):
    """The base of all data that crosses a boundary: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Severity(StrEnum):
    """The severity of a finding. `unknown` means that evidence is missing; it never counts as healthy."""

    OK = "ok"
    INFO = "info"
    WATCH = "watch"
    UNKNOWN = "unknown"
    CRITICAL = "critical"


class VerdictKind(StrEnum):
    """The conclusion of triage. Its shell exit codes are `TRIAGE_EXIT_CODES`."""

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
    """The result of one check.

    `id` is stable (`collective.hang`). `component` groups findings on the card (`gpu`, `nvlink`, `fabric`, `pcie`,
    `collective`, `serving`, `router`, `kernel_log`). `summary` is one line for a phone, `evidence` has the figures behind
    it, and `action` says what to do.
    """

    id: str
    component: str
    severity: Severity
    summary: str
    evidence: JsonObject = Field(default_factory=dict)
    action: str = ""
    subject: str | None = Field(default=None, description="the GPU UUID, link, rank or tier concerned")


class FallbackGpu(Frozen):
    """The GPU that a fallback should use, chosen by health, with the reason for the choice."""

    uuid: str
    index: int
    reason: str


class GpuHealth(Frozen):
    """What a triage says of one GPU for a fallback: why it cannot serve (empty if it can), how many findings count against
    it, and which other GPUs it reaches over NVLink, by index."""

    uuid: str
    index: int
    ruled_out: str = ""
    findings: int = 0
    reaches: tuple[int, ...] = ()


class Verdict(Frozen):
    """The verdict of triage on a host: one kind, one cause (`none` if healthy), and all findings behind it.

    `causes` are those of all findings that are not healthy, `unread` the components with missing evidence that counts.
    """

    verdict: VerdictKind
    cause: str
    summary: str
    findings: tuple[Finding, ...] = ()
    fallback_gpu: FallbackGpu | None = None
    action: str = ""
    causes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    gpus: tuple[GpuHealth, ...] = Field(default=(), description="for a fallback; empty in old verdicts")


class Artifact(Frozen):
    """A file that a step wrote. `path` is on the host; the artifact store adds a link later."""

    name: str
    path: Path
    size_bytes: int
    sha256: str
    media_type: str = "application/octet-stream"
    source: str = Field(description="the command or collector that wrote it")
    title: str = ""
    inline: bool = Field(default=False, description="to be shown in the thread itself (a picture)")
