"""A serving host as one object: its configuration and its drivers.

`build_host` builds the drivers; steps use only the interfaces of `gpu_actions.serving.interfaces`.
"""

from dataclasses import dataclass, field
from pathlib import Path

from gpu_actions.config.host import HostConfig, TierConfig, TierName
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.serving.golden.record import golden_path
from gpu_actions.serving.interfaces import Engine, Router, Unit
from gpu_actions.serving.registry import build_engine


@dataclass(frozen=True, kw_only=True)
class Tier:
    """A tier with its drivers. `standby_note` is the file that says that it sleeps."""

    name: TierName
    config: TierConfig
    unit: Unit
    engine: Engine
    standby_note: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host with its tiers and its router. `state_dir` is its own folder for units, sockets and run folders.

    Every triage of this host uses `thresholds` and the file `triage_baseline`. `baselines_dir` is None where nothing is kept.
    """

    config: HostConfig
    state_dir: Path
    tiers: dict[TierName, Tier]
    router: Router
    thresholds: TriageThresholds = field(default_factory=TriageThresholds)
    triage_baseline: Path | None = None
    baselines_dir: Path | None = None

    def golden_path(self, tier: TierName) -> Path | None:
        """Return where the golden prompts of a tier are kept, or None."""
        if self.baselines_dir is None:
            return None
        return golden_path(self.baselines_dir, host=self.name, tier=tier)

    def knee_path(self, tier: TierName) -> Path | None:
        """Return where the latest knee of a tier is kept, or None."""
        return None if self.baselines_dir is None else self.baselines_dir / f"knee-{self.name}-{tier}.json"

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def tp(self) -> Tier:
        return self.tiers["tp"]

    @property
    def fallback(self) -> Tier:
        return self.tiers["fallback"]


def build_host(
    config: HostConfig,
    *,
    state_dir: Path,
    thresholds: TriageThresholds | None = None,
    baselines_dir: Path | None = None,
) -> Host:
    """Build the drivers of a host. Creates `state_dir` (mode 0700); starts nothing."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    tiers = {
        name: Tier(
            name=name,
            config=tier,
            unit=tier.unit.build(name, state_dir=state_dir / "units"),
            engine=build_engine(tier.engine),
            standby_note=state_dir / f"standby_{name}.json",
        )
        for name, tier in config.tiers.items()
    }
    return Host(
        config=config,
        state_dir=state_dir,
        tiers=tiers,
        router=config.router.build(config, state_dir=state_dir),
        thresholds=thresholds or TriageThresholds(),
        triage_baseline=None if baselines_dir is None else baselines_dir / f"triage-{config.name}.json",
        baselines_dir=baselines_dir,
    )
