"""The interface of collectors.

A collector is one file in `collectors/`: its reading (a pydantic model), how it is collected, its deadline, and when it is
skipped. Its registry line is a field of `snapshot.model.Snapshot`.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Frozen
from gpu_actions.snapshot.target import TriageTarget


class CollectorFailed(Exception):
    """Raised if a source exists but cannot be read: its checks become unknown. The message is one line for people."""


class CollectorSkipped(Exception):
    """Raised if a source does not apply to this host: its checks are left out. The message is the reason."""


class Window:
    """The time between the two readings of a snapshot.

    It ends early once every collector that reads twice has said that its first reading needs no second one (an idle engine that
    answered, error counters that never counted), or has ended.
    """

    def __init__(self, observers: Iterable[str] = (), *, whole: bool = False) -> None:
        self._observers = {*observers} | ({"the caller"} if whole else set())
        self.over = asyncio.Event()

    def needs_no_more(self, name: str) -> None:
        """Note that a collector has nothing to wait for."""
        self._observers.discard(name)
        if not self._observers:
            self.over.set()

    async def wait(self, seconds: float) -> None:
        """Wait for the end of the window, for at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self.over.wait()


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything that a collector reads from: the target, the limits, the window, and the readings finished so far."""

    target: TriageTarget
    limits: TriageThresholds = field(default_factory=TriageThresholds)
    window_s: float
    window: Window = field(default_factory=lambda: Window(whole=True))
    finished: Mapping[str, asyncio.Event] = field(default_factory=dict)
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

    async def window_end(self, since_s: float = 0.0) -> None:
        """Wait for the end of the window that began `since_s` seconds after the snapshot."""
        await self.window.wait(since_s + self.window_s - self.at_s)

    async def reading(self, name: str) -> Any:
        """Wait until another collector has ended, within the window. Return its reading, or None."""
        if name in self.finished:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self.window_s - self.at_s)):
                    await self.finished[name].wait()
        return self.readings.get(name)


@dataclass(frozen=True, kw_only=True)
class Collector:
    """How one reading of a snapshot is collected. `collect` raises CollectorFailed or CollectorSkipped.

    It starts once the collectors named in `after` have finished. One that `observes` reads at both ends of the window and must
    tell `Source.window` if its first reading needs no second one. One that `runs_alone` starts after all the others, because it
    would disturb what they measure.
    """

    collect: Callable[[Source], Awaitable[Frozen]]
    deadline_s: Callable[[Source], float]
    after: tuple[str, ...] = ()
    observes: bool = False
    runs_alone: bool = False
