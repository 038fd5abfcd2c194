"""The monitors of a host of a fleet: the same checks as on one host, reported to the bot by the post box."""

from bot.runs.runs import Runs
from bot.settings.model import Settings
from bot.store.records import Person
from bot.store.store import Store
from bot.watch.host_alerts import HostAlerts
from bot.watch.monitor_memory import MonitorMemory
from bot.watch.monitors import Monitors
from bot.watch.scheduler import Schedule

PAGES_EVERY_S = 60.0


class HostWatch:
    """Watches this host between `start` and `close`."""

    def __init__(self, settings: Settings, *, runs: Runs, store: Store) -> None:
        self._settings = settings
        self.alerts = HostAlerts(settings, store)
        self.monitors = Monitors(
            settings.monitors,
            store=store,
            hosts=runs.hosts.get,
            alerts=self.alerts,
            memory=MonitorMemory(store, settings.monitors),
        )
        self._schedule = Schedule()

    def acknowledge(self, host: str, cause: str, by: Person) -> None:
        """Keep quiet about a cause that a person is handling."""
        self.monitors.acknowledge(host, cause, by=by)

    def start(self) -> None:
        self._schedule.every(PAGES_EVERY_S, "pages", self.alerts.work_on_pages)
        if self._settings.monitors.enabled:
            self.monitors.schedule(self._schedule, self._settings.hosts)
        self._schedule.start()

    async def close(self) -> None:
        self._schedule.close()
        await self.alerts.close()
