"""Who may do what: roles of the settings, held by user ids, user groups (`S...`, `@oncall`) and channels (`C...`, `#name`).

`refusal` both checks and words the answer, so the two cannot differ. A role is for full members of the workspace; guests and
people of other organisations hold it only where the settings name them. Members of groups and channels are cached for
`access.groups_ttl_s`. The check fails closed: a group that cannot be read lets nobody in.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

import structlog
from slack_sdk.web.async_client import AsyncWebClient

from bot.settings.model import AccessSettings, Role
from bot.slack.channels import Channels, ChannelUnknown
from bot.slack.people import LookupFailed, People, answered
from bot.store.records import Person, UserError

log = structlog.get_logger()

HANDLES = "handles"
"""Cache key of the user groups' handles; a group's key is its id or handle."""
PAGE = 500


class Access:
    """Decides whether a person may do something. `clock` returns monotonic seconds."""

    def __init__(
        self,
        settings: AccessSettings,
        client: AsyncWebClient,
        *,
        clock: Callable[[], float] = time.monotonic,
        home_team: Callable[[], str] = str,
    ) -> None:
        self._settings = settings
        self._client = client
        self._clock = clock
        self._people = People(client, ttl_s=settings.groups_ttl_s, clock=clock, home_team=home_team)
        self._channels = Channels(client)
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
        if stranger := await self._stranger(person, doing, named=person.id in members):
            return stranger
        if person.id in members:
            return None
        unreadable: list[str] = []
        for group in (member for member in members if _is_group(member)):
            try:
                if person.id in await self._users_of(group):
                    return None
            except LookupFailed as error:
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

    async def reader_refusal(self, person: Person, doing: str) -> str:
        """Return why somebody may not even start what only reads a host, or an empty string.

        Guests may, and so may anyone while Slack does not say who they are: reading harms nobody.
        """
        if not _is_slack_user(person):
            return ""
        try:
            profile = await self._people.of(person.id)
        except LookupFailed:
            return ""
        return "" if profile.kind == "guest" else await self._stranger(person, doing)

    async def _stranger(self, person: Person, doing: str, *, named: bool = False) -> str:
        """Return why somebody who is no full member may not do something, or an empty string.

        `named`: the settings name this user id, which lets in a guest, a person of another organisation, and a person whose
        profile Slack does not return now.
        """
        if not _is_slack_user(person):
            return ""  # a shell on the host, or a monitor
        try:
            profile = await self._people.of(person.id)
        except LookupFailed as error:
            if named:
                return ""
            return (
                f"I cannot tell whether you may {doing}: I could not read from Slack whether you are a member ({error}). "
                f"Try again, or have your user id {person.id} added to access.roles."
            )
        match profile.kind:
            case "deactivated":
                return f"The account {person.id} is deactivated, so it may not {doing}."
            case "bot":
                return f"{person.id} is an app, and apps may not {doing}."
            case "guest" if not named and person.id not in self._settings.guests:
                return f"You may not {doing}: you are a guest here. To allow it, add {person.id} to access.guests."
            case "partner" if not named and profile.team not in self._settings.partner_teams:
                return (
                    f"You may not {doing}: you belong to another organisation ({profile.team}). "
                    f"To allow it, add {profile.team} to access.partner_teams."
                )
        return ""

    async def standing(self, person: Person) -> dict[Role, str]:
        """Return for each role of the settings why the person does not hold it; empty if they do."""
        return {
            role: await self.refusal(person, role, f"act as {role}") or "" for role in self._settings.roles
        }

    async def through(self, person: Person, role: Role) -> str:
        """Return through which member of a role the person holds it: their own id, a group or a channel; empty if none."""
        members = self._settings.roles.get(role, ())
        if person.id in members:
            return "named in the settings"
        for group in (member for member in members if _is_group(member)):
            try:
                if person.id in await self._users_of(group):
                    return f"as a member of {group}"
            except LookupFailed:
                continue
        return ""

    async def kind(self, person: Person) -> str:
        """Return what the person is here, for people: `a full member`, `a guest`; `unknown` if Slack does not say."""
        try:
            profile = await self._people.of(person.id)
        except LookupFailed as error:
            return f"unknown to me ({error})"
        of_another = f"a member of another organisation ({profile.team})"
        return {"member": "a full member", "guest": "a guest", "partner": of_another}.get(
            profile.kind, profile.kind
        )

    async def require(self, person: Person, role: Role, doing: str) -> None:
        """Raise UserError with the refusal if the person does not hold the role."""
        if (text := await self.refusal(person, role, doing)) is not None:
            raise UserError(text)

    async def members_of(self, role: str) -> list[str]:
        """Return the user ids of a role's people, groups and channels resolved; a group that cannot be read has none."""
        members = next((members for name, members in self._settings.roles.items() if name == role), ())
        found = [member for member in members if member.startswith(("U", "W"))]
        for group in (member for member in members if _is_group(member)):
            with contextlib.suppress(LookupFailed):
                found += await self._users_of(group)
        return list(dict.fromkeys(found))

    def mention(self, role: str) -> str:
        """Return the members of a role as mentions that notify them; a handle not resolved yet is plain text."""
        members = next((members for name, members in self._settings.roles.items() if name == role), ())
        return " ".join(self._mention(member) for member in members)

    async def warm(self) -> None:
        """Read all groups once, so that the first mention needs no lookup. Never raises."""
        for group in {m for members in self._settings.roles.values() for m in members if _is_group(m)}:
            try:
                await self._users_of(group)
            except LookupFailed as error:
                log.warning("user group cannot be read", group=group, reason=str(error))

    def _mention(self, member: str) -> str:
        if member.startswith("@"):
            _, handles = self._cache.get(HANDLES, (0, {}))
            group = handles.get(member[1:].lower())
            return f"<!subteam^{group}|{member}>" if group else member
        if member.startswith("S"):
            return f"<!subteam^{member}>"
        if member.startswith(("C", "G")):
            return f"<#{member}>"
        return f"<@{member}>" if member.startswith(("U", "W")) else member

    async def _users_of(self, group: str) -> Collection[str]:
        """Return the user ids of a user group or a channel. Raises LookupFailed."""
        async with self._lock:
            return await answered(self._cached(group, self._read_users))

    async def _cached(
        self, key: str, read: Callable[[str], Awaitable[Mapping[str, str]]]
    ) -> Mapping[str, str]:
        read_at, found = self._cache.get(key, (-math.inf, {}))
        if self._clock() - read_at >= self._settings.groups_ttl_s:
            found = await read(key)
            self._cache[key] = (self._clock(), found)
        return found

    async def _read_users(self, group: str) -> Mapping[str, str]:
        if group.startswith(("C", "G", "#")):
            return await self._read_channel(group)
        group_id = group
        if group.startswith("@"):
            group_id = (await self._cached(HANDLES, self._read_handles)).get(group[1:].lower(), "")
            if not group_id:
                raise LookupFailed("no user group has this handle")
        answer = await self._client.usergroups_users_list(usergroup=group_id)
        return {str(user): group_id for user in answer.get("users") or ()}

    async def _read_channel(self, name: str) -> Mapping[str, str]:
        """Return the members of a channel, by its id or its name."""
        try:
            channel = await self._channels.id_of(name)
        except ChannelUnknown:
            raise LookupFailed("I see no such channel") from None
        found: dict[str, str] = {}
        cursor = ""
        while True:
            page = await self._client.conversations_members(channel=channel, limit=PAGE, cursor=cursor)
            found |= {str(user): channel for user in page.get("members") or ()}
            cursor = str((page.get("response_metadata") or {}).get("next_cursor") or "")
            if not cursor:
                return found

    async def _read_handles(self, _: str) -> Mapping[str, str]:
        """Return the id of every user group by its handle."""
        groups = (await self._client.usergroups_list()).get("usergroups") or ()
        return {str(group.get("handle", "")).lower(): str(group["id"]) for group in groups}


def _is_group(member: str) -> bool:
    """Return True for a user group or a channel, whose members Slack knows."""
    return member.startswith(("S", "@", "C", "G", "#"))


def _is_slack_user(person: Person) -> bool:
    return person.id[:1] in ("U", "W") and person.id.isalnum()
