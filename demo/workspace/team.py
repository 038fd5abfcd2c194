"""Who and what is in a fresh workspace: people, user groups, channels, the app and its slash commands.

Slack calls a workspace a team. Ids have Slack's form (`U...`, `C...`, `S...`) because bots match them with patterns. The
default team is the cast of an incident: an on-call engineer, an incident lead who can approve, and a viewer.
"""

from dataclasses import dataclass
from typing import Literal

DEFAULT_SCOPES = (
    "app_mentions:read", "bookmarks:read", "bookmarks:write", "canvases:write", "channels:history", "channels:join",
    "channels:manage", "channels:read", "chat:write", "chat:write.public", "commands", "files:read", "files:write",
    "groups:history", "groups:read", "im:history", "im:read", "im:write", "pins:read", "pins:write",
    "reactions:read", "reactions:write", "usergroups:read", "users.profile:read", "users:read",
)  # fmt: skip
"""Scopes of the bot token. A method that needs one of them is refused without it (`missing_scope`)."""

# Not secrets: they open a workspace that listens on loopback only and refuses other web pages (see loopback_only.py).
DEFAULT_BOT_TOKEN = "xoxb-local-workspace"  # noqa: S105
DEFAULT_APP_TOKEN = "xapp-local-workspace"  # noqa: S105


@dataclass(frozen=True, slots=True)
class User:
    """A person as whom one can act on the page. `title` is the role shown beside the name.

    `kind` is a full member, a guest of this workspace, or a partner: a member of another workspace (`team`) who is here
    through Slack Connect. A person who `is_deactivated` can do nothing.
    """

    id: str
    name: str
    real_name: str
    title: str = ""
    kind: Literal["member", "guest", "partner"] = "member"
    team: str = ""
    is_deactivated: bool = False


@dataclass(frozen=True, slots=True)
class UserGroup:
    """A user group: `handle` is what people type after `@`, `users` are user ids."""

    id: str
    handle: str
    name: str
    users: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PublicChannel:
    """A public channel. All members and the bot are in it; one that `is_shared` has guests and partners too."""

    id: str
    name: str
    topic: str = ""
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class App:
    """The one app of the workspace and its bot user."""

    app_id: str = "A0GPUONCALL"
    bot_id: str = "B0GPUONCALL"
    user_id: str = "U0GPUONCALL"
    name: str = "gpu-oncall"
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    events: tuple[str, ...] | None = None
    """The bot events that the app subscribes to; None: all."""
    has_home_tab: bool = True
    has_messages_tab: bool = True

    def subscribes(self, kind: str, *, in_dm: bool) -> bool:
        """Return True if the app asked for `message` or `app_mention` events of such a conversation and has their scope."""
        name, scope = ("message.im", "im:history") if in_dm else ("message.channels", "channels:history")
        if kind == "app_mention":
            name, scope = kind, "app_mentions:read"
        return (self.events is None or name in self.events) and scope in self.scopes


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """A registered slash command; `command` starts with `/`."""

    command: str
    description: str = ""
    usage_hint: str = ""


@dataclass(frozen=True, slots=True)
class Team:
    """Everything that a fresh workspace starts with. Without `commands` the app gets every slash command."""

    id: str = "T0LOCAL"
    name: str = "GPU on-call"
    domain: str = "gpu-oncall-local"
    plan: Literal["paid", "free"] = "paid"
    app: App = App()
    users: tuple[User, ...] = (
        User("U0ONCALL", "oncall", "Olga Call", "on-call engineer"),
        User("U0LEAD", "lead", "Leo Lead", "incident lead"),
        User("U0VIEWER", "viewer", "Vera View", "viewer"),
        User("U0GUEST", "guest", "Gus Guest", "guest", kind="guest"),
        User("U0PARTNER", "partner", "Petra Partner", "other company", kind="partner", team="T0PARTNER"),
        User("U0FORMER", "former", "Fred Former", "deactivated", is_deactivated=True),
    )
    groups: tuple[UserGroup, ...] = (
        UserGroup("S0ONCALLENGINEERS", "oncall-engineers", "On-call engineers", ("U0ONCALL", "U0LEAD")),
        UserGroup("S0INCIDENTLEADS", "incident-leads", "Incident leads", ("U0LEAD",)),
    )
    channels: tuple[PublicChannel, ...] = (
        PublicChannel("C0INCIDENTS", "incidents", "GPU serving incidents. Type /triage to begin.", True),
        PublicChannel("C0GENERAL", "general", "Everything else"),
    )
    commands: tuple[SlashCommand, ...] = ()
