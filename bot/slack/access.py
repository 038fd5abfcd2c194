"""Who may do what: roles of the settings, held by user ids, user group ids (`S...`) and group handles (`@oncall`).

`refusal` both checks and words the answer, so the two cannot differ. Group members are read with `usergroups.users.list`
and cached for `access.groups_ttl_s`. The check fails closed: a group that cannot be read lets nobody in.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

import structlog
from aiohttp import ClientError
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from bot.settings.model import AccessSettings, Role
from bot.store.records import Person, UserError

log = structlog.get_logger()

LOOKUP_TIMEOUT_S = 5.0
HANDLES = "handles"
"""Cache key of the user groups' handles; a group's key is its id or handle."""


class GroupUnreadable(Exception):
    """Raised if a user group's members cannot be read. The message says why."""


class Access:
    """Decides whether a person may do something. `clock` returns monotonic seconds."""

    def __init__(
        self, settings: AccessSettings, client: AsyncWebClient, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._client = client
        self._clock = clock
        self._cache: dict[str, tuple[float, Mapping[str, str]]] = {}
        self._lock = asyncio.Lock()

    @property
    def change_role(self) -> Role:
        """The role that may change a host or disturb its service."""
        return self._settings.change

    async def refusal(self, person: Person, role: Role, doing: str) -> str | None:
        """Return None if the person holds the role, else one line that says why not and whom to ask."""
        members = self._settings.roles.get(role, ())
        if not members:
            return (
                f"Nobody may {doing}: the role {role!r} has no members. "
                f"Add user ids or a user group to access.roles.{role} in the settings."
            )
        if person.id in members:
            return None
        unreadable: list[str] = []
        for group in (member for member in members if member.startswith(("S", "@"))):
            try:
                if person.id in await self._users_of(group):
                    return None
            except GroupUnreadable as error:
                unreadable.append(f"{group} ({error})")
        if unreadable:
            return (
                f"I cannot tell whether you may {doing}: I could not read the members of {', '.join(unreadable)} from Slack. "
                f"Try again, or have your user id {person.id} added to access.roles.{role}."
            )
        return (
            f"You may not {doing}: that needs the role {role!r}, held by {', '.join(members)}. "
            f"Ask one of them, or have your user id {person.id} added to access.roles.{role}."
        )

    async def require(self, person: Person, role: Role, doing: str) -> None:
        """Raise UserError with the refusal if the person does not hold the role."""
        if (text := await self.refusal(person, role, doing)) is not None:
            raise UserError(text)

    def mention(self, role: str) -> str:
        """Return the members of a role as mentions that notify them; a handle not resolved yet is plain text."""
        members = next((members for name, members in self._settings.roles.items() if name == role), ())
        return " ".join(self._mention(member) for member in members)

    async def warm(self) -> None:
        """Read all groups once, so that the first mention needs no lookup. Never raises."""
        for group in {
            m for members in self._settings.roles.values() for m in members if m.startswith(("S", "@"))
        }:
            try:
                await self._users_of(group)
            except GroupUnreadable as error:
                log.warning("user group cannot be read", group=group, reason=str(error))

    def _mention(self, member: str) -> str:
        if member.startswith("@"):
            _, handles = self._cache.get(HANDLES, (0, {}))
            group = handles.get(member[1:].lower())
            return f"<!subteam^{group}|{member}>" if group else member
        if member.startswith("S"):
            return f"<!subteam^{member}>"
        return f"<@{member}>" if member.startswith(("U", "W")) else member

    async def _users_of(self, group: str) -> Collection[str]:
        """Return the user ids of a group id or handle. Raises GroupUnreadable."""
        async with self._lock:
            try:
                async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                    return await self._cached(group, self._read_users)
            except TimeoutError:
                raise GroupUnreadable(f"no answer within {LOOKUP_TIMEOUT_S:.0f} s") from None
            except SlackApiError as error:
                raise GroupUnreadable(str(error.response.get("error", "error"))) from None
            except (SlackClientError, ClientError, OSError) as error:
                raise GroupUnreadable(type(error).__name__) from error

    async def _cached(
        self, key: str, read: Callable[[str], Awaitable[Mapping[str, str]]]
    ) -> Mapping[str, str]:
        read_at, found = self._cache.get(key, (-math.inf, {}))
        if self._clock() - read_at >= self._settings.groups_ttl_s:
            found = await read(key)
            self._cache[key] = (self._clock(), found)
        return found

    async def _read_users(self, group: str) -> Mapping[str, str]:
        group_id = group
        if group.startswith("@"):
            group_id = (await self._cached(HANDLES, self._read_handles)).get(group[1:].lower(), "")
            if not group_id:
                raise GroupUnreadable("no user group has this handle")
        answer = await self._client.usergroups_users_list(usergroup=group_id)
        return {str(user): group_id for user in answer.get("users") or ()}

    async def _read_handles(self, _: str) -> Mapping[str, str]:
        """Return the id of every user group by its handle."""
        groups = (await self._client.usergroups_list()).get("usergroups") or ()
        return {str(group.get("handle", "")).lower(): str(group["id"]) for group in groups}
