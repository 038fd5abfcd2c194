"""The connection to Slack: who the bot is, and Socket Mode or HTTP for its events."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import structlog
from aiohttp import ClientError, web
from slack_bolt.adapter.socket_mode.aiohttp import AsyncSocketModeHandler
from slack_bolt.async_app import AsyncApp
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from bot.settings.model import Settings, SlackSettings
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

RETRY_S = 2.0
RETRY_MAX_S = 30.0
CLOSE_S = 10.0


class CannotStart(Exception):
    """The bot cannot start. The message says why and what to do."""


async def bot_user_id(settings: SlackSettings, stop: asyncio.Event) -> str:
    """Ask Slack for the bot's user id, and wait while Slack does not answer. Raise CannotStart if it refuses the token."""
    token = settings.bot_token.get_secret_value()
    if not token:
        raise CannotStart("slack.bot_token is not set: set GPU_ONCALL_SLACK__BOT_TOKEN (xoxb-...)")
    client = AsyncWebClient(token=token, base_url=settings.api_url, timeout=10)
    pause_s = RETRY_S
    while True:
        try:
            return str((await client.auth_test())["user_id"])
        except SlackApiError as error:
            if error.response.status_code != 429:
                raise CannotStart(
                    f"Slack refuses the bot token: {error.response.get('error')}; copy it again from the app's page"
                ) from None
        except (SlackClientError, ClientError, OSError, TimeoutError) as error:
            log.warning(
                "Slack does not answer, retrying", url=settings.api_url, error=redacted_head(repr(error), 200)
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause_s)
            raise CannotStart("stopped before Slack answered")
        pause_s = min(pause_s * 2, RETRY_MAX_S)


@contextlib.asynccontextmanager
async def connected(app: AsyncApp, settings: Settings) -> AsyncIterator[Callable[[], float | None]]:
    """Receive events from Slack during the block.

    Yield a function that returns the seconds since the last ping or pong of Socket Mode, or None before the first one. In
    HTTP mode it returns 0: every request proves that Slack is there.
    """
    if settings.slack.mode == "http":
        runner = web.AppRunner(
            app.server(port=settings.web.port + 1, path="/slack/events").web_app, access_log=None
        )
        await runner.setup()
        await web.TCPSite(runner, settings.web.host, settings.web.port + 1).start()
        try:
            yield lambda: 0.0
        finally:
            await runner.cleanup()
        return
    if not settings.slack.app_token.get_secret_value():
        raise CannotStart(
            "slack.app_token is not set: Socket Mode needs GPU_ONCALL_SLACK__APP_TOKEN (xapp-...)"
        )
    handler = AsyncSocketModeHandler(
        app,
        app_token=settings.slack.app_token.get_secret_value(),
        web_client=AsyncWebClient(base_url=settings.slack.api_url, timeout=10),
    )
    try:
        await handler.connect_async()  # type: ignore[no-untyped-call]
    except SlackApiError as error:
        raise CannotStart(
            f"Slack refuses the app token: {error.response.get('error')}; make one with connections:write"
        ) from None

    def silent_s() -> float | None:
        last = getattr(handler.client, "last_ping_pong_time", None)
        return None if last is None else max(0.0, time.time() - last)

    try:
        yield silent_s
    finally:
        try:
            async with asyncio.timeout(CLOSE_S):
                await handler.close_async()  # type: ignore[no-untyped-call]
        except TimeoutError:
            log.warning("the connection to Slack did not close in time; continuing without it")
