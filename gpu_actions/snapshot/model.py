"""The snapshot: everything that triage read at one moment, as a versioned document that can be saved and judged again.

Its fields are the registry of collectors: one line each, with the reading and the collector from one file of `collectors/`. A
reading that is None is explained in `collectors`, so that the judgement can say unknown instead of healthy.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from gpu_actions.models import Frozen
from gpu_actions.snapshot.collector import Collector
from gpu_actions.snapshot.collectors.activity import ACTIVITY, ActivityReading
from gpu_actions.snapshot.collectors.completion import COMPLETION, CompletionReading
from gpu_actions.snapshot.collectors.deep import DEEP, DeepReading
from gpu_actions.snapshot.collectors.engine import ENGINE, EngineReading
from gpu_actions.snapshot.collectors.environment import ENVIRONMENT, EnvironmentReading
from gpu_actions.snapshot.collectors.fabric_manager import FABRIC_MANAGER, FabricManagerReading
from gpu_actions.snapshot.collectors.flight_recorder import FLIGHT_RECORDER, FlightReading
from gpu_actions.snapshot.collectors.golden import GOLDEN, GoldenCheckReading
from gpu_actions.snapshot.collectors.kernel_log import KERNEL_LOG, KernelLogReading
from gpu_actions.snapshot.collectors.nvml import NVML, NvmlReading
from gpu_actions.snapshot.collectors.ranks import RANKS, RanksReading
from gpu_actions.snapshot.collectors.ras import RAS, RasReading
from gpu_actions.snapshot.collectors.router import ROUTER, RouterReading
from gpu_actions.snapshot.collectors.stacks import STACKS, StacksReading
from gpu_actions.snapshot.target import Expectation
from gpu_actions.system.files import write_atomically
from gpu_actions.system.redact import redacted_json

SCHEMA_VERSION = 1
MAX_SNAPSHOT_BYTES = 8 * 1024 * 1024
"""A snapshot of 8 GPUs and 8 ranks takes about 100 KB."""


class CollectorOutcome(Frozen):
    """Outcome of one collector. `failed`: its checks are unknown; `skipped`: it does not apply here."""

    status: Literal["ok", "failed", "skipped"]
    reason: str = ""
    seconds: float = Field(default=0, ge=0)


class Snapshot(Frozen):
    """All readings of a host. Times are UTC; counters are read twice, `window_s` apart, and judged by their growth."""

    schema_version: int = SCHEMA_VERSION
    host: str
    taken_at: AwareDatetime
    window_s: float = Field(gt=0, le=3600)
    expected: Expectation = Expectation()
    collectors: dict[str, CollectorOutcome] = Field(default_factory=dict)
    nvml: Annotated[NvmlReading | None, NVML] = None
    fabric_manager: Annotated[FabricManagerReading | None, FABRIC_MANAGER] = None
    kernel_log: Annotated[KernelLogReading | None, KERNEL_LOG] = None
    ras: Annotated[RasReading | None, RAS] = None
    engine: Annotated[EngineReading | None, ENGINE] = None
    completion: Annotated[CompletionReading | None, COMPLETION] = None
    golden: Annotated[GoldenCheckReading | None, GOLDEN] = None
    ranks: Annotated[RanksReading | None, RANKS] = None
    activity: Annotated[ActivityReading | None, ACTIVITY] = None
    stacks: Annotated[StacksReading | None, STACKS] = None
    flight_recorder: Annotated[FlightReading | None, FLIGHT_RECORDER] = None
    environment: Annotated[EnvironmentReading | None, ENVIRONMENT] = None
    router: Annotated[RouterReading | None, ROUTER] = None
    deep: Annotated[DeepReading | None, DEEP] = None

    @model_validator(mode="after")
    def _outcomes_match_readings(self) -> Self:
        for name, outcome in self.collectors.items():
            if name not in COLLECTORS:
                raise ValueError(f"collectors.{name}: there is no such collector")
            if outcome.status == "ok" and getattr(self, name) is None:
                raise ValueError(f"{name}: the collector says ok but its data is missing")
        return self

    def skipped(self, name: str) -> bool:
        """Return True if this collector does not apply to this host."""
        outcome = self.collectors.get(name)
        return outcome is not None and outcome.status == "skipped"

    def failed(self, name: str) -> bool:
        """Return True if this collector ran and could not read its source."""
        outcome = self.collectors.get(name)
        return outcome is not None and outcome.status == "failed"

    def why_not(self, name: str) -> str:
        """Return why a collector has no reading."""
        outcome = self.collectors.get(name)
        return "it was not run" if outcome is None else outcome.reason or outcome.status


COLLECTORS: dict[str, Collector] = {
    name: item
    for name, field in Snapshot.model_fields.items()
    for item in field.metadata
    if isinstance(item, Collector)
}
"""All collectors, by the name of their field in the snapshot."""


class SnapshotUnreadable(Exception):
    """Raised if a recorded snapshot cannot be used. The message is one line that names the file and the field."""


def save_snapshot(snapshot: Snapshot, path: Path) -> Path:
    """Write a snapshot atomically, readable by its owner only (it contains process ids and paths)."""
    return write_atomically(path, snapshot_json(snapshot) + "\n")


def snapshot_json(snapshot: Snapshot) -> str:
    """Return a snapshot as JSON without secrets."""
    return redacted_json(snapshot.model_dump_json())


def load_snapshot(path: Path) -> Snapshot:
    """Read a recorded snapshot. Raises SnapshotUnreadable if it is missing, too large, broken, truncated or newer."""
    try:
        if not path.is_file():
            raise SnapshotUnreadable(f"{path}: no such file")
        with path.open("rb") as file:
            raw = file.read(MAX_SNAPSHOT_BYTES + 1)
    except OSError as error:
        raise SnapshotUnreadable(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(raw) > MAX_SNAPSHOT_BYTES:
        raise SnapshotUnreadable(
            f"{path}: is larger than {MAX_SNAPSHOT_BYTES // 1024**2} MiB, too large for a snapshot"
        )
    return parse_snapshot(raw, name=str(path))


def parse_snapshot(raw: bytes, *, name: str) -> Snapshot:
    """Parse a snapshot's JSON. Raises SnapshotUnreadable with `name` (the file) and the first bad field."""
    try:
        document: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        where = (
            f" (truncated at byte {len(raw)}?)" if raw[:1] == b"{" and not raw.rstrip().endswith(b"}") else ""
        )
        reason = " ".join(str(error).split())[:200]
        raise SnapshotUnreadable(f"{name}: is not JSON: {reason}{where}") from None
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


def utc_text(moment: datetime) -> str:
    """Format a UTC time for people: `2026-11-23 10:04:05Z`."""
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")
