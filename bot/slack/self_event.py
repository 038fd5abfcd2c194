"""An event that the bot causes itself, to find out whether Slack's events still reach it.

It puts a reaction on one of its older messages, at which nobody looks, and takes it away again. Slack sends `reaction_added`
to the app that reacted, too (Bolt acknowledges and drops it). A reaction notifies nobody but the author of the message, and
marks no channel as unread.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from bot.slack.posts import SLACK_FAILURES
from bot.store.store import Store
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

EMOJI = "satellite_antenna"
NEWEST = 20
"""The oldest of so many newest messages gets the reaction; if it is gone, the next one."""
GONE = frozenset({"message_not_found", "channel_not_found", "not_in_channel", "is_archived", "thread_locked"})
"""Slack's errors for a message that can take no reaction; the next one is tried."""
CAME_BACK = "self-event"
"""Delivery key, kept for a week: an event of our own has arrived, so the app subscribes to it."""


ARRIVES_S, PROBES = 15.0, 2
"""Slack's events do not reach us if so many of our own in a row have not arrived within this time."""


class SelfEvent:
    """Causes events. Calls to Slack that fail are logged: they say nothing about the way of its events to us.

    `never_came_back` is True once an event has not arrived and none ever did: the app may not subscribe to it.
    """

    def __init__(self, client: AsyncWebClient, store: Store) -> None:
        self._client = client
        self._store = store
        self._placed: tuple[str, str] | None = None
        self.never_came_back = False

    async def arrives(
        self, heard_at: Callable[[], float], *, is_over: Callable[[], bool] = lambda: False
    ) -> bool | None:
        """Cause events until Slack is heard. Return True if it was, False if not, None if that cannot be told.

        `heard_at` returns when Slack was last heard (monotonic seconds). A true `is_over` ends the attempt.
        """
        for _ in range(PROBES):
            began = time.monotonic()
            if not await self._cause():
                return None
            caused_at = time.monotonic()
            while (  # noqa: ASYNC110  (what is heard sets no event)
                heard_at() < began and not is_over() and time.monotonic() - caused_at < ARRIVES_S
            ):
                await asyncio.sleep(ARRIVES_S / 50)
            await self._clear()
            if is_over():
                return None
            if heard_at() >= began:
                await asyncio.to_thread(self._store.deliveries.first_time, CAME_BACK)
                self.never_came_back = False
                return True
        self.never_came_back = not await asyncio.to_thread(self._store.deliveries.seen, CAME_BACK)
        return None if self.never_came_back else False

    async def _cause(self) -> bool:
        """Cause an event. Return False if Slack refuses, or there is no message yet to react to."""
        await self._clear()
        try:
            for place in reversed(await asyncio.to_thread(self._store.newest_messages, NEWEST)):
                if await self._react(*place):
                    return True
        except SLACK_FAILURES as error:
            log.warning("no event could be caused to try the socket", error=redacted_head(repr(error), 200))
        return False

    async def _clear(self) -> None:
        """Take the last reaction away, now or at the next call."""
        if self._placed is None:
            return
        channel, ts = self._placed
        with contextlib.suppress(*SLACK_FAILURES):
            try:
                await self._client.reactions_remove(channel=channel, timestamp=ts, name=EMOJI)
            except SlackApiError as error:
                if error.response.get("error") not in GONE | {"no_reaction"}:
                    raise
            self._placed = None

    async def _react(self, channel: str, ts: str) -> bool:
        try:
            await self._client.reactions_add(channel=channel, timestamp=ts, name=EMOJI)
        except SlackApiError as error:
            code = error.response.get("error")
            if code in GONE:
                return False
            if code != "already_reacted":
                raise
            # An earlier process ended before it took its reaction away.
            await self._client.reactions_remove(channel=channel, timestamp=ts, name=EMOJI)
            await self._client.reactions_add(channel=channel, timestamp=ts, name=EMOJI)
        self._placed = (channel, ts)
        return True
