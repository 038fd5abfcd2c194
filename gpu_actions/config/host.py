"""A serving host as settings: its tiers, their engines and units, the router, and the policies of each action.

`bot/settings/model.py` reads them from the settings file; `gpu_actions` uses them without the bot too.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from gpu_actions.config.policies import (
    DrillPolicy,
    FallbackPolicy,
    LoadPolicy,
    LoadTestSettings,
    RestorePolicy,
    TracePolicy,
)
from gpu_actions.models import Frozen
from gpu_actions.serving.engines.settings import EngineSettings
from gpu_actions.serving.kinds import OneOf
from gpu_actions.serving.registry import DEFAULT_ENGINE, ENGINES, ROUTERS, UNITS, EngineKind
from gpu_actions.serving.routers.base import RouterConfig
from gpu_actions.serving.units.base import UnitConfig
from gpu_actions.system.urls import port_of

TierName = Literal["tp", "fallback"]
LAST_RUNG = "fallback"
"""The name of the ladder's last rung, which is `tiers.fallback`."""
Standby = Literal["off", "sleep", "resident"]


class EngineConfig(EngineSettings):
    """How to reach the server of one tier."""

    kind: EngineKind = Field(default=DEFAULT_ENGINE, description=f"one of: {', '.join(ENGINES)}")


class PageCacheSettings(Frozen):
    """Weights that are kept in the page cache, so that a cold start does not read them from disk."""

    paths: tuple[Path, ...] = Field(min_length=1, description="files, and folders with all that is in them")
    max_gib: float = Field(gt=0, description="files beyond this are left out, the later ones first")


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
    page_cache: PageCacheSettings | None = Field(
        default=None, description="weights to keep in the page cache while all is well (docs/standby.md)"
    )

    @property
    def command_words(self) -> list[str]:
        """Return the words of its unit's command line, `--flag=value` as two; empty if it is not known here."""
        argv = getattr(self.unit, "argv", None) or ()
        return [word for part in argv for word in str(part).split("=", 1)]


class Rung(TierConfig):
    """A rung of the fallback ladder above `tiers.fallback`, which is its last rung: a fallback on several GPUs, or with
    another model. The engine must serve the model name that clients send."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$", description="its name in commands and messages")
    needs_nvlink: bool = Field(
        default=True,
        description="of several GPUs: each must reach each other one over NVLink; false: PCIe is good enough",
    )
    max_concurrent: int | None = Field(
        default=None,
        ge=2,
        le=256,
        description="requests at once; if left out, router.back_pressure.max_concurrent, which is meant for one GPU",
    )

    @model_validator(mode="after")
    def _can_be_a_rung(self) -> Self:
        if self.name in ("tp", LAST_RUNG):
            raise ValueError(f"a rung cannot be named {self.name!r}: that is a tier")
        if self.standby != "off":
            raise ValueError(f"rung {self.name}: only tiers.fallback can have a standby")
        return self


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
    ladder: tuple[Rung, ...] = Field(
        default=(),
        description="fallbacks that are tried before tiers.fallback, the best first; written [[hosts.tiers.ladder]]",
    )
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

    @property
    def every_tier(self) -> dict[str, TierConfig]:
        """Return tp and all rungs of the ladder by name, `fallback` being the last rung."""
        rungs = {rung.name: rung for rung in self.ladder}
        return {"tp": self.tiers["tp"], **rungs, LAST_RUNG: self.tiers["fallback"]}

    @model_validator(mode="before")
    @classmethod
    def _ladder_of_the_tiers(cls, fields: Any) -> Any:
        """Read `tiers.ladder` as `ladder`."""
        tiers = fields.get("tiers") if isinstance(fields, dict) else None
        if not isinstance(tiers, dict) or "ladder" not in tiers:
            return fields
        return {
            **fields,
            "tiers": {name: tier for name, tier in tiers.items() if name != "ladder"},
            "ladder": tiers["ladder"],
        }

    @model_validator(mode="after")
    def _rungs_differ(self) -> Self:
        seen: dict[tuple[str, object], str] = {}
        names = [rung.name for rung in self.ladder]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two rungs of the ladder are named {name!r}: give each its own name")
        for name, tier in self.every_tier.items() if self.ladder else ():
            unit = getattr(tier.unit, "name", getattr(tier.unit, "container", None)) or tier.unit
            for what, value in (("server", tier.server), ("port", port_of(tier.engine.url)), ("unit", unit)):
                other = seen.setdefault((what, value if isinstance(value, str | int) else repr(value)), name)
                if other != name:
                    raise ValueError(
                        f"the tiers {other} and {name} have the same {what}"
                        f"{'' if what == 'unit' else f' {value}'}: each rung needs its own"
                    )
        return self

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
