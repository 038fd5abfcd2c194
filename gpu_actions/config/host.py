"""The description of a serving host as data: its tiers, their engines and units, the router, and the policies of each action.

`bot/settings/model.py` reads these from the settings file; `gpu_actions` alone uses them too. The figures of the policies are
the runbook's (fallback playbook: batch 16, queue 5 s, long contexts in windows of 4 s, memory under 80 %).
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from gpu_actions.models import Frozen

TierName = Literal["tp", "fallback"]
EngineKind = Literal["reference", "vllm", "sglang", "openai"]


def _check_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://, for example http://127.0.0.1:8101")
    return value.rstrip("/")


class EngineConfig(Frozen):
    """How to talk to the server of one tier."""

    kind: EngineKind = "openai"
    url: str = Field(description="base URL of the engine itself, not of the router")
    model: str = Field(description="model name that requests must ask for")
    api_key: SecretStr | None = None
    ready_timeout_s: float = Field(default=1200, gt=0, description="from launch to the first generated token")
    warmup_requests: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="completions that prime a tier before it gets traffic, 16 at once",
    )
    request_timeout_s: float = Field(default=30, gt=0)

    _url = field_validator("url")(_check_url)


class ProcessUnit(Frozen):
    """A supervised process in a session of its own. `argv` may use {python} for the bot's own interpreter."""

    driver: Literal["process"] = "process"
    argv: tuple[str, ...] = Field(min_length=1)
    env: dict[str, str] = Field(
        default_factory=dict, description="its whole environment beside PATH, HOME, LANG"
    )
    env_from: tuple[str, ...] = Field(default=(), description="names taken from the bot's own environment")
    cwd: Path | None = None
    stop_grace_s: float = Field(default=30, ge=0)
    restart: bool = Field(default=True, description="start it again when it dies by itself and is not frozen")


class SystemdUnit(Frozen):
    """A systemd unit of the system (or of the user) manager."""

    driver: Literal["systemd"] = "systemd"
    name: str = Field(pattern=r"^[A-Za-z0-9:_.@\\-]+\.service$", description="unit name, ending in .service")
    user: bool = False
    stop_grace_s: float = Field(default=90, ge=0)


class CommandsUnit(Frozen):
    """Anything else: fixed commands from the settings, never a shell string, never text from Slack."""

    driver: Literal["commands"] = "commands"
    start: tuple[str, ...] = Field(min_length=1)
    stop: tuple[str, ...] = Field(min_length=1)
    is_active: tuple[str, ...] = Field(min_length=1, description="exit code 0 = active")
    freeze: tuple[str, ...] = ()
    unfreeze: tuple[str, ...] = ()
    set_environment: tuple[str, ...] = Field(
        default=(), description="gets the path of an env file as last argument"
    )
    main_pid: tuple[str, ...] = Field(default=(), description="prints the main process id")
    log: tuple[str, ...] = ()
    stop_grace_s: float = Field(default=90, ge=0)
    env: dict[str, str] = Field(default_factory=dict)


UnitConfig = Annotated[ProcessUnit | SystemdUnit | CommandsUnit, Field(discriminator="driver")]


class TierConfig(Frozen):
    """A serving pool of the host. `gpus` is how many GPUs it takes (0: it runs on the CPU)."""

    engine: EngineConfig
    unit: UnitConfig
    server: str = Field(
        description="name of its server line in the router's backend", pattern=r"^[A-Za-z0-9_.:-]+$"
    )
    gpus: int = Field(default=0, ge=0, le=64)
    ranks: int = Field(default=1, ge=1, le=64, description="processes that take part in its collectives")
    weight: int = Field(
        default=100, ge=1, le=256, description="its router weight when it takes all the traffic"
    )
    memory_gib_per_gpu: float | None = Field(default=None, gt=0, description="what it needs on each GPU")


class BackPressure(Frozen):
    """Limits of the single-GPU tier. Source: the fallback playbook, and the HAProxy measurements in serving.md."""

    max_concurrent: int = Field(default=16, ge=1, le=256, description="requests on the tier at once")
    long_share: int = Field(default=4, ge=0, description="of these, kept for long contexts")
    queue_timeout_s: float = Field(default=5, gt=0, le=600)
    max_queue: int = Field(default=32, ge=1, le=10_000, description="waiting requests; more are answered 429")
    long_body_bytes: int = Field(
        default=8192, ge=256, description="a request body from this size is a long context"
    )
    long_window_s: float = Field(
        default=4, ge=0, le=60, description="long contexts start together at these steps"
    )
    retry_after_s: int = Field(default=5, ge=1, le=600)

    @model_validator(mode="after")
    def _share_fits(self) -> Self:
        if self.long_share >= self.max_concurrent:
            raise ValueError(
                f"long_share ({self.long_share}) must be less than max_concurrent ({self.max_concurrent})"
            )
        return self


