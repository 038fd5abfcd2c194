"""Who may do what: roles of the settings, held by user ids, user group ids (`S...`) and group handles (`@oncall`).

`refusal` both checks and words the answer, so the two cannot differ. Group members are read with `usergroups.users.list`
and cached for `access.groups_ttl_s`. The check fails closed: a group that cannot be read lets nobody in.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from aiohttp import ClientError
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from bot.settings.model import AccessSettings, Role
from bot.store.records import Person, UserError

log = structlog.get_logger()

LOOKUP_TIMEOUT_S = 5.0


class GroupUnreadable(Exception):
    """Raised if a user group's members cannot be read. The message says why."""


@dataclass(frozen=True)
class _Members:
    users: frozenset[str]
    read_at: float


class Access:
    """Decides whether a person may do something. `clock` returns monotonic seconds."""

    def __init__(
        self, settings: AccessSettings, client: AsyncWebClient, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._client = client
        self._clock = clock
        self._members: dict[str, _Members] = {}
        self._handles: dict[str, str] = {}
        self._handles_read_at: float | None = None
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
        group = self._handles.get(member.removeprefix("@").lower(), "") if member.startswith("@") else member
        if group.startswith("S"):
            return f"<!subteam^{group}|{member}>" if member.startswith("@") else f"<!subteam^{group}>"
        return f"<@{member}>" if member.startswith(("U", "W")) else member

    async def _users_of(self, group: str) -> frozenset[str]:
        async with self._lock:
            known = self._members.get(group)
            if known is not None and self._clock() - known.read_at < self._settings.groups_ttl_s:
                return known.users
            try:
                async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                    group_id = await self._group_id(group)
                    answer = await self._client.usergroups_users_list(usergroup=group_id)
            except TimeoutError:
                raise GroupUnreadable(f"no answer within {LOOKUP_TIMEOUT_S:.0f} s") from None
            except SlackApiError as error:
                raise GroupUnreadable(str(error.response.get("error", "error"))) from None
            except (SlackClientError, ClientError, OSError) as error:
                raise GroupUnreadable(type(error).__name__) from error
            users = frozenset(str(user) for user in answer.get("users") or ())
            self._members[group] = _Members(users, self._clock())
            return users

    async def _group_id(self, group: str) -> str:
        if not group.startswith("@"):
            return group
        handle = group.removeprefix("@").lower()
        fresh = (
            self._handles_read_at is not None
            and self._clock() - self._handles_read_at < self._settings.groups_ttl_s
        )
        if not fresh:
            answer = await self._client.usergroups_list()
            self._handles = {
                str(entry.get("handle", "")).lower(): str(entry["id"])
                for entry in answer.get("usergroups") or ()
            }
            self._handles_read_at = self._clock()
        if handle not in self._handles:
            raise GroupUnreadable("no user group has this handle")
        return self._handles[handle]
