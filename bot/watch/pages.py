"""Page the on-call by a webhook when an alert cannot be told in Slack, and close the page when the fault is gone.

A page is repeated until the pager takes it. It belongs to an alert, whose row outlives the bot: after a restart it is sent
if it was not. What was sent is remembered as delivery keys, so that it is sent once and can be closed.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from aiohttp import ClientError, ClientSession, ClientTimeout

from bot.settings.model import PagingSettings
from bot.store.records import Alert
from bot.store.store import Store
from bot.watch.pager_kinds import PAGERS, Page
from gpu_actions.models import JsonObject
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

TIMEOUT_S = 10.0
RETRY_FIRST_S, RETRY_MAX_S = 2.0, 60.0
TRIES = 200
"""About three hours; what was refused for so long is refused for good."""


@dataclass(eq=False)
class Pages:
    """Sends pages. Without an address in the settings nothing is sent."""

    settings: PagingSettings
    store: Store
    problem: str = field(default="", init=False)
    """Why the pager did not take the last page, for the health; empty if it did."""

    @property
    def enabled(self) -> bool:
        return bool(self._url)

    @property
    def _url(self) -> str:
        pager = PAGERS[self.settings.kind]
        return self.settings.url or (pager.default_url if self.settings.key.get_secret_value() else "")

    async def page(self, alert: Alert, *, told: asyncio.Event, next_action: str) -> None:
        """Page the on-call about an alert, unless it was, or Slack has taken the alert within `after_s`."""
        if not self.enabled or await asyncio.to_thread(self.store.deliveries.seen, _key(alert)):
            return
        if self.settings.when == "slack_away":
            try:
                async with asyncio.timeout(self.settings.after_s):
                    await told.wait()
                return
            except TimeoutError:
                log.warning(
                    "Slack did not take an alert; the on-call is paged", host=alert.host, cause=alert.cause
                )
        page = Page(
            dedup_key=_dedup(alert.host, alert.cause),
            host=alert.host,
            cause=alert.cause,
            summary=f"{alert.title}: {alert.reason}",
            next_action=next_action,
            at_s=alert.at_s,
        )
        if await self._send(PAGERS[self.settings.kind].trigger(page, self._secret)):
            await asyncio.to_thread(self.store.deliveries.first_time, _key(alert))

    async def resolve(self, host: str, *, matches: Callable[[str, str], bool]) -> None:
        """Close the pages of a host whose source and cause match."""
        if not self.enabled:
            return
        for key in await asyncio.to_thread(self.store.deliveries.with_prefix, f"page|{host}|"):
            _, _, source, cause, _ = key.split("|")
            if not matches(source, cause) or await asyncio.to_thread(
                self.store.deliveries.seen, f"closed-{key}"
            ):
                continue
            if await self._send(PAGERS[self.settings.kind].resolve(_dedup(host, cause), self._secret)):
                await asyncio.to_thread(self.store.deliveries.first_time, f"closed-{key}")

    @property
    def _secret(self) -> str:
        return self.settings.key.get_secret_value()

    async def _send(self, body: JsonObject) -> bool:
        """Send an event until it is taken. Return False if it never was."""
        pause_s = RETRY_FIRST_S
        async with ClientSession(timeout=ClientTimeout(total=TIMEOUT_S), trust_env=True) as session:
            for _ in range(TRIES):
                try:
                    headers = PAGERS[self.settings.kind].headers(self._secret)
                    async with session.post(self._url, json=body, headers=headers) as answer:
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
        log.critical("a page was never taken", reason=self.problem)
        return False


def _dedup(host: str, cause: str) -> str:
    return f"gpu-oncall/{host}/{cause}"


def _key(alert: Alert) -> str:
    source, cause = (text.replace("|", "/")[:64] for text in (alert.source, alert.cause))
    return f"page|{alert.host}|{source}|{cause}|{alert.id}"
