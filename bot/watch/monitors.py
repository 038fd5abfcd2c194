"""The looks that nobody asked for: links, kernel log, hang, probe, regression, each host at its own periods.

A look is a partial triage: a few collectors, the same judgement, the same findings. `gpu_actions.triage.monitor_state` decides
what to make of one look after another; its memory is a row, so a restart neither forgets an acknowledgement nor alerts again.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import sqlalchemy as sa
import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import ValidationError

from bot.presenter import alerts as texts
from bot.settings.model import MonitorSettings
from bot.store.records import Person, RunStatus
from bot.store.schema import monitor_states
from bot.store.store import Store
from bot.watch.alerts import Alerts
from bot.watch.monitor_kinds import LOOKS, Look, looks_of, policy_of
from bot.watch.scheduler import Schedule
from bot.watch.targets import Targets
from bot.watch.undelivered_alerts import Alarm, keep_alarms
from gpu_actions.config.host import HostConfig
from gpu_actions.forensics.look import baseline_of
from gpu_actions.models import Verdict, VerdictKind
from gpu_actions.registry import actions
from gpu_actions.snapshot.collect import collect
from gpu_actions.triage.judge import judge
from gpu_actions.triage.monitor_state import MonitorPolicy, MonitorState, Signal

if TYPE_CHECKING:
    from gpu_actions.host import Host

log = structlog.get_logger()


AT_WORK = frozenset(status.value for status in (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.SETTLING))
WINDOW_SHARE = 0.6
"""A look takes at most this share of its period."""

STALL_MARGIN_S = 2.0
MAX_WINDOW_S = 120.0
"""The longest window that `/triage` takes."""


class _DoesNotApply(Exception):
    """This host has nothing that the look could read."""


class MonitorMemory:
    """The states of all looks, in the store. Methods block for a millisecond or two."""

    def __init__(self, store: Store, settings: MonitorSettings) -> None:
        self._store = store
        self._settings = settings

    def load(self, host: str, look: str) -> MonitorState:
        """The state of a look; a fresh one where there is none, or one that this version cannot read."""
        with self._store.database.read() as connection:
            return _read(connection, host, look)

    def observe(
        self,
        host: str,
        look: str,
        verdict: Verdict | None,
        *,
        policy: MonitorPolicy,
        alarm_of: Callable[[Signal], Alarm | None],
    ) -> tuple[tuple[Signal, ...], tuple[Alarm, ...]]:
        """Take one verdict into the state of a look, and keep the alarms of its signals: both, or neither."""
        with self._store.database.write() as connection:
            state, signals = _read(connection, host, look).observe(
                verdict, now_s=self._store.clock(), policy=policy
            )
            alarms = tuple(alarm for alarm in map(alarm_of, signals) if alarm is not None)
            keep_alarms(connection, alarms)
            _write(connection, look, state)
        return signals, alarms

    def acknowledge(self, host: str, cause: str) -> float:
        """A person has seen this cause: no look alerts of it. Gives for how many seconds."""
        policy = policy_of(self._settings, stalled_s=30)
        with self._store.database.write() as connection:
            for look in LOOKS:
                state = _read(connection, host, look.name)
                state = state.acknowledge(cause, now_s=self._store.clock(), policy=policy)
                _write(connection, look.name, state)
        return self._settings.quiet_s

    def acknowledged(self, host: str, cause: str) -> bool:
        """Whether a person has acknowledged this cause and that still holds."""
        now = self._store.clock()
        return any(self.load(host, look.name).quiet_until_s.get(cause, 0) > now for look in LOOKS)


def _read(connection: sa.Connection, host: str, look: str) -> MonitorState:
    here = (monitor_states.c.host == host, monitor_states.c.look == look)
    kept = connection.execute(sa.select(monitor_states.c.state).where(*here).with_for_update()).scalar()
    try:
        return MonitorState(host=host) if kept is None else MonitorState.model_validate(kept)
    except ValidationError:
        return MonitorState(host=host)


def _write(connection: sa.Connection, look: str, state: MonitorState) -> None:
    values = state.model_dump(mode="json")
    here = (monitor_states.c.host == state.host, monitor_states.c.look == look)
    if connection.execute(monitor_states.update().where(*here).values(state=values)).rowcount == 0:
        connection.execute(monitor_states.insert().values(host=state.host, look=look, state=values))


class Monitors(Collector):
    """Makes the looks. `hosts` gives the built host of a name; `schedule` calls `look` at the settings' periods."""

    def __init__(
        self,
        settings: MonitorSettings,
        *,
        store: Store,
        hosts: "Callable[[str], Host]",
        alerts: Alerts,
        memory: MonitorMemory,
    ) -> None:
        self._settings = settings
        self._store = store
        self._hosts = hosts
        self._alerts = alerts
        self._memory = memory
        self._targets = Targets()
        self._verdicts: dict[tuple[str, str], tuple[float, VerdictKind | None]] = {}

    def schedule(self, schedule: Schedule, hosts: Iterable[HostConfig]) -> None:
        """Put every look of every host on the schedule."""
        for host in hosts:
            for number, look in enumerate(looks_of(host, self._settings)):
                schedule.every(
                    look.period_s(self._settings),
                    f"{look.name}:{host.name}",
                    lambda name=host.name, look=look: self.look(name, look),  # type: ignore[misc]
                    first_after_s=1 + number,
                )

    async def look(self, host_name: str, look: Look) -> None:
        """Make one look, remember it, act on what it means. Held while a run changes the host: its steps look themselves."""
        if await asyncio.to_thread(self._held, host_name, look):
            return
        host = self._hosts(host_name)
        try:
            verdict = await self._verdict(host, look)
        except _DoesNotApply:
            return
        if await asyncio.to_thread(self._held, host_name, look):
            return  # a fallback began meanwhile: what was seen is what it is doing
        self._verdicts[host_name, look.name] = (time.time(), None if verdict is None else verdict.verdict)
        stalled_s = host.thresholds.stalled_fall_back_s
        signals, alarms = await asyncio.to_thread(
            self._memory.observe,
            host_name,
            look.name,
            verdict,
            policy=policy_of(self._settings, stalled_s=stalled_s),
            alarm_of=lambda signal: self._alarm(host_name, look, signal, verdict, stalled_s=stalled_s),
        )
        for signal in signals:
            self._say(host_name, look, signal)
        for alarm in alarms:
            self._alerts.raise_alarm(alarm)

    async def _verdict(self, host: "Host", look: Look) -> Verdict | None:
        """The verdict of a partial triage; None where nothing could be read, which is no bad state but no sight.

        An unknown state with a cause of its own (a driver that hangs) is something that was seen, and so is a source that was
        read and had nothing to say (a kernel log without an NVIDIA line). Raises _DoesNotApply where there is no such source.
        """
        window_s = min(look.window_s, max(0.2, WINDOW_SHARE * look.period_s(self._settings)))
        try:
            target = await self._targets.of(host)
            snapshot = await collect(target, host.thresholds, window_s=window_s, only=look.collectors)
            verdict = judge(snapshot, host.thresholds, await asyncio.to_thread(baseline_of, host))
        except Exception:
            log.exception("a look broke", host=host.name, look=look.name)
            return None
        if not verdict.findings:
            if snapshot.skipped(look.main):
                raise _DoesNotApply
            if snapshot.collectors[look.main].status == "ok":
                return Verdict(verdict=VerdictKind.HEALTHY, cause="none", summary="read, and nothing found")
        return None if (verdict.verdict, verdict.cause) == (VerdictKind.UNKNOWN, "unknown") else verdict

    def _held(self, host: str, look: Look) -> bool:
        """Whether a run is changing this host right now, or is at work on what this look reads."""
        rows = [row for row in self._store.active() if row.host == host and row.status in AT_WORK]
        changing = any(row.changes_host for row in rows)
        if changing:
            self._targets.forget(host)
        specs = (actions().get(row.action) for row in rows)
        return changing or any(spec is not None and look.name in spec.pauses_monitors for spec in specs)

    def _say(self, host: str, look: Look, signal: Signal) -> None:
        log.info(
            "monitor", host=host, look=look.name, signal=signal.kind, cause=signal.cause, reason=signal.reason
        )
        match signal.kind:
            case "clear":
                self._alerts.say(host, texts.cleared(host, source=look.title, reason=signal.reason))
            case "blind":
                self._alerts.say(host, texts.blind(host, source=look.title, reason=signal.reason))
            case "sighted":
                self._alerts.say(host, texts.sighted(host, source=look.title))

    def _alarm(
        self, host: str, look: Look, signal: Signal, verdict: Verdict | None, *, stalled_s: float
    ) -> Alarm | None:
        """What people must know of a signal: what was seen, and that nothing is seen, since silence is not health."""
        if signal.kind == "blind":
            return Alarm(
                host=host,
                cause="unknown",
                title=f"{look.title} cannot see {host}",
                source=look.title,
                reason=signal.reason,
                verdict=VerdictKind.UNKNOWN,
                key=f"{signal.key}:{look.name}:blind",
                at_s=self._store.clock(),
            )
        if signal.kind not in ("open", "join"):
            return None
        summary = verdict.summary if verdict is not None and verdict.cause == signal.cause else ""
        lasting = signal.cause == "engine_stalled" and signal.verdict is VerdictKind.FALL_BACK
        return Alarm(
            host=host,
            cause=signal.cause,
            title=f"{signal.cause} on {host}",
            source=look.title,
            reason=f"{signal.reason}{': ' if summary else ''}{summary}",
            verdict=signal.verdict,
            key=signal.key,
            at_s=self._store.clock(),
            # a stall that lasts shows itself only to a look that lasts
            window_s=min(stalled_s + STALL_MARGIN_S, MAX_WINDOW_S) if lasting else None,
        )

    def acknowledge(self, host: str, cause: str, *, by: Person) -> float:
        """Keep quiet about a cause that a person has seen. Gives for how many seconds."""
        log.info("acknowledged", host=host, cause=cause, by=by.id)
        return self._memory.acknowledge(host, cause)

    def collect(self) -> list[GaugeMetricFamily]:
        """Prometheus: when each look was last made, and what it saw (0 healthy, 1 watch, 2 fall back, -1 nothing)."""
        labels = ["host", "look"]
        at = GaugeMetricFamily(
            "gpu_oncall_monitor_last_look_seconds", "Unix time of the last look", labels=labels
        )
        seen = GaugeMetricFamily(
            "gpu_oncall_monitor_verdict", "0 healthy, 1 watch, 2 fall back, -1 nothing seen", labels=labels
        )
        numbers = {VerdictKind.HEALTHY: 0, VerdictKind.WATCH: 1, VerdictKind.FALL_BACK: 2}
        for key, (when, kind) in self._verdicts.items():
            at.add_metric(list(key), when)
            seen.add_metric(list(key), -1 if kind is None else numbers.get(kind, -1))
        return [at, seen]
