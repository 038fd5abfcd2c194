"""How each action behaves on a host. The figures are the runbook's: memory under 80 %, 20 s of load at 3 requests/s."""

from pathlib import Path
from typing import Any, Literal, Protocol, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from gpu_actions.models import Frozen


def split_token_range(fields: Any) -> Any:
    """Read `max_new_tokens = "16-64"` as min_new_tokens = 16 and max_new_tokens = 64, before validation."""
    value = fields.get("max_new_tokens") if isinstance(fields, dict) else None
    if not isinstance(value, str) or "-" not in value[1:]:
        return fields
    low, _, high = value.partition("-")
    return {**fields, "min_new_tokens": low, "max_new_tokens": high}


def ranges_of_lengths(fields: Any) -> Any:
    """Set the ranges to the shortest and the longest of the lengths that are listed, before validation."""
    if not isinstance(fields, dict):
        return fields
    ranges: dict[str, int] = {}
    if prompts := fields.get("prompt_lengths"):
        ranges.update(prompt_len_min=min(prompts), prompt_len_max=max(prompts))
    if answers := fields.get("answer_lengths"):
        ranges.update(min_new_tokens=min(answers), max_new_tokens=max(answers))
    return {**fields, **ranges}


def token_range(low: int | None, high: int) -> str:
    """Return `4`, or `16-64` for a range."""
    return f"{high}" if low is None or low == high else f"{low}-{high}"


class LatencyLimits(Protocol):
    """The limits of latencies, of a policy, a load test or its result."""

    @property
    def slo_ttft_ms(self) -> float: ...
    @property
    def slo_e2e_ms(self) -> float: ...
    @property
    def slo_itl_ms(self) -> float | None: ...
    @property
    def slo_e2e_per_token_ms(self) -> float | None: ...


def limits_text(limits: LatencyLimits) -> str:
    """Return the limits of the p99s that are judged: `TTFT p99 2500 ms, E2E p99 10000 ms`."""
    per_token = limits.slo_e2e_per_token_ms
    e2e = f"p99 {limits.slo_e2e_ms:g} ms" if per_token is None else f"per token p99 {per_token:g} ms"
    itl = "" if limits.slo_itl_ms is None else f", ITL p99 {limits.slo_itl_ms:g} ms"
    return f"TTFT p99 {limits.slo_ttft_ms:g} ms, E2E {e2e}{itl}"


class LoadPolicy(Frozen):
    """The shape of a load test. The defaults are the runbook's validation: 20 s at 3 QPS, 4 new tokens, prompts 32-64."""

    duration_s: float = Field(default=20, gt=0, le=86_400, description="measured part, without the warm-up")
    target_qps: float = Field(
        default=3, gt=0, le=100_000, description="requests a second offered (ramp: reached at the end)"
    )
    max_new_tokens: int = Field(
        default=4, ge=1, le=100_000, description='exact number of tokens asked for; "16-64" is a range'
    )
    min_new_tokens: int | None = Field(
        default=None, ge=1, le=100_000, description="shortest answer of the range; default: max_new_tokens"
    )
    prompt_len_min: int = Field(default=32, ge=1, le=1_000_000, description="shortest prompt, in tokens")
    prompt_len_max: int = Field(default=64, ge=1, le=1_000_000, description="longest prompt, in tokens")
    prompt_lengths: tuple[PositiveInt, ...] = Field(
        default=(), max_length=100, description="lengths drawn equally often, instead of the range"
    )
    answer_lengths: tuple[PositiveInt, ...] = Field(
        default=(), max_length=100, description="new tokens drawn equally often, instead of max_new_tokens"
    )
    slo_ttft_ms: float = Field(
        default=2500, gt=0, description="p99 limit, and a good request's limit, from the due time"
    )
    slo_e2e_ms: float = Field(
        default=10_000, gt=0, description="p99 limit, and a good request's limit, from the due time"
    )
    slo_itl_ms: float | None = Field(
        default=None, gt=0, description="p99 limit of the time between two tokens; default: not judged"
    )
    slo_e2e_per_token_ms: float | None = Field(
        default=None,
        gt=0,
        description="p99 limit of E2E divided by the tokens of the answer, in place of slo_e2e_ms: fits mixed lengths",
    )
    max_error_percent: float = Field(
        default=1.0, ge=0, le=100, description="more failed requests than this fail the run"
    )
    timeout_s: float = Field(default=60, gt=0, le=3600, description="a request's deadline, from its due time")

    @model_validator(mode="before")
    @classmethod
    def _ranges(cls, fields: Any) -> Any:
        return ranges_of_lengths(split_token_range(fields))

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for low, high, fix in (
            ("min_new_tokens", "max_new_tokens", "write the range as 16-64"),
            ("prompt_len_min", "prompt_len_max", "swap them, or raise prompt_len_max"),
        ):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and least > most:
                raise ValueError(f"{low} = {least}: is above {high} = {most}; {fix}")
        return self


