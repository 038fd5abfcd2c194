"""Page the on-call by a webhook when an alert cannot be told in Slack, and close the page when the fault is gone.

A page is kept first, then sent until the pager takes it; so is its end, which comes with the end of the fault or of the host's
incident. Both outlive the bot.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from aiohttp import ClientError, ClientSession, ClientTimeout

from bot.settings.watch import PagingSettings
from bot.store.records import Alert, MonitorNotice
from bot.store.store import Store
from bot.watch.page_rows import PageRows
from bot.watch.pager_kinds import PAGERS, Page
from gpu_actions.models import JsonObject
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

TIMEOUT_S = 10.0
RETRY_FIRST_S, RETRY_MAX_S = 2.0, 60.0
TRIES = 200
"""About three hours; what was refused for so long waits for the next round of `work`, for a day."""


@dataclass(eq=False)
class Pages:
    """Sends pages. Without an address in the settings nothing is sent."""

    settings: PagingSettings
    store: Store
    problem: str = field(default="", init=False)
    """Why the pager did not take the last page, for the health; empty if it did."""

    def __post_init__(self) -> None:
        self._rows = PageRows(self.store)
        self._busy: set[str] = set()

    @property
    def enabled(self) -> bool:
        return bool(address(self.settings))

    async def keep(self, alert: Alert, *, next_action: str) -> str:
        """Keep the page of an alert, and return its key for `follow`; empty if nobody is paged, or was already."""
        if not self.enabled:
            return ""
        page = Page(
            dedup_key=f"gpu-oncall/{alert.host}/{alert.cause}",
            host=alert.host,
            cause=alert.cause,
            summary=f"{alert.title}: {alert.reason}",
            next_action=next_action,
            at_s=alert.at_s,
        )
        key = f"{alert.host}|{alert.id}"
        is_wanted = await asyncio.to_thread(self._rows.keep, key, alert.source, page, wait_s=self._wait_s)
        return key if is_wanted else ""

    async def follow(self, key: str, told: asyncio.Event) -> None:
        """Send a page that was kept, unless it is to be sent only without Slack, and `told` is set within `after_s`."""
        if self.settings.when == "slack_away":
            try:
                async with asyncio.timeout(self._wait_s):
                    await told.wait()
                await asyncio.to_thread(self._rows.drop_unsent, key)
                return
            except TimeoutError:
                log.warning("Slack did not take an alert; the on-call is paged", page=key)
        await self._bring(key)

    @property
    def _wait_s(self) -> float:
        return self.settings.after_s if self.settings.when == "slack_away" else 0.0

    async def resolve(self, host: str, *, matches: Callable[[str, str], bool]) -> None:
        """Close the pages of a host whose source and cause match."""
        keys = await asyncio.to_thread(self._rows.close, host, matches)
        await asyncio.gather(*map(self._bring, keys))

    async def cleared(self, notice: MonitorNotice) -> None:
        """Close the pages of a fault that its monitor reports to be over."""
        await self.resolve(notice.host, matches=lambda source, _: source == notice.source)

    async def work(self) -> None:
        """Send and close what is due: what an earlier process or pager left, and the pages of closed incidents."""
        if self.enabled:
            await asyncio.to_thread(self._rows.close_with_incidents)
            await asyncio.gather(*map(self._bring, await asyncio.to_thread(self._rows.due)))

    async def _bring(self, key: str) -> None:
        """Send a page, and its end, if they are still wanted."""
        if key in self._busy:
            return
        self._busy.add(key)
        pager, secret = PAGERS[self.settings.kind], self.settings.key.get_secret_value()
        try:
            page = await asyncio.to_thread(self._rows.unsent, key)
            if page is not None and await self._send(pager.trigger(page, secret), key, self._rows.unsent):
                await asyncio.to_thread(self._rows.sent, key)
            page = await asyncio.to_thread(self._rows.closing, key)
            if page is not None and await self._send(
                pager.resolve(page.dedup_key, secret), key, self._rows.closing
            ):
                await asyncio.to_thread(self._rows.closed, key)
        finally:
            self._busy.discard(key)

    async def _send(self, body: JsonObject, key: str, wanted: Callable[[str], Page | None]) -> bool:
        """Send an event until it is taken, or no longer wanted. Return True if it was taken."""
        pause_s = RETRY_FIRST_S
        headers = PAGERS[self.settings.kind].headers(self.settings.key.get_secret_value())
        async with ClientSession(timeout=ClientTimeout(total=TIMEOUT_S), trust_env=True) as session:
            for _ in range(TRIES):
                if await asyncio.to_thread(wanted, key) is None:
                    return False
                try:
                    async with session.post(address(self.settings), json=body, headers=headers) as answer:
                        if answer.status < 300:
                            self.problem = ""
                            return True
                        said = redacted_head(await answer.text(), 200)
                        problem = f"the pager answered {answer.status}: {said}"
                except (ClientError, OSError, TimeoutError, UnicodeDecodeError) as error:
                    problem = f"the pager cannot be reached: {redacted_head(repr(error), 200)}"
                if problem != self.problem:
                    log.error("a page was not taken; trying again", reason=problem)
                self.problem = problem
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
        log.critical("a page was not taken for hours", reason=self.problem)
        return False


def address(settings: PagingSettings) -> str:
    """Return where pages are sent, or an empty string if nobody is paged."""
    if settings.url or not settings.key.get_secret_value():
        return settings.url
    return PAGERS[settings.kind].default_url