class RouterConfig(Frozen):
    """HAProxy in front of the tiers. `managed`: our own instance, configured and started by us; else an existing one."""

    managed: bool = True
    url: str = Field(default="http://127.0.0.1:8000", description="where clients send their requests")
    socket: Path | None = Field(
        default=None, description="admin socket; a managed router has it in the state folder"
    )
    backend: str = "serve"
    long_backend: str = "serve_long"
    binary: str = "haproxy"
    client_timeout_s: float = Field(default=600, gt=0)
    back_pressure: BackPressure = BackPressure()

    _url = field_validator("url")(_check_url)

    @model_validator(mode="after")
    def _socket_is_known(self) -> Self:
        if not self.managed and self.socket is None:
            raise ValueError(
                "an existing router (managed = false) needs the path of its admin socket: set socket"
            )
        return self


class LoadPolicy(Frozen):
    """One load test's shape. Defaults are the runbook's validation: 20 s at 3 QPS, 4 new tokens, prompts 32-64."""

    duration_s: float = Field(default=20, gt=0, le=86_400)
    target_qps: float = Field(default=3, gt=0, le=100_000)
    max_new_tokens: int = Field(default=4, ge=1, le=100_000)
    prompt_len_min: int = Field(default=32, ge=1)
    prompt_len_max: int = Field(default=64, ge=1)
    slo_ttft_ms: float = Field(default=2500, gt=0)
    slo_e2e_ms: float = Field(default=10_000, gt=0)
    max_error_percent: float = Field(default=1.0, ge=0, le=100)

    @model_validator(mode="after")
    def _range_is_a_range(self) -> Self:
        if self.prompt_len_min > self.prompt_len_max:
            raise ValueError(
                f"prompt_len_min ({self.prompt_len_min}) must not be above prompt_len_max ({self.prompt_len_max})"
            )
        return self


class FallbackPolicy(Frozen):
    """How the fallback behaves."""

    capture_budget_s: float = Field(default=10, gt=0, le=120)
    drain_timeout_s: float = Field(default=30, gt=0, le=3600)
    drain_stall_s: float = Field(
        default=3, gt=0, description="a flat token counter this long means it never drains"
    )
    memory_limit_percent: float = Field(default=80, gt=0, le=100)
    min_free_disk_gib: float = Field(default=1, ge=0)
    validate_load: LoadPolicy = LoadPolicy()


class RestorePolicy(Frozen):
    """How the full tier comes back."""

    stages_percent: tuple[int, ...] = (5, 25, 50, 100)
    hold_s: float = Field(default=60, gt=0, le=86_400)
    inconclusive_wait_s: float = Field(default=1800, gt=0)
    max_error_percent: float = Field(default=1.0, ge=0, le=100)
    max_ttft_p99_ms: float = Field(default=5000, gt=0)
    max_e2e_p99_ms: float = Field(default=30_000, gt=0)
    max_queue: int = Field(default=32, ge=0)
    min_requests_per_stage: int = Field(default=10, ge=0, description="fewer than this is inconclusive")
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


class TracePolicy(Frozen):
    """Limits of a trace of the live engine."""

    duration_s: float = Field(default=3, gt=0, le=60)
    max_iterations: int = Field(default=200, ge=1, le=10_000)
    max_trace_mib: int = Field(default=64, ge=1, le=1024)
    top_kernels: int = Field(default=10, ge=1, le=50)


class HostConfig(Frozen):
    """A serving host: what it should have, its tiers and its router."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="short name used in commands")
    description: str = ""
    gpus: int | None = Field(
        default=None, ge=0, le=64, description="expected GPUs; 0 = a CPU host, None = as found"
    )
    nvlinks: int | None = Field(
        default=None, ge=0, le=64, description="expected NVLinks a GPU; None = by model"
    )
    ras_address: str | None = Field(
        default="127.0.0.1:28028", description="NCCL RAS host:port; None = do not ask"
    )
    kernel_log: Path | None = Field(
        default=None, description="a file to read instead of the kernel's own log"
    )
    tiers: dict[TierName, TierConfig]
    router: RouterConfig = RouterConfig()
    fallback: FallbackPolicy = FallbackPolicy()
    restore: RestorePolicy = RestorePolicy()
    load: LoadPolicy = LoadPolicy()
    trace: TracePolicy = TracePolicy()

    @field_validator("tiers")
    @classmethod
    def _both_tiers(cls, value: dict[TierName, TierConfig]) -> dict[TierName, TierConfig]:
        missing = [name for name in ("tp", "fallback") if name not in value]
        if missing:
            raise ValueError(
                f"the tier {missing[0]!r} is missing: a host needs [tiers.tp] and [tiers.fallback]"
            )
        if value["tp"].server == value["fallback"].server:
            raise ValueError("tiers.tp.server and tiers.fallback.server must differ")
        return value
