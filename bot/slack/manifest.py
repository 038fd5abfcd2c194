"""The Slack app manifest, built from the settings, the commands and the Web API methods that the code calls.

`SCOPES` names the scopes of each method; a test compares it with the calls in the source.
"""

import json
from collections.abc import Iterable
from typing import Any

from bot.presenter.help import CommandText
from bot.settings.model import SlackSettings

SCOPES: dict[str, tuple[str, ...]] = {
    "auth_test": (),
    "canvases_access_set": ("canvases:write",),
    "canvases_create": ("canvases:write",),
    "canvases_delete": ("canvases:write",),
    "chat_postMessage": ("chat:write",),
    "chat_postEphemeral": ("chat:write",),
    "chat_update": ("chat:write",),
    "chat_getPermalink": (),
    "conversations_history": ("channels:history", "groups:history"),
    "conversations_info": ("channels:read", "groups:read"),
    "conversations_join": ("channels:join",),
    "conversations_list": ("channels:read", "groups:read"),
    "conversations_members": ("channels:read", "groups:read"),
    "conversations_replies": ("channels:history", "groups:history"),
    "files_upload_v2": ("files:write",),
    "pins_add": ("pins:write",),
    "reactions_add": ("reactions:write",),
    "reactions_remove": ("reactions:write",),
    "usergroups_list": ("usergroups:read",),
    "usergroups_users_list": ("usergroups:read",),
    "users_info": ("users:read",),
    "views_open": (),
    "views_publish": (),
    "views_update": (),
}
"""Web API method (as slack_sdk names it) -> bot scopes it needs. Source: Slack's method reference."""

ROOM_SCOPES: dict[str, tuple[str, ...]] = {
    "bookmarks_add": ("bookmarks:write",),
    "bookmarks_edit": ("bookmarks:write",),
    "conversations_create": ("channels:manage",),
    "conversations_invite": ("channels:manage",),
    "conversations_setTopic": ("channels:manage",),
}
"""The same for what is called only if each incident has a channel of its own."""

EVENT_SCOPES = {
    "app_home_opened": (),
    "app_mention": ("app_mentions:read",),
    "message.im": ("im:history",),
    "reaction_added": ("reactions:read",),
}


def bot_scopes(*, rooms: bool = False) -> list[str]:
    """Return every scope that the bot token needs, sorted; `rooms`: each incident has a channel of its own."""
    needed = (*SCOPES.values(), *EVENT_SCOPES.values(), *(ROOM_SCOPES.values() if rooms else ()))
    used = {scope for scopes in needed for scope in scopes}
    return sorted(used | {"commands"})


def manifest(slack: SlackSettings, commands: Iterable[CommandText], *, http_url: str = "") -> dict[str, Any]:
    """Return the manifest as data, with the commands as the settings name them.

    With `http_url`, the public address of the bot, it is one for HTTP mode: Slack then needs it with every command.
    """
    request = {"request_url": f"{http_url.rstrip('/')}/slack/events"} if http_url else {}
    address = {"url": request["request_url"]} if request else {}
    return {
        "display_information": {
            "name": "gpu-oncall",
            "description": "On-call teammate for multi-GPU serving hosts",
            "background_color": "#1d3b2a",
        },
        "features": {
            "app_home": {
                "home_tab_enabled": True,
                "messages_tab_enabled": True,
                "messages_tab_read_only_enabled": False,
            },
            "bot_user": {"display_name": "gpu-oncall", "always_online": True},
            "slash_commands": [
                {
                    "command": slack.command(command.name),
                    "description": command.summary,
                    "usage_hint": command.hint,
                    "should_escape": False,
                    **address,
                }
                for command in commands
            ],
        },
        "oauth_config": {"scopes": {"bot": bot_scopes(rooms=slack.incident_place == "channel")}},
        "settings": {
            "event_subscriptions": {"bot_events": sorted(EVENT_SCOPES), **request},
            "interactivity": {"is_enabled": True, **request},
            "org_deploy_enabled": False,
            "socket_mode_enabled": slack.mode == "socket" and not http_url,
            "token_rotation_enabled": False,
        },
    }


def render(slack: SlackSettings, commands: Iterable[CommandText], *, http_url: str = "") -> str:
    """Return the manifest as YAML to paste at api.slack.com/apps. Every scalar is JSON, which YAML reads unchanged."""
    head = "# Slack app manifest of gpu-oncall. Made by `gpu-oncall manifest`.\n"
    return head + _yaml(manifest(slack, commands, http_url=http_url), 0)


def _yaml(value: Any, depth: int) -> str:
    pad = "  " * depth
    lines = []
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        start = f"{pad}{key}:" if isinstance(value, dict) else f"{pad}-"
        if not isinstance(item, dict | list) or not item:
            lines.append(f"{start} {json.dumps(item, ensure_ascii=False)}\n")
        elif isinstance(value, dict):
            lines.append(f"{start}\n{_yaml(item, depth + 1)}")
        else:
            lines.append(f"{start} {_yaml(item, depth + 1).lstrip()}")
    return "".join(lines)
