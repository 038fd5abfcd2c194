"""When things happen by themselves: monitors, sweeps. APScheduler knows when; what was done stands in the rows.

Jobs live in memory and are made anew from the settings at each start. A job that is late runs once (coalesce), never twice
at a time, and one that breaks is logged and counted and comes again at its next time (engine.md, APScheduler).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

log = structlog.get_logger()

MISFIRE_GRACE_S = 30
JITTER_SHARE = 0.1
FIRST_AFTER_S = 1.0


class Schedule(Collector):
    """The jobs of this process. `start` and `close` are called in the event loop."""

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
        """Run `work` every so many seconds, with a tenth of jitter so that looks do not march in step; never for 0."""
        if seconds <= 0:
            return

        async def job() -> None:
            try:
                await work()
            except asyncio.CancelledError:
                if not self._closing:
                    raise
            except Exception:
                self.failures[name] += 1
                log.exception("a scheduled job broke; it comes again", job=name)
            else:
                self.last_end_s[name] = time.time()

        self._scheduler.add_job(
            job,
            IntervalTrigger(seconds=seconds, jitter=seconds * JITTER_SHARE, timezone=UTC),
            id=name,
            name=name,
            next_run_time=datetime.now(UTC) + timedelta(seconds=first_after_s),
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(job.id for job in self._scheduler.get_jobs())

    def start(self) -> None:
        self._scheduler.start()

    def collect(self) -> list[Metric]:
        """Prometheus: how often each job broke, and when it last ended well."""
        broke = CounterMetricFamily("gpu_oncall_job_failures", "Times a scheduled job broke", labels=["job"])
        ended = GaugeMetricFamily(
            "gpu_oncall_job_last_end_seconds",
            "Unix time at which a scheduled job last ended well",
            labels=["job"],
        )
        for job in self.names:
            broke.add_metric([job], self.failures[job])
        for job, when in tuple(self.last_end_s.items()):
            ended.add_metric([job], when)
        return [broke, ended]

    def close(self) -> None:
        """No new job starts, and what is at work is cut."""
        self._closing = True
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
