"""What triage looks at: one host and the tier that should be serving there.

The bot builds a target from the settings, the shell from its flags; `target_of_host` does the former.
"""

from datetime import datetime
from pathlib import Path

from pydantic import Field, SecretStr

from gpu_actions.models import Frozen


class TriageTarget(Frozen):
    """Where to look. What is None is not looked at, and its checks are skipped: they do not apply here."""

    host: str = "localhost"
    tier: str = Field(default="tp", description="tier that the engine flags name; only `tp` can fall back")
    tier_expected: bool = Field(
        default=True, description="the tier is meant to be running now; False after a fallback stopped it"
    )
    expect_gpus: int | None = Field(default=None, ge=0, le=64, description="0 = a CPU host, None = as found")
    expect_links: int | None = Field(default=None, ge=0, le=64, description="NVLinks a GPU, None = by model")
    engine_url: str | None = None
    model: str | None = Field(
        default=None, description="model that the synthetic completion asks for, None = the first listed"
    )
    api_key: SecretStr | None = Field(default=None, exclude=True)
    completion: bool = Field(default=True, description="send one synthetic completion to the engine")
    pids: tuple[int, ...] = Field(default=(), description="main processes of the tier's unit")
    pid_file: Path | None = None
    other_pids: tuple[int, ...] = Field(
        default=(),
        description="processes of the other tier, which may hold GPU memory while this one is stopped",
    )
    unwanted: tuple[str, ...] = Field(
        default=(), description="tiers that run although they are frozen, each with who runs it"
    )
    ranks: int | None = Field(
        default=None, ge=1, le=64, description="processes that take part in its collectives"
    )
    unit_active: bool | None = Field(
        default=None, description="what the unit's own driver says, None = not asked"
    )
    router_socket: Path | None = None
    router_backend: str = "serve"
    router_server: str | None = Field(default=None, description="the tier's server line in that backend")
    ras: str | None = Field(default=None, description="NCCL RAS host:port")
    kernel_log: Path | None = Field(
        default=None, description="a file instead of the kernel's own log (needed on a CPU host)"
    )
    since: datetime | None = Field(default=None, description="kernel messages before this do not count")
    fabric_manager_unit: str = "nvidia-fabricmanager.service"
    fallback_memory_gib: float | None = Field(
        default=None, gt=0, description="GPU memory that the fallback tier needs"
    )
