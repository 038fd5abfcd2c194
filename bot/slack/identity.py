"""Who the bot is in Slack: asked once at the start and again every minute, so that a revoked token is noticed.

Nothing waits for the answer: Bolt authorizes requests with what is known (`authorized`), and the host's work needs none of it.
"""

import asyncio
import time
from email.utils import parsedate_to_datetime

import structlog
from aiohttp import ClientError
from slack_bolt.authorization import AuthorizeResult
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from bot.slack.manifest import bot_scopes
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

CHECK_S = 60.0
RETRY_S = 2.0
RETRY_MAX_S = 30.0
TIMEOUT_S = 10
CLOCK_MOMENT_S = 15.0
"""Answers take time, and their date has whole seconds: a smaller difference of the clocks is none."""
UNREACHABLE = (SlackClientError, ClientError, OSError, TimeoutError)
TOKEN_REFUSED = frozenset(
    {
        "invalid_auth",
        "not_authed",
        "account_inactive",
        "token_revoked",
        "token_expired",
        "not_allowed_token_type",
    }
)
"""Slack's errors for a token that no repetition makes valid."""


def _clock_ahead_s(date: str) -> float:
    try:
        ahead_s = time.time() - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return 0.0
    return ahead_s if abs(ahead_s) > CLOCK_MOMENT_S else 0.0


class Identity:
    """The bot's own ids, the scopes it lacks, and the reason why its token does not work (`problem`, empty if it does).

    `clock_ahead_s` is how far this machine's clock is ahead of Slack's, as far as they differ by more than a moment.
    """

    def __init__(self, *, token: str = "", api_url: str = "", user_id: str = "", rooms: bool = False) -> None:
        self._token = token
        self._api_url = api_url
        self._needed = set(bot_scopes(rooms=rooms))
        self.user_id = user_id
        self.name = "gpu-oncall"
        self.bot_id = self.team_id = self.team_url = ""
        self.problem = ""
        self.missing_scopes: tuple[str, ...] = ()
        self.clock_ahead_s = 0.0
        self.known = asyncio.Event()

    def authorized(self) -> AuthorizeResult:
        """Return what Bolt needs to know of the bot, without a request to Slack."""
        return AuthorizeResult(
            enterprise_id=None,
            team_id=None,
            bot_token=self._token,
            bot_user_id=self.user_id or None,
            bot_id=self.bot_id or None,
        )

    async def follow(self) -> None:
        """Ask Slack now and every minute, with growing pauses while it does not answer, until cancelled."""
        pause_s = RETRY_S
        client = AsyncWebClient(token=self._token, base_url=self._api_url, timeout=TIMEOUT_S)
        while True:
            problem = await self._check(client)
            if problem and problem != self.problem:
                log.error("Slack does not know the bot", reason=problem)
            self.problem = problem
            await asyncio.sleep(pause_s if problem else CHECK_S)
            pause_s = min(pause_s * 2, RETRY_MAX_S) if problem else RETRY_S

    async def _check(self, client: AsyncWebClient) -> str:
        try:
            answer = await client.auth_test()
        except SlackApiError as error:
            code = str(error.response.get("error") or "")
            if code in TOKEN_REFUSED:
                return f"Slack refuses the bot token ({code}): install the app again and copy its token"
            return f"auth.test failed: {code or error.response.status_code}; trying again"
        except UNREACHABLE as error:
            return f"Slack cannot be reached: {redacted_head(repr(error), 200)}"
        self.user_id, self.bot_id = str(answer["user_id"]), str(answer.get("bot_id") or "")
        self.team_id, self.team_url = str(answer["team_id"]), str(answer.get("url") or "")
        self.name = str(answer.get("user") or self.name)
        self.clock_ahead_s = _clock_ahead_s(answer.headers.get("Date", ""))
        granted = {scope.strip() for scope in answer.headers.get("x-oauth-scopes", "").split(",")} - {""}
        missing = tuple(sorted(self._needed - granted)) if granted else ()
        if missing and missing != self.missing_scopes:
            log.error(
                "the app lacks scopes: apply `gpu-oncall manifest` and install it again", missing=missing
            )
        self.missing_scopes = missing
        self.known.set()
        return ""
