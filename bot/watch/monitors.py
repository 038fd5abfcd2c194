"""Check every host in the background: links, kernel log, hangs, a probe request, regressions, each at its own period.

A check is a partial triage: a few collectors, the same judgement, the same findings. `gpu_actions.triage.monitor_state` decides
what a series of verdicts means.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Protocol

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from bot.settings.watch import MonitorSettings
from bot.store.records import Alert, MonitorNotice, Person, RunStatus
from bot.store.store import Store
from bot.watch.monitor_kinds import MonitorKind, NothingRead, monitors_for
from bot.watch.monitor_memory import MonitorMemory
from bot.watch.scheduler import Schedule
from bot.watch.target_cache import TargetCache
from gpu_actions.config.host import HostConfig
from gpu_actions.loadtest.recent import READ_EVERY_S, remember_lengths
from gpu_actions.models import Verdict, VerdictKind
from gpu_actions.registry import actions
from gpu_actions.snapshot.collect import collect
from gpu_actions.triage.host_verdict import baseline_of
from gpu_actions.triage.judge import judge
from gpu_actions.triage.monitor_state import Signal

if TYPE_CHECKING:
    from gpu_actions.host import Host

log = structlog.get_logger()

AT_WORK = frozenset(status.value for status in (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.SETTLING))
WINDOW_SHARE = 0.6
"""A check takes at most this share of its period."""
STALL_MARGIN_S = 2.0
MAX_WINDOW_S = 120.0
"""The longest window that `/triage` accepts."""
METRIC_VALUES = {VerdictKind.HEALTHY: 0, VerdictKind.WATCH: 1, VerdictKind.FALL_BACK: 2}


class AlertSink(Protocol):
    """Takes what monitors report: `Alerts` in the bot, `HostAlerts` on a host of a fleet. Both return at once."""

    def report(self, alert: Alert) -> None:
        """Report an alert."""

    def notice(self, notice: MonitorNotice) -> None:
        """Report what is no alert."""


@dataclass(eq=False)
class Monitors(Collector):
    """Runs the checks. `hosts` returns the built host of a name; `schedule` arranges the calls of `check`."""

    settings: MonitorSettings
    _: KW_ONLY
    store: Store
    hosts: "Callable[[str], Host]"
    alerts: AlertSink
    memory: MonitorMemory

    def __post_init__(self) -> None:
        self._targets = TargetCache()
        self._verdicts: dict[tuple[str, str], tuple[float, VerdictKind | None]] = {}

    def schedule(self, schedule: Schedule, hosts: Iterable[HostConfig]) -> None:
        """Schedule every monitor of every host."""
        for host in hosts:
            schedule.every(
                READ_EVERY_S,
                f"recent_traffic:{host.name}",
                lambda name=host.name: remember_lengths(self.hosts(name)),  # type: ignore[misc]
            )
            for number, kind in enumerate(monitors_for(host, self.settings)):
                period_s = kind.period_s(self.settings)
                schedule.every(
                    period_s,
                    f"{kind.name}:{host.name}",
                    lambda name=host.name, kind=kind: self.check(name, kind),  # type: ignore[misc]
                    first_after_s=1 + number if kind.read is None else period_s,
                )

    async def check(self, host_name: str, kind: MonitorKind) -> None:
        """Check a host once, remember the result and act on it. Paused while a run changes the host."""
        if await asyncio.to_thread(self._paused, host_name, kind):
            return
        host = self.hosts(host_name)
        try:
            verdict = await self._verdict(host, kind)
        except NothingRead as reason:
            if kind.read is not None:
                log.info("nothing was read", host=host_name, monitor=kind.name, reason=str(reason))
            return
        if await asyncio.to_thread(self._paused, host_name, kind):
            return  # a run began meanwhile: the reading may show what it is doing
        self._verdicts[host_name, kind.name] = (time.time(), None if verdict is None else verdict.verdict)
        stalled_s = host.thresholds.stalled_fall_back_s
        signals, alerts = await asyncio.to_thread(
            self.memory.observe,
            host_name,
            kind.name,
            verdict,
            stalled_s=stalled_s,
            alert_of=lambda signal: self._alert(host_name, kind, signal, verdict, stalled_s=stalled_s),
        )
        for signal in signals:
            self._announce(host_name, kind, signal)
        for alert in alerts:
            self.alerts.report(alert)

    async def _verdict(self, host: "Host", kind: MonitorKind) -> Verdict | None:
        """Return the verdict of a partial triage, or None if nothing could be read.

        An unknown state with a cause of its own (a driver that hangs) is a verdict, and so is a source without findings (a
        kernel log without an NVIDIA line). Raises NothingRead if the host has no such source.
        """
        window_s = min(kind.window_s, max(0.2, WINDOW_SHARE * kind.period_s(self.settings)))
        try:
            if kind.read is not None:
                return await kind.read(host, lambda: self._paused(host.name, kind))
            target = await self._targets.of(host)
            snapshot = await collect(
                target,
                host.thresholds,
                window_s=window_s,
                only=kind.collectors | kind.in_doubt,
                in_doubt=kind.in_doubt,
            )
            verdict = judge(snapshot, host.thresholds, await asyncio.to_thread(baseline_of, host))
        except NothingRead:
            raise
        except Exception:
            log.exception("a check failed", host=host.name, monitor=kind.name)
            return None
        if not verdict.findings:
            if snapshot.skipped(kind.main):
                raise NothingRead("no such source")
            if snapshot.collectors[kind.main].status == "ok":
                return Verdict(verdict=VerdictKind.HEALTHY, cause="none", summary="no findings")
        return None if (verdict.verdict, verdict.cause) == (VerdictKind.UNKNOWN, "unknown") else verdict

    def _paused(self, host: str, kind: MonitorKind) -> bool:
        """Return True while a run changes this host or disturbs what this monitor reads."""
        rows = [row for row in self.store.active() if row.host == host and row.status in AT_WORK]
        changing = any(row.changes_host for row in rows)
        if changing:
            self._targets.forget(host)
        specs = (actions().get(row.action) for row in rows)
        return changing or any(spec is not None and kind.name in spec.pauses_monitors for spec in specs)

    def _announce(self, host: str, kind: MonitorKind, signal: Signal) -> None:
        """Log a signal. Post one that is not an alert in the thread of the host's open incident."""
        log.info(
            "monitor",
            host=host,
            monitor=kind.name,
            signal=signal.kind,
            cause=signal.cause,
            reason=signal.reason,
        )
        match signal.kind:
            case "clear" | "ease" | "blind" | "sighted":
                self.alerts.notice(
                    MonitorNotice(
                        notice=signal.kind,
                        host=host,
                        source=kind.title,
                        cause=signal.cause,
                        reason=signal.reason,
                        at_s=self.store.clock(),
                    )
                )

    def _alert(
        self, host: str, kind: MonitorKind, signal: Signal, verdict: Verdict | None, *, stalled_s: float
    ) -> Alert | None:
        """Return the alert of a signal, or None. A host that cannot be read is an alert too: silence is not health."""
        if signal.kind not in ("open", "join", "blind"):
            return None
        blind = signal.kind == "blind"
        summary = (
            verdict.summary if verdict is not None and verdict.cause == signal.cause and not blind else ""
        )
        lasting = signal.cause == "engine_stalled" and signal.verdict is VerdictKind.FALL_BACK and not blind
        return Alert(
            host=host,
            cause="unknown" if blind else signal.cause,
            title=f"{kind.title} cannot read {host}" if blind else f"{signal.cause} on {host}",
            source=kind.title,
            reason=f"{signal.reason}{': ' if summary else ''}{summary}",
            verdict=VerdictKind.UNKNOWN if blind else signal.verdict,
            key=f"{signal.key}:{kind.name}:blind" if blind else signal.key,
            at_s=self.store.clock(),
            # A lasting stall is visible only to a triage that reads for as long.
            window_s=min(stalled_s + STALL_MARGIN_S, MAX_WINDOW_S) if lasting else None,
        )

    def acknowledge(self, host: str, cause: str, *, by: Person) -> float:
        """Keep quiet about a cause that a person is handling. Return for how many seconds."""
        log.info("acknowledged", host=host, cause=cause, by=by.id)
        return self.memory.acknowledge(host, cause)

    def collect(self) -> list[GaugeMetricFamily]:
        """Return the Prometheus metrics: when each monitor last ran and what it found."""
        labels = ["host", "look"]
        at = GaugeMetricFamily(
            "gpu_oncall_monitor_last_look_seconds", "Unix time of the last check", labels=labels
        )
        found = GaugeMetricFamily(
            "gpu_oncall_monitor_verdict", "0 healthy, 1 watch, 2 fall back, -1 unknown", labels=labels
        )
        for key, (when, kind) in self._verdicts.items():
            at.add_metric(list(key), when)
            found.add_metric(list(key), -1 if kind is None else METRIC_VALUES.get(kind, -1))
        return [at, found]