BUILT_IN_PROFILES = {
    "quick": LoadPolicy(duration_s=10),
    "fallback": LoadPolicy(),
    "tp": LoadPolicy(target_qps=180, duration_s=900),
}
"""The runbook's validation of the fallback, its test of the full tier (180 requests/s for 900 s), and a short one."""
DEFAULT_MAX_QPS = 500.0
DEFAULT_MAX_DURATION_S = 3600.0
DEFAULT_MIRROR_SHARE_PERCENT = 5.0
DEFAULT_MIRROR_DURATION_S = 30.0


class LoadTestSettings(Frozen):
    """Named load tests, and what a load test may ask for. A host's own values win over those for all hosts."""

    max_qps: float | None = Field(
        default=None, gt=0, description=f"highest rate that may be asked for; default {DEFAULT_MAX_QPS:g}"
    )
    max_duration_s: float | None = Field(
        default=None,
        gt=0,
        description=f"longest test that may be asked for; default {DEFAULT_MAX_DURATION_S:g}",
    )
    mirror_share_percent: float | None = Field(
        default=None,
        gt=0,
        le=50,
        description=f"rate of the mirrored load, of the tier's capacity; default {DEFAULT_MIRROR_SHARE_PERCENT:g}",
    )
    mirror_duration_s: float | None = Field(
        default=None,
        ge=5,
        le=600,
        description=f"seconds of one mirrored load; default {DEFAULT_MIRROR_DURATION_S:g}",
    )
    profiles: dict[str, LoadPolicy] = Field(
        default_factory=dict,
        description=f"by name; {', '.join(BUILT_IN_PROFILES)} are built in and may be replaced",
    )

    def over(self, common: "LoadTestSettings") -> "LoadTestSettings":
        """Return a host's settings, completed by the settings for all hosts."""
        return LoadTestSettings(
            max_qps=self.max_qps or common.max_qps,
            max_duration_s=self.max_duration_s or common.max_duration_s,
            mirror_share_percent=self.mirror_share_percent or common.mirror_share_percent,
            mirror_duration_s=self.mirror_duration_s or common.mirror_duration_s,
            profiles={**common.profiles, **self.profiles},
        )

    def profile(self, name: str) -> LoadPolicy:
        """Return a profile by name. Raises ValueError with the known names."""
        known = {**BUILT_IN_PROFILES, **self.profiles}
        if name not in known:
            raise ValueError(f"profile = {name}: is not known; known: {', '.join(known)}")
        return known[name]

    @property
    def qps_cap(self) -> float:
        return self.max_qps or DEFAULT_MAX_QPS

    @property
    def mirror_share(self) -> float:
        """Return the rate of the mirrored load as a share of the capacity, 0..1."""
        return (self.mirror_share_percent or DEFAULT_MIRROR_SHARE_PERCENT) / 100

    @property
    def mirror_s(self) -> float:
        return min(self.mirror_duration_s or DEFAULT_MIRROR_DURATION_S, self.duration_cap_s)

    @property
    def duration_cap_s(self) -> float:
        return self.max_duration_s or DEFAULT_MAX_DURATION_S


