"""Run periodic jobs: monitors, retries, sweeps.

Jobs are kept in memory and created from the settings at each start. A late job runs once, never twice at a time; one that
fails is logged, counted and run again at its next time.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bot.settings.cron import cron_trigger

log = structlog.get_logger()

MISFIRE_GRACE_S = 30
JITTER_SHARE = 0.1
FIRST_AFTER_S = 1.0


class FastCron(BaseTrigger):  # type: ignore[misc]
    """A cron whose clock runs `speed` times as fast, from the moment it is made."""

    def __init__(self, cron: CronTrigger, speed: float) -> None:
        self._cron, self._speed, self._began = cron, speed, datetime.now(UTC)

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        fast = self._began + (now - self._began) * self._speed
        # Times have whole microseconds: without one more, a time rounded down would fire a second time.
        following = self._cron.get_next_fire_time(None, fast + timedelta(microseconds=self._speed))
        return None if following is None else self._began + (following - self._began) / self._speed


def next_times(expression: str, now: datetime, count: int) -> list[datetime]:
    """Return the next times of a cron expression in UTC."""
    found: list[datetime] = []
    trigger = cron_trigger(expression)
    while len(found) < count and (following := trigger.get_next_fire_time(None, now)) is not None:
        found.append(following)
        now = following + timedelta(seconds=1)
    return found


class Schedule(Collector):
    """The jobs of this process. Call `start` and `close` in the event loop."""

    def __init__(self) -> None:
        self._scheduler = AsyncIOScheduler(
            timezone=UTC,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": MISFIRE_GRACE_S},
        )
        self._closing = False
        self.failures: Counter[str] = Counter()
        self.last_end_s: dict[str, float] = {}

    def every(
        self,
        seconds: float,
        name: str,
        work: Callable[[], Awaitable[object]],
        *,
        first_after_s: float = FIRST_AFTER_S,
    ) -> None:
        """Run `work` at this period, with 10 % jitter so that jobs do not run in lockstep. A period of 0 means never."""
        if seconds <= 0:
            return

        self._scheduler.add_job(
            self._guarded(name, work),
            IntervalTrigger(seconds=seconds, jitter=seconds * JITTER_SHARE, timezone=UTC),
            id=name,
            name=name,
            next_run_time=datetime.now(UTC) + timedelta(seconds=first_after_s),
        )

    def cron(
        self, expression: str, name: str, work: Callable[[], Awaitable[object]], *, clock_speed: float = 1
    ) -> None:
        """Run `work` at the times of a cron expression in UTC, on a clock that runs `clock_speed` times as fast."""
        trigger = cron_trigger(expression)
        if clock_speed != 1:
            trigger = FastCron(trigger, clock_speed)
        self._scheduler.add_job(self._guarded(name, work), trigger, id=name, name=name)

    def _guarded(
        self, name: str, work: Callable[[], Awaitable[object]]
    ) -> Callable[[], Coroutine[Any, Any, None]]:
        """Return the job of some work: its failure is logged and counted."""

        async def job() -> None:
            try:
                await work()
            except asyncio.CancelledError:
                if not self._closing:
                    raise
            except Exception:
                self.failures[name] += 1
                log.exception("a scheduled job failed; it runs again at its next time", job=name)
            else:
                self.last_end_s[name] = time.time()

        return job

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(job.id for job in self._scheduler.get_jobs())

    def start(self) -> None:
        self._scheduler.start()

    def collect(self) -> list[Metric]:
        """Return the Prometheus metrics: how often each job failed, and when it last succeeded."""
        failed = CounterMetricFamily(
            "gpu_oncall_job_failures", "Times a scheduled job failed", labels=["job"]
        )
        ended = GaugeMetricFamily(
            "gpu_oncall_job_last_end_seconds",
            "Unix time at which a scheduled job last succeeded",
            labels=["job"],
        )
        for job in self.names:
            failed.add_metric([job], self.failures[job])
        for job, when in tuple(self.last_end_s.items()):
            ended.add_metric([job], when)
        return [failed, ended]

    def close(self) -> None:
        """Start no more jobs and cancel the running ones."""
        self._closing = True
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
