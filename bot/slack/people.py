"""Who a Slack user is: a full member, a guest, a person of another organisation, an app, or deactivated.

Read with `users.info` and cached. Groups, channels and ids say nothing of this: a user group may hold guests, and a shared
channel has members of other workspaces, who mention the bot and press its buttons like everybody else.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from aiohttp import ClientError
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

T = TypeVar("T")
LOOKUP_TIMEOUT_S = 5.0
Kind = Literal["member", "guest", "partner", "bot", "deactivated"]


class LookupFailed(Exception):
    """Raised if Slack did not answer a question about people. The message says why."""


@dataclass(frozen=True)
class Profile:
    """A user as far as access needs it. `team` is the workspace that the user belongs to."""

    kind: Kind
    team: str


class People:
    """Reads profiles and remembers each for `ttl_s` seconds. `clock` returns monotonic seconds.

    `home_team` returns the id of the own workspace if it is known already, so that nobody waits for `auth.test`.
    """

    def __init__(
        self,
        client: AsyncWebClient,
        *,
        ttl_s: float,
        clock: Callable[[], float],
        home_team: Callable[[], str] = str,
    ) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._clock = clock
        self._home = ""
        self._home_team = home_team
        self._known: dict[str, tuple[float, Profile]] = {}
        self._lock = asyncio.Lock()

    async def of(self, user_id: str) -> Profile:
        """Return a user's profile. Raises LookupFailed."""
        async with self._lock:
            read_at, profile = self._known.get(user_id, (-math.inf, Profile("bot", "")))
            if self._clock() - read_at < self._ttl_s:
                return profile
            profile = await answered(self._read(user_id))
            self._known[user_id] = (self._clock(), profile)
            return profile

    async def _read(self, user_id: str) -> Profile:
        if not self._home:
            self._home = self._home_team() or str((await self._client.auth_test())["team_id"])
        user = (await self._client.users_info(user=user_id))["user"]
        return profile_of(user, self._home)


def profile_of(user: dict[str, Any], home_team: str) -> Profile:
    """Return the profile in a user object of Slack's API.

    A person of the same Enterprise organisation whose profile says another workspace is a member if `enterprise_user` lists
    the home workspace among its teams.
    """
    team = str(user.get("team_id") or "")
    shared = home_team in ((user.get("enterprise_user") or {}).get("teams") or ())
    if user.get("deleted"):
        return Profile("deactivated", team)
    if user.get("is_bot") or user.get("id") == "USLACKBOT":
        return Profile("bot", team)
    if user.get("is_stranger") or (team and team != home_team and not shared):
        return Profile("partner", team)
    if user.get("is_restricted") or user.get("is_ultra_restricted"):
        return Profile("guest", team)
    return Profile("member", team)


async def answered(lookup: Awaitable[T]) -> T:
    """Await a call of the Slack client. Raises LookupFailed, naming Slack's error, if it fails or takes too long."""
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT_S):
            return await lookup
    except TimeoutError:
        raise LookupFailed(f"no answer within {LOOKUP_TIMEOUT_S:.0f} s") from None
    except SlackApiError as error:
        raise LookupFailed(str(error.response.get("error", "error"))) from None
    except (SlackClientError, ClientError, OSError) as error:
        raise LookupFailed(type(error).__name__) from error
