"""The Slack app manifest, made from the settings and from what the code uses, so that manifest and code cannot drift apart.

`SCOPES` names the scope of each Web API method that the bot calls; a test compares it with the calls in the source.
"""

import json
from typing import Any

from bot.settings.model import SlackSettings
from gpu_actions.registry import actions

SCOPES: dict[str, tuple[str, ...]] = {
    "auth_test": (),
    "chat_postMessage": ("chat:write",),
    "chat_postEphemeral": ("chat:write",),
    "chat_update": ("chat:write",),
    "chat_getPermalink": (),
    "conversations_history": ("channels:history", "groups:history"),
    "conversations_info": ("channels:read", "groups:read"),
    "conversations_list": ("channels:read", "groups:read"),
    "conversations_replies": ("channels:history", "groups:history"),
    "files_upload_v2": ("files:write",),
    "usergroups_list": ("usergroups:read",),
    "usergroups_users_list": ("usergroups:read",),
    "views_publish": (),
}
"""Web API method (as slack_sdk names it) -> bot scopes it needs. Source: Slack's method reference."""

EVENT_SCOPES = {"app_mention": ("app_mentions:read",), "app_home_opened": ()}

OWN_COMMANDS = {
    "incident": ("The incident of a host and its timeline", "open|status|note|timeline|close"),
    "gpu": ("Everything of gpu-oncall under one command", "help | triage | fallback start | ..."),
}
"""Commands that are no actions: description and usage hint."""


def descriptions() -> dict[str, tuple[str, str]]:
    """Return the description and the usage hint of every slash command."""
    return {spec.name: (spec.summary, spec.usage_hint) for spec in actions().values()} | OWN_COMMANDS


def bot_scopes() -> list[str]:
    """All scopes that the bot token needs, sorted."""
    used = {scope for scopes in (*SCOPES.values(), *EVENT_SCOPES.values()) for scope in scopes}
    return sorted(used | {"commands"})


def manifest(slack: SlackSettings) -> dict[str, Any]:
    """The manifest as data, with the commands as the settings name them."""
    names = {name: slack.command(name) for name in descriptions()}
    return {
        "display_information": {
            "name": "gpu-oncall",
            "description": "On-call teammate for multi-GPU serving hosts",
            "background_color": "#1d3b2a",
        },
        "features": {
            "app_home": {"home_tab_enabled": True, "messages_tab_enabled": False},
            "bot_user": {"display_name": "gpu-oncall", "always_online": True},
            "slash_commands": [
                {
                    "command": names[name],
                    "description": description,
                    "usage_hint": hint,
                    "should_escape": False,
                }
                for name, (description, hint) in descriptions().items()
            ],
        },
        "oauth_config": {"scopes": {"bot": bot_scopes()}},
        "settings": {
            "event_subscriptions": {"bot_events": sorted(EVENT_SCOPES)},
            "interactivity": {"is_enabled": True},
            "org_deploy_enabled": False,
            "socket_mode_enabled": slack.mode == "socket",
            "token_rotation_enabled": False,
        },
    }


def render(slack: SlackSettings) -> str:
    """The manifest as YAML, ready to paste at api.slack.com/apps. Every scalar is JSON, which YAML reads as it stands."""
    return "# Slack app manifest of gpu-oncall. Made by `gpu-oncall manifest`.\n" + _yaml(manifest(slack), 0)


def _yaml(value: Any, depth: int) -> str:
    pad = "  " * depth
    if isinstance(value, dict):
        lines = []
        for key, item in value.items():
            if isinstance(item, dict | list) and item:
                lines.append(f"{pad}{key}:\n{_yaml(item, depth + 1)}")
            else:
                lines.append(f"{pad}{key}: {json.dumps(item, ensure_ascii=False)}\n")
        return "".join(lines)
    lines = []
    for item in value:
        if isinstance(item, dict):
            body = _yaml(item, depth + 1)
            lines.append(f"{pad}- {body[len(pad) + 2 :]}")
        else:
            lines.append(f"{pad}- {json.dumps(item, ensure_ascii=False)}\n")
    return "".join(lines)