class FallbackPolicy(Frozen):
    """Limits of a fallback."""

    capture_budget_s: float = Field(default=10, gt=0, le=120)
    drain_timeout_s: float = Field(default=30, gt=0, le=3600)
    drain_stall_s: float = Field(
        default=3,
        gt=0,
        description="seconds without a generated token after which a tier that holds requests counts as hung",
    )
    memory_limit_percent: float = Field(default=80, gt=0, le=100)
    min_free_disk_gib: float = Field(default=1, ge=0)
    wake_timeout_s: float = Field(
        default=20,
        gt=0,
        le=600,
        description="a standby that has not woken by then is replaced by a cold start",
    )
    validate_load: LoadPolicy = LoadPolicy()


class RestorePolicy(Frozen):
    """Stages and limits of a restore."""

    stages_percent: tuple[int, ...] = (5, 25, 50, 100)
    hold_s: float = Field(default=60, gt=0, le=86_400)
    inconclusive_wait_s: float = Field(default=1800, gt=0)
    max_error_percent: float = Field(default=0.5, ge=0, le=100)
    max_ttft_p99_ms: float = Field(default=5000, gt=0)
    max_e2e_p99_ms: float = Field(default=30_000, gt=0)
    max_queue: int = Field(default=32, ge=0)
    min_requests_per_stage: int = Field(
        default=200,
        ge=0,
        description="fewer is inconclusive; a tier with 5 % errors is recognised by its 200th request",
    )
    max_probes_per_s: float = Field(
        default=5,
        ge=0,
        le=100,
        description="the bot's own requests to tp where a stage has too few; 0 = none",
    )
    load_workload: Literal["settings", "recent"] = Field(
        default="settings",
        description="recent: the load test before traffic has the rate and lengths of the last 10 minutes, if they are known",
    )
    keep_fallback_warm_s: float = Field(default=600, ge=0)
    drain_timeout_s: float = Field(default=60, gt=0)
    deep_triage: bool = True
    load: LoadPolicy = LoadPolicy(duration_s=60)

    @field_validator("stages_percent")
    @classmethod
    def _stages_rise_to_100(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or value[-1] != 100 or list(value) != sorted(set(value)) or value[0] < 1:
            raise ValueError("stages must rise and end with 100, for example [5, 25, 50, 100]")
        return value


class DrillPolicy(Frozen):
    """When a drill may run on this host, and how long its phases may take. A slower one is an alert."""

    max_detect_s: float = Field(default=60, gt=0, description="from the fault to the verdict")
    max_fallback_s: float = Field(default=120, gt=0, description="from the plan to a validated fallback")
    max_restore_s: float = Field(default=180, gt=0, description="from the plan to the end of the restore")
    max_slower_percent: float = Field(
        default=50, gt=0, description="above the median of the last five drills of the same fault"
    )
    max_load_per_core: float = Field(
        default=0.8, gt=0, description="CPU load average per core above which a drill is refused"
    )
    min_free_memory_gib: float = Field(default=2, ge=0, description="a drill uses about 1 GiB")


class TracePolicy(Frozen):
    """Limits of a trace of the live engine."""

    folder: Path | None = Field(
        default=None,
        description="the only folder that trace files are taken from; None = as the engine's process was started",
    )
    in_plans: bool = Field(
        default=True,
        description="also trace in a fallback and a restore, after their load test; a host without a profiler says so",
    )
    duration_s: float = Field(default=3, gt=0, le=60)
    max_iterations: int = Field(default=200, ge=1, le=10_000)
    max_trace_mib: int = Field(default=64, ge=1, le=1024)
    top_kernels: int = Field(default=10, ge=1, le=50)
