"""A serving host as settings: its tiers, their engines and units, the router, and the policies of each action.

`bot/settings/model.py` reads them from the settings file; `gpu_actions` uses them without the bot too.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from gpu_actions.config.policies import (
    DrillPolicy,
    FallbackPolicy,
    LoadPolicy,
    LoadTestSettings,
    RestorePolicy,
    TracePolicy,
)
from gpu_actions.models import Frozen
from gpu_actions.serving.engines.base import EngineSettings
from gpu_actions.serving.kinds import OneOf
from gpu_actions.serving.registry import DEFAULT_ENGINE, ENGINES, ROUTERS, UNITS, EngineKind
from gpu_actions.serving.routers.base import RouterConfig
from gpu_actions.serving.units.base import UnitConfig

TierName = Literal["tp", "fallback"]
Standby = Literal["off", "sleep", "resident"]


class EngineConfig(EngineSettings):
    """How to reach the server of one tier."""

    kind: EngineKind = Field(default=DEFAULT_ENGINE, description=f"one of: {', '.join(ENGINES)}")


class TierConfig(Frozen):
    """A serving pool of the host. `gpus` is the number of its GPUs (0: it runs on the CPU)."""

    engine: EngineConfig
    unit: Annotated[UnitConfig, OneOf("driver", UNITS)]
    server: str = Field(
        description="name of its server line in the router's backend", pattern=r"^[A-Za-z0-9_.:-]+$"
    )
    gpus: int = Field(default=0, ge=0, le=64)
    ranks: int = Field(default=1, ge=1, le=64, description="processes that take part in its collectives")
    weight: int = Field(
        default=100, ge=1, le=256, description="its router weight when it takes all the traffic"
    )
    standby: Standby = Field(
        default="off",
        description="of the fallback tier: keep an engine ready, `sleep` in host memory, `resident` on its GPU",
    )
    memory_gib_per_gpu: float | None = Field(default=None, gt=0, description="what it needs on each GPU")


class HostConfig(Frozen):
    """A serving host: what it should have, its tiers and its router."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="short name used in commands")
    description: str = ""
    gpus: int | None = Field(
        default=None, ge=0, le=64, description="expected GPUs; 0 = a CPU host; if left out, as found"
    )
    nvlinks: int | None = Field(
        default=None, ge=0, le=64, description="expected NVLinks per GPU; if left out, by model"
    )
    ras_address: str | None = Field(
        default="127.0.0.1:28028", description="NCCL RAS host:port; empty = do not ask"
    )
    kernel_log: Path | None = Field(
        default=None, description="a file to read instead of the kernel's own log"
    )
    tiers: dict[TierName, TierConfig]
    router: Annotated[RouterConfig, OneOf("kind", ROUTERS, default=ROUTERS[0])] = ROUTERS[0]()
    fallback: FallbackPolicy = FallbackPolicy()
    restore: RestorePolicy = RestorePolicy()
    load: LoadPolicy = LoadPolicy()
    loadtest: LoadTestSettings = Field(
        default=LoadTestSettings(),
        description="of this host; what it leaves out comes from the section loadtest",
    )
    trace: TracePolicy = TracePolicy()
    drill: DrillPolicy = DrillPolicy()

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
