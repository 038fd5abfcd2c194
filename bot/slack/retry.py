"""Repeat a Slack call until Slack accepts it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from bot.slack.channels import ChannelUnknown
from bot.slack.posts import SLACK_FAILURES, retry_after_s
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

RETRY_FIRST_S, RETRY_MAX_S, GIVE_UP_S = 2.0, 30.0, 3600.0
T = TypeVar("T")
AWAY = (*SLACK_FAILURES, ChannelUnknown)


async def until_accepted(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call with growing pauses until it succeeds. Raises the last failure after an hour."""
    pause_s, waited_s = RETRY_FIRST_S, 0.0
    while True:
        try:
            return await call()
        except AWAY as error:
            if waited_s >= GIVE_UP_S:
                raise
            log.warning("Slack did not accept a call, trying again", error=redacted_head(str(error), 300))
            pause_s = max(pause_s, retry_after_s(error) or 0.0)
        await asyncio.sleep(pause_s)
        waited_s += pause_s
        pause_s = min(2 * pause_s, RETRY_MAX_S)
