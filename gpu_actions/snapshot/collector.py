"""The interface of collectors.

A collector is one file in `collectors/`: its reading (a pydantic model), how it is collected, its deadline, and when it is
skipped. Its registry line is a field of `snapshot.model.Snapshot`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Frozen
from gpu_actions.snapshot.target import TriageTarget


class CollectorFailed(Exception):
    """Raised if a source exists but cannot be read: its checks become unknown. The message is one line for people."""


class CollectorSkipped(Exception):
    """Raised if a source does not apply to this host: its checks are left out. The message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything that a collector reads from: the target, the limits, the window, and the readings finished so far."""

    target: TriageTarget
    limits: TriageThresholds = field(default_factory=TriageThresholds)
    window_s: float
    began: float = field(default_factory=time.monotonic)
    deep: bool = False
    reads_nvml: bool = True
    readings: Mapping[str, Any] = field(default_factory=dict)
    is_stuck: Callable[[], bool] = lambda: False

    @property
    def engine_url(self) -> str | None:
        """URL of the tier's engine, or None if the tier is stopped on purpose."""
        return self.target.engine_url if self.target.tier_expected else None

    @property
    def at_s(self) -> float:
        """Seconds since the snapshot began."""
        return time.monotonic() - self.began

    async def sleep_until(self, at_s: float) -> None:
        """Sleep until `at_s` seconds after the snapshot began."""
        await asyncio.sleep(max(0.0, at_s - self.at_s))


@dataclass(frozen=True, kw_only=True)
class Collector:
    """How one reading of a snapshot is collected. `collect` raises CollectorFailed or CollectorSkipped.

    It starts once the collectors named in `after` have finished. One that `runs_alone` starts after all the others, because it
    would disturb what they measure.
    """

    collect: Callable[[Source], Awaitable[Frozen]]
    deadline_s: Callable[[Source], float]
    after: tuple[str, ...] = ()
    runs_alone: bool = False
