"""Who and what is in a fresh workspace: people, groups, channels, the app and its slash commands.

The ids have Slack's shape (`U...`, `C...`, `S...`) because bots match them with patterns. The default seed is the cast
of an incident: an on-call engineer, an incident lead who can approve, and somebody who may only look.
"""

import importlib
import json
from pathlib import Path
from typing import Any

from gpu_actions.models import Frozen

DEFAULT_SCOPES = (
    "app_mentions:read",
    "bookmarks:write",
    "channels:history",
    "channels:join",
    "channels:manage",
    "channels:read",
    "chat:write",
    "chat:write.public",
    "commands",
    "files:read",
    "files:write",
    "im:history",
    "im:write",
    "pins:write",
    "reactions:write",
    "groups:history",
    "groups:read",
    "usergroups:read",
    "users:read",
)
"""Scopes that the workspace's bot token carries; sent as `x-oauth-scopes`, as Slack does."""

# Not secrets: they open a workspace that lives on loopback only and refuses foreign web pages (see guard.py).
DEFAULT_BOT_TOKEN = "xoxb-local-workspace"  # noqa: S105
DEFAULT_APP_TOKEN = "xapp-local-workspace"  # noqa: S105


class SeedUser(Frozen):
    """A person who can be chosen on the page. `title` is the role shown beside the name."""

    id: str
    name: str
    real_name: str
    title: str = ""


class SeedGroup(Frozen):
    """A user group (`@oncall-engineers`): `handle` is what people type, `users` are user ids."""

    id: str
    handle: str
    name: str
    users: tuple[str, ...]


class SeedChannel(Frozen):
    """A public channel. Everybody and the bot are members."""

    id: str
    name: str
    topic: str = ""


class SeedApp(Frozen):
    """The one app of the workspace and its bot user."""

    app_id: str = "A0GPUONCALL"
    bot_id: str = "B0GPUONCALL"
    user_id: str = "U0GPUONCALL"
    name: str = "gpu-oncall"
    scopes: tuple[str, ...] = DEFAULT_SCOPES


class SlashCommand(Frozen):
    """A registered slash command, as in an app manifest; `command` starts with `/`."""

    command: str
    description: str = ""
    usage_hint: str = ""


class Seed(Frozen):
    """Everything a fresh workspace starts with. `commands` empty means that any slash command goes to the app."""

    team_id: str = "T0LOCAL"
    team_name: str = "GPU on-call"
    team_domain: str = "gpu-oncall-local"
    app: SeedApp = SeedApp()
    users: tuple[SeedUser, ...] = (
        SeedUser(id="U0ONCALL", name="oncall", real_name="Olga Call", title="on-call engineer"),
        SeedUser(id="U0LEAD", name="lead", real_name="Leo Lead", title="incident lead"),
        SeedUser(id="U0VIEWER", name="viewer", real_name="Vera View", title="viewer"),
    )
    groups: tuple[SeedGroup, ...] = (
        SeedGroup(
            id="S0ONCALLENGINEERS",
            handle="oncall-engineers",
            name="On-call engineers",
            users=("U0ONCALL", "U0LEAD"),
        ),
        SeedGroup(id="S0INCIDENTLEADS", handle="incident-leads", name="Incident leads", users=("U0LEAD",)),
    )
    channels: tuple[SeedChannel, ...] = (
        SeedChannel(
            id="C0INCIDENTS", name="incidents", topic="GPU serving incidents. Type /triage to begin."
        ),
        SeedChannel(id="C0GENERAL", name="general", topic="Everything else"),
    )
    commands: tuple[SlashCommand, ...] = ()


def commands_of_manifest(manifest: object) -> tuple[SlashCommand, ...]:
    """The slash commands of an app manifest (already parsed). Raises ValueError naming the field that is wrong."""
    if not isinstance(manifest, dict):
        raise ValueError("the manifest is not an object; expected features.slash_commands in it")
    features = manifest.get("features")
    commands = features.get("slash_commands") if isinstance(features, dict) else None
    if not isinstance(commands, list):
        raise ValueError("the manifest has no list at features.slash_commands")
    found = []
    for index, entry in enumerate(commands):
        name = entry.get("command") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name.startswith("/"):
            raise ValueError(
                f"features.slash_commands[{index}].command is {name!r}; expected a text that starts with /"
            )
        found.append(
            SlashCommand(
                command=name,
                description=str(entry.get("description") or ""),
                usage_hint=str(entry.get("usage_hint") or ""),
            )
        )
    return tuple(found)


def read_manifest_commands(path: Path) -> tuple[SlashCommand, ...]:
    """The slash commands of a manifest file, JSON or YAML by its suffix.

    Raises ValueError, with the file named, when it cannot be read as a manifest.
    """
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix in {".yaml", ".yml"}:
            # PyYAML comes with dbos; it has no types, and nothing else of the workspace needs it.
            yaml: Any = importlib.import_module("yaml")
            parsed: object = yaml.safe_load(text)
        else:
            parsed = json.loads(text)
        return commands_of_manifest(parsed)
    except ImportError as error:
        raise ValueError(f"reading {path} needs PyYAML; install it or give the manifest as JSON") from error
    except Exception as error:  # yaml's errors cannot be named without importing it
        raise ValueError(f"cannot read slash commands from the manifest {path}: {error}") from error
