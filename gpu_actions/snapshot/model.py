"""Everything that triage read at one moment, as one frozen, versioned document that can be saved and judged again.

Times are UTC; two readings are `window_s` apart, and error counters are judged as their difference. What a collector could
not read is absent here and named in `collectors`, so that the judgement can say unknown instead of healthy.
"""

from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from gpu_actions.models import Frozen
from gpu_actions.snapshot.gpu_model import NvmlReading
from gpu_actions.snapshot.host_model import (
    CompletionReading,
    DeepReading,
    EngineReading,
    EnvironmentReading,
    FabricManagerReading,
    KernelLogReading,
    RanksReading,
    RasReading,
    RouterReading,
    StacksReading,
)
from gpu_actions.system.files import write_atomically

SCHEMA_VERSION = 1
MAX_SNAPSHOT_BYTES = 8 * 1024 * 1024
"""A snapshot of 8 GPUs and 8 ranks is about 100 KB; anything near this cap is not one of ours."""

CollectorName = Literal[
    "nvml",
    "fabric_manager",
    "kernel_log",
    "ras",
    "engine",
    "completion",
    "ranks",
    "stacks",
    "environment",
    "router",
    "deep",
]


class CollectorOutcome(Frozen):
    """How one collector fared. `failed`: its checks are unknown; `skipped`: it does not apply here."""

    status: Literal["ok", "failed", "skipped"]
    reason: str = ""
    seconds: float = Field(default=0, ge=0)


class Expectation(Frozen):
    """What the host should have and run, kept with the reading so that a recorded file is judged the same way."""

    gpus: int | None = Field(default=None, ge=0, le=64)
    links: int | None = Field(default=None, ge=0, le=64)
    ranks: int | None = Field(default=None, ge=1, le=64)
    tier: str = "tp"
    tier_expected: bool = True
    other_pids: tuple[int, ...] = ()
    unwanted: tuple[str, ...] = Field(default=(), description="tiers that run although they are frozen")
    router_server: str | None = None
    fallback_memory_gib: float | None = Field(default=None, gt=0)


class Snapshot(Frozen):
    """One look at a host."""

    schema_version: int = SCHEMA_VERSION
    host: str
    taken_at: AwareDatetime
    window_s: float = Field(gt=0, le=3600)
    expected: Expectation = Expectation()
    collectors: dict[CollectorName, CollectorOutcome] = Field(default_factory=dict)
    nvml: NvmlReading | None = None
    fabric_manager: FabricManagerReading | None = None
    kernel_log: KernelLogReading | None = None
    ras: RasReading | None = None
    engine: EngineReading | None = None
    completion: CompletionReading | None = None
    ranks: RanksReading | None = None
    stacks: StacksReading | None = None
    environment: EnvironmentReading | None = None
    router: RouterReading | None = None
    deep: DeepReading | None = None

    @model_validator(mode="after")
    def _data_stands_where_a_collector_was_ok(self) -> Self:
        for name, outcome in self.collectors.items():
            if outcome.status == "ok" and getattr(self, name) is None:
                raise ValueError(f"{name}: the collector says ok but its data is missing")
        return self

    def read(self, name: CollectorName) -> bool:
        """Say whether this collector read what it should; one that is not listed did not."""
        outcome = self.collectors.get(name)
        return outcome is not None and outcome.status == "ok"

    def skipped(self, name: CollectorName) -> bool:
        """Say whether this collector does not apply to this host."""
        outcome = self.collectors.get(name)
        return outcome is not None and outcome.status == "skipped"

    def why_not(self, name: CollectorName) -> str:
        """Why a collector gave nothing; a collector that is not listed was not run."""
        outcome = self.collectors.get(name)
        return "it was not run" if outcome is None else outcome.reason or outcome.status


class SnapshotUnreadable(Exception):
    """A recorded snapshot cannot be used. The message is one line that names the file and the field."""


def save_snapshot(snapshot: Snapshot, path: Path) -> Path:
    """Write a snapshot whole, readable by its owner alone (it holds process ids and paths)."""
    return write_atomically(path, snapshot.model_dump_json(indent=1) + "\n")


def load_snapshot(path: Path) -> Snapshot:
    """Read a recorded snapshot. Raises SnapshotUnreadable for a missing, huge, broken, truncated or newer file."""
    try:
        if not path.is_file():
            raise SnapshotUnreadable(f"{path}: no such file")
        with path.open("rb") as file:
            raw = file.read(MAX_SNAPSHOT_BYTES + 1)
    except OSError as error:
        raise SnapshotUnreadable(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(raw) > MAX_SNAPSHOT_BYTES:
        raise SnapshotUnreadable(
            f"{path}: is larger than {MAX_SNAPSHOT_BYTES // 1024**2} MiB, which no snapshot is"
        )
    return parse_snapshot(raw, name=str(path))


def parse_snapshot(raw: bytes, *, name: str) -> Snapshot:
    """Parse a snapshot's JSON. Raises SnapshotUnreadable with the first bad field; `name` stands for the file."""
    import json

    try:
        document: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        where = (
            f" (truncated at byte {len(raw)}?)" if raw[:1] == b"{" and not raw.rstrip().endswith(b"}") else ""
        )
        raise SnapshotUnreadable(f"{name}: is not JSON: {_one_line(error)}{where}") from None
    if not isinstance(document, dict):
        raise SnapshotUnreadable(f"{name}: holds a {type(document).__name__}, not a snapshot object")
    version = document.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise SnapshotUnreadable(f"{name}: schema_version: is {version!r:.40}, expected {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION or version < 1:
        raise SnapshotUnreadable(
            f"{name}: schema_version: is {version}, this version reads 1 to {SCHEMA_VERSION}; "
            "judge it with the version that recorded it"
        )
    try:
        return Snapshot.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "snapshot"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise SnapshotUnreadable(f"{name}: {field}: {first['msg']}{more}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def utc_text(moment: datetime) -> str:
    """A UTC time for people: `2026-11-23 10:04:05Z`."""
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")
