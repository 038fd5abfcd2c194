"""A serving host as one object: its configuration and its drivers.

`Host.fallback` is the rung of the ladder that is the fallback now: the last one, `tiers.fallback`, unless a file names another,
so that a restore and a run that goes on after a kill agree.

`build_host` builds the drivers; steps use only the interfaces of `gpu_actions.serving.interfaces`.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu_actions.config.host import LAST_RUNG, HostConfig, TierConfig, TierName
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.serving.golden.record import golden_path
from gpu_actions.serving.interfaces import Engine, Router, Unit
from gpu_actions.serving.registry import build_engine
from gpu_actions.system.files import write_json


@dataclass(frozen=True, kw_only=True)
class Tier:
    """A tier with its drivers. `name` is its role, `key` what its files are named after: that of a rung is the rung's name.

    `standby_note` is the file that says that it sleeps.
    """

    name: TierName
    key: str
    config: TierConfig
    unit: Unit
    engine: Engine
    standby_note: Path | None = None

    @property
    def label(self) -> str:
        """Return its name for people: its role, and which rung of the ladder it is unless it is the last one."""
        if self.key == self.name:
            return self.name
        return f"rung {self.key}" if self.name == "tp" else f"{self.name} (rung {self.key})"


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host with its tiers and its router. `state_dir` is its own folder for units, sockets and run folders.

    Every triage of this host uses `thresholds` and the file `triage_baseline`. `baselines_dir` is None where nothing is kept.
    """

    config: HostConfig
    state_dir: Path
    tp: Tier
    rungs: Mapping[str, Tier]
    """The fallbacks, the highest rung first; the last one is `tiers.fallback`."""
    router: Router
    thresholds: TriageThresholds = field(default_factory=TriageThresholds)
    triage_baseline: Path | None = None
    baselines_dir: Path | None = None
    pinned: str = ""
    """The rung that is the fallback for a plan, whatever the file says."""
    whole: "Host | None" = None
    """The host itself, if this is the view of a step up: its `tp` is the bigger rung, its fallback the smaller one."""

    @property
    def fallback(self) -> Tier:
        """Return the rung that is the fallback now."""
        return self.rungs[self.rung]

    @property
    def tiers(self) -> dict[TierName, Tier]:
        """Return the two tiers by role."""
        return {"tp": self.tp, "fallback": self.fallback}

    @property
    def every_tier(self) -> tuple[Tier, ...]:
        """Return tp and all rungs."""
        return (self.tp, *self.rungs.values())

    @property
    def has_ladder(self) -> bool:
        return len(self.rungs) > 1

    @property
    def rung(self) -> str:
        """Return the name of the rung that is the fallback now."""
        if self.pinned or not self.has_ladder:
            return self.pinned or LAST_RUNG
        with suppress(OSError, ValueError, KeyError):
            name = str(json.loads(self._rung_file.read_text(encoding="utf-8"))["rung"])
            if name in self.rungs:
                return name
        return LAST_RUNG

    def on_rung(self, name: str) -> "Host":
        """Return this host with another rung as its fallback, for a plan. Changes nothing."""
        return replace(self, pinned=name)

    def keep_rung(self, name: str) -> None:
        """Make a rung the fallback from now on."""
        if self.has_ladder:
            write_json(self._rung_file, {"rung": name})

    def forget_rung(self) -> None:
        """Make the last rung the fallback again: tp serves, or nothing does."""
        self._rung_file.unlink(missing_ok=True)

    def settle_rung(self) -> None:
        """Record that the tier `tp` serves: no rung does, or the one that was stepped up to."""
        if self.whole is None:
            self.forget_rung()
        else:
            self.whole.keep_rung(self.tp.key)

    def stepping_up(self, below: str, to: str) -> "Host":
        """Return this host as the steps of a restore see it when rung `to` takes the traffic from the smaller rung `below`.

        The bigger rung plays tp and the smaller one the fallback. Raises KeyError for a rung that the ladder does not have.
        """
        rungs = {below: self.rungs[below]}
        big = replace(self.rungs[to], name="tp")
        tiers = {"tp": big.config, "fallback": rungs[below].config}
        config = self.config.model_copy(update={"tiers": tiers, "ladder": ()})
        return replace(self, config=config, tp=big, rungs=rungs, pinned=below, whole=self)

    @property
    def _rung_file(self) -> Path:
        return self.state_dir / "fallback_rung.json"

    def golden_path(self, tier: TierName) -> Path | None:
        """Return where the golden prompts of a tier are kept, or None."""
        if self.baselines_dir is None:
            return None
        return golden_path(self.baselines_dir, host=self.name, tier=self.tiers[tier].key)

    def knee_path(self, tier: TierName) -> Path | None:
        """Return where the latest knee of a tier is kept, or None."""
        if self.baselines_dir is None:
            return None
        return self.baselines_dir / f"knee-{self.name}-{self.tiers[tier].key}.json"

    @property
    def name(self) -> str:
        return self.config.name


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
        key: Tier(
            name="tp" if key == "tp" else "fallback",
            key=key,
            config=tier,
            unit=tier.unit.build(key, state_dir=state_dir / "units"),
            engine=build_engine(tier.engine),
            standby_note=state_dir / f"standby_{key}.json",
        )
        for key, tier in config.every_tier.items()
    }
    return Host(
        config=config,
        state_dir=state_dir,
        tp=tiers.pop("tp"),
        rungs=tiers,
        router=config.router.build(config, state_dir=state_dir),
        thresholds=thresholds or TriageThresholds(),
        triage_baseline=None if baselines_dir is None else baselines_dir / f"triage-{config.name}.json",
        baselines_dir=baselines_dir,
    )
