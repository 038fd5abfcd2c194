"""The slash commands of an app manifest."""

import importlib
import json
from pathlib import Path
from typing import Any

from demo.workspace.team import SlashCommand


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


def read_manifest_commands(path: Path) -> tuple[SlashCommand, ...]:
    """Return the slash commands of a manifest file, YAML or JSON by its suffix.

    Raises OSError if it cannot be opened, and ValueError, naming the file, if it is not a manifest.
    """
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix in {".yaml", ".yml"}:
            # PyYAML is a dependency of dbos and has no types; nothing else in the workspace needs it.
            yaml: Any = importlib.import_module("yaml")
            return manifest_commands(yaml.safe_load(text))
        return manifest_commands(json.loads(text))
    except ImportError as error:
        raise ValueError(f"reading {path} needs PyYAML; install it or pass the manifest as JSON") from error
    except Exception as error:  # yaml's errors cannot be named without importing it
        raise ValueError(f"cannot read slash commands from the manifest {path}: {error}") from error
