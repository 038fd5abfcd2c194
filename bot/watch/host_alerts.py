"""Where a host's monitors report in a fleet: to the bot by the post box, and to the pager if the bot does not read it.

An alert is a row of this host's own database until it is in the post box (`bot.watch.undelivered_alerts`), so it waits while
PostgreSQL is away. A notice, such as the end of a fault, waits in memory only.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import structlog

from bot.presenter import alerts as texts
from bot.settings.model import Settings
from bot.store.records import Alert, MonitorNotice
from bot.store.store import Store
from bot.watch.pages import Pages
from bot.watch.tasks import Tasks
from bot.watch.undelivered_alerts import UndeliveredAlerts
from gpu_actions.models import VerdictKind

if TYPE_CHECKING:
    from bot.fleet.postbox import HostEnd

log = structlog.get_logger()

LOOK_S = 2.0
NOTICES = 50


class HostAlerts:
    """Takes what monitors report. `send` carries it to the bot."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._undelivered = UndeliveredAlerts(store)
        self._pages = Pages(settings.paging, store)
        self._notices: deque[MonitorNotice] = deque(maxlen=NOTICES)
        self._unread: dict[str, asyncio.Event] = {}
        self._changed = asyncio.Event()
        self._changed.set()  # an earlier process may have left alerts
        self._tasks = Tasks("a page could not be handled")

    def report(self, alert: Alert) -> None:
        """Report an alert that is already kept. Page the on-call about a reason to fall back that the bot does not read."""
        if alert.verdict is VerdictKind.FALL_BACK and self._pages.enabled:
            read = self._unread.setdefault(alert.id, asyncio.Event())
            self._tasks.spawn(self._page(alert, read))
        self._changed.set()

    def notice(self, notice: MonitorNotice) -> None:
        """Report what is no alert, and close the pages of a fault that is over."""
        if notice.notice == "clear":
            self._tasks.spawn(self._pages.cleared(notice))
        self._notices.append(notice)
        self._changed.set()

    async def send(self, end: "HostEnd") -> None:
        """Put into the post box what is kept, for ever. Raise Away while PostgreSQL does not answer; nothing is lost."""
        while True:
            if self._changed.is_set():
                self._changed.clear()
                try:
                    await self._send_all(end)
                except BaseException:
                    self._changed.set()
                    raise
            for alert_id in tuple(self._unread):
                if not await end.is_unread("alert", alert_id):
                    self._unread.pop(alert_id).set()
            try:
                async with asyncio.timeout(LOOK_S if self._unread else None):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _send_all(self, end: "HostEnd") -> None:
        for alert in await asyncio.to_thread(self._undelivered.all):
            await end.report("alert", alert.id, alert.model_dump(mode="json"))
            await asyncio.to_thread(self._undelivered.delivered, alert)
        while self._notices:
            notice = self._notices[0]
            await end.report("alert", notice.key, notice.model_dump(mode="json"))
            self._notices.remove(notice)

    async def work_on_pages(self) -> None:
        """Send the pages that an earlier process or a bad hour left unsent."""
        await self._pages.work()

    async def _page(self, alert: Alert, read: asyncio.Event) -> None:
        automatic = alert.cause in self._settings.monitors.auto_fallback
        if key := await self._pages.keep(alert, next_action=texts.page(alert, automatic=automatic)):
            await self._pages.follow(key, read)

    async def close(self) -> None:
        """Cancel the tasks. What was not sent is sent after the next start."""
        await self._tasks.close()
