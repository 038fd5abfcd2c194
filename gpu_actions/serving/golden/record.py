"""The file of golden prompts: one for each tier of a host, beside its baselines.

Its version rises only when an older reader would misjudge it, so unknown fields are ignored.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from gpu_actions.serving.interfaces import ScoredTokens
from gpu_actions.system.files import write_atomically

GOLDEN_VERSION = 1
MAX_GOLDEN_BYTES = 4 * 1024 * 1024

LIMIT_NATS = 0.2
"""How far the log-probability of a forced token may move, on top of the engine's own recorded spread. In bfloat16 on an H200
they moved by at most 0.063 between batch sizes (docs/serving.md)."""

Nats = Annotated[FiniteFloat, Field(ge=0)]


class GoldenUnreadable(ValueError):
    """Raised if a recorded file cannot be used. The message names the file, the problem and what to do."""


class _Tolerant(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class GoldenPrompt(_Tolerant):
    """A prompt and its answer on an idle engine. `forced_logprobs` scores the same tokens as part of the prompt."""

    prompt: str = Field(min_length=1)
    texts: tuple[str, ...] = Field(min_length=1)
    logprobs: tuple[FiniteFloat, ...]
    forced_logprobs: tuple[FiniteFloat, ...]
    token_ids: tuple[int, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()

    @property
    def tokens(self) -> ScoredTokens:
        return ScoredTokens(
            texts=self.texts,
            logprobs=self.logprobs,
            token_ids=self.token_ids,
            prompt_token_ids=self.prompt_token_ids,
        )

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        count = len(self.texts)
        if len(self.logprobs) != count or len(self.forced_logprobs) != count:
            raise ValueError(f"{count} tokens need as many logprobs and forced_logprobs")
        if self.token_ids and len(self.token_ids) != count:
            raise ValueError(f"{count} tokens, but {len(self.token_ids)} token_ids")
        return self


class GoldenRecord(_Tolerant):
    """Golden prompts of one tier, and how far its own answers moved while they were recorded."""

    golden_version: int = GOLDEN_VERSION
    host: str
    tier: str
    engine_kind: str
    engine_version: str = ""
    model: str
    recorded_at: AwareDatetime
    repeats: int = Field(ge=1, description="times that each prompt was answered at batch 1")
    concurrency: int = Field(ge=0, description="concurrent completions while the prompts were scored again")
    exact: bool = Field(description="the tier was idle, and every repeat generated the same tokens")
    idle_spread_nats: Nats
    load_spread_nats: Nats
    prompts: tuple[GoldenPrompt, ...] = Field(min_length=1)

    def limit_nats(self, *, idle: bool) -> float:
        """Return how far a forced token's log-probability may move, on an idle tier or on one with traffic."""
        spread = self.idle_spread_nats if idle else max(self.idle_spread_nats, self.load_spread_nats)
        return LIMIT_NATS + spread


def golden_path(baselines_dir: Path, *, host: str, tier: str) -> Path:
    """Return where the golden prompts of a tier are kept."""
    return baselines_dir / f"golden-{host}-{tier}.json"


def save_golden(record: GoldenRecord, path: Path) -> Path:
    """Write a record atomically, readable by its owner only, and read it back. Raises OSError or GoldenUnreadable."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, record.model_dump_json(indent=1) + "\n")
    if load_golden(path) != record:
        raise GoldenUnreadable(f"{path} differs from what was written: check the disk")
    return path


def load_golden(path: Path) -> GoldenRecord | None:
    """Read a record, or return None if there is none. Raises GoldenUnreadable if it is broken, too large or newer."""
    advice = "record it again with gpu-oncall golden record"
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_GOLDEN_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GoldenUnreadable(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(raw) > MAX_GOLDEN_BYTES:
        raise GoldenUnreadable(f"{path}: is larger than {MAX_GOLDEN_BYTES // 1024**2} MiB; {advice}")
    try:
        document: Any = json.loads(raw)
    except (ValueError, RecursionError):
        raise GoldenUnreadable(f"{path}: is not JSON; {advice}") from None
    version = document.get("golden_version") if isinstance(document, dict) else None
    if type(version) is not int or version < 1:
        raise GoldenUnreadable(f"{path}: is not a file of golden prompts; {advice}")
    if version > GOLDEN_VERSION:
        raise GoldenUnreadable(
            f"{path}: golden_version is {version}, this version reads up to {GOLDEN_VERSION}: update gpu-oncall, or {advice}"
        )
    try:
        return GoldenRecord.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "record"
        raise GoldenUnreadable(f"{path}: {field}: {first['msg']}; {advice}") from None
