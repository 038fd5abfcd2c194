"""What monitors remember between two readings, kept in the database so that a restart neither forgets nor repeats an alert."""

from collections.abc import Callable

import sqlalchemy as sa

from bot.settings.watch import MonitorSettings
from bot.store.records import Alert
from bot.store.row_to_record import readable
from bot.store.schema import monitor_states
from bot.store.store import Store
from bot.watch.monitor_kinds import MONITOR_KINDS
from bot.watch.undelivered_alerts import keep_alerts
from gpu_actions.models import Verdict
from gpu_actions.triage.monitor_state import MonitorPolicy, MonitorState, Signal


class MonitorMemory:
    """The states of all monitors. Methods block for a millisecond or two."""

    def __init__(self, store: Store, settings: MonitorSettings) -> None:
        self._store = store
        self._settings = settings

    def policy(self, *, stalled_s: float) -> MonitorPolicy:
        """Return how sure a monitor must be; a stall of `stalled_s` seconds needs no second reading."""
        settings = self._settings
        return MonitorPolicy(
            needed=settings.confirm_n,
            of=settings.confirm_m,
            clear_after=settings.clear_after,
            stalled_s=stalled_s,
            hold_s=settings.hold_s,
            burst_s=settings.burst_s,
            quiet_s=settings.quiet_s,
        )

    def load(self, host: str, monitor: str) -> MonitorState:
        """Return a monitor's state; a fresh one if there is none, or none that this version can read."""
        with self._store.database.read() as connection:
            return _read(connection, host, monitor)

    def observe(
        self,
        host: str,
        monitor: str,
        verdict: Verdict | None,
        *,
        stalled_s: float,
        alert_of: Callable[[Signal], Alert | None],
    ) -> tuple[tuple[Signal, ...], tuple[Alert, ...]]:
        """Add one verdict to a monitor's state and keep the alerts of its signals, in one transaction."""
        with self._store.database.write() as connection:
            state, signals = _read(connection, host, monitor).observe(
                verdict, now_s=self._store.clock(), policy=self.policy(stalled_s=stalled_s)
            )
            alerts = tuple(alert for alert in map(alert_of, signals) if alert is not None)
            keep_alerts(connection, alerts)
            _write(connection, monitor, state)
        return signals, alerts

    def acknowledge(self, host: str, cause: str) -> float:
        """Keep every monitor quiet about a cause on a host. Return for how many seconds."""
        policy = self.policy(stalled_s=30)
        with self._store.database.write() as connection:
            for kind in MONITOR_KINDS:
                state = _read(connection, host, kind.name)
                _write(
                    connection, kind.name, state.acknowledge(cause, now_s=self._store.clock(), policy=policy)
                )
        return self._settings.quiet_s

    def acknowledged(self, host: str, cause: str) -> bool:
        """Return True while an acknowledgement of this cause is in force."""
        now = self._store.clock()
        return any(self.load(host, kind.name).quiet_until_s.get(cause, 0) > now for kind in MONITOR_KINDS)


def _read(connection: sa.Connection, host: str, monitor: str) -> MonitorState:
    here = (monitor_states.c.host == host, monitor_states.c.look == monitor)
    kept = connection.execute(sa.select(monitor_states.c.state).where(*here).with_for_update()).scalar()
    return readable(MonitorState, kept) or MonitorState(host=host)


def _write(connection: sa.Connection, monitor: str, state: MonitorState) -> None:
    values = state.model_dump(mode="json")
    here = (monitor_states.c.host == state.host, monitor_states.c.look == monitor)
    if connection.execute(monitor_states.update().where(*here).values(state=values)).rowcount == 0:
        connection.execute(monitor_states.insert().values(host=state.host, look=monitor, state=values))
