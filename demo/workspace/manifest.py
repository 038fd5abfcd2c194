"""What an app manifest grants: its slash commands, its scopes and events, its pages."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from demo.workspace.team import App, SlashCommand


def manifest_commands(manifest: object) -> tuple[SlashCommand, ...]:
    """Return the slash commands of a parsed manifest. Raises ValueError naming the field that is wrong."""
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
        texts = [str(entry.get(field) or "") for field in ("description", "usage_hint")]
        found.append(SlashCommand(name, *texts))
    return tuple(found)


def manifest_app(manifest: object, app: App) -> App:
    """Return the app with what its manifest grants: bot scopes, bot events, Home tab and Messages tab. Raises ValueError.

    As in Slack, what the manifest does not name the app does not have.
    """
    if not isinstance(manifest, dict):
        raise ValueError("the manifest is not an object")
    home = _object(manifest, "features", "app_home")
    events = _texts(_object(manifest, "settings", "event_subscriptions").get("bot_events"), "bot_events")
    needed = _texts(_object(manifest, "oauth_config", "scopes").get("bot"), "oauth_config.scopes.bot")
    information = _object(manifest, "display_information")
    return replace(
        app,
        name=str(
            _object(manifest, "features", "bot_user").get("display_name")
            or information.get("name")
            or app.name
        ),
        scopes=needed,
        events=events,
        has_home_tab=bool(home.get("home_tab_enabled")),
        has_messages_tab=bool(home.get("messages_tab_enabled"))
        and not home.get("messages_tab_read_only_enabled"),
    )


def _object(value: object, *path: str) -> dict[str, Any]:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _texts(value: object, name: str) -> tuple[str, ...]:
    if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise ValueError(f"{name} is {value!r}; expected a list of names")
    return tuple(value or ())


def read_manifest(path: Path, app: App) -> tuple[tuple[SlashCommand, ...], App]:
    """Return the slash commands of a manifest file, and the app as it grants it; YAML or JSON by its suffix.

    Raises OSError if it cannot be opened, and ValueError, naming the file, if it is not a manifest.
    """
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix in {".yaml", ".yml"}:
            # PyYAML is a dependency of dbos and has no types; nothing else in the workspace needs it.
            yaml: Any = importlib.import_module("yaml")
            parsed = yaml.safe_load(text)
        else:
            parsed = json.loads(text)
        return manifest_commands(parsed), manifest_app(parsed, app)
    except ImportError as error:
        raise ValueError(f"reading {path} needs PyYAML; install it or pass the manifest as JSON") from error
    except Exception as error:  # yaml's errors cannot be named without importing it
        raise ValueError(f"cannot read the manifest {path}: {error}") from error
