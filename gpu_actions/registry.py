"""All actions, one line each; nothing else names them.

An action is a file `gpu_actions/NAME.py` that declares its `SPEC`, or a folder whose `action.py` does.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_actions.action import ActionSpec

ACTION_NAMES = (
    "triage",
    "fallback",
    "restore",
    "standby",
    "loadtest",
    "trace",
    "forensics",
    "drill",
)


@cache
def actions() -> "Mapping[str, ActionSpec]":
    """Return every action by its name in commands. Importing them registers the step functions that plans refer to."""
    specs = (import_module(_module(name, "action") or f"gpu_actions.{name}").SPEC for name in ACTION_NAMES)
    return {spec.name: spec for spec in specs}


def command_line(name: str) -> str | None:
    """Return the module of the action's own command line, or None if it has none."""
    return _module(name, "cli")


def shell_verb(name: str, verb: str) -> str | None:
    """Return the module of a further word of the action's shell command, or None if it has no such word."""
    return _module(name, verb) if verb in actions()[name].shell_verbs else None


def _module(action: str, name: str) -> str | None:
    """Return a module of the action's folder, or None if it is a single file or has no such module."""
    found = find_spec(f"gpu_actions.{action}")
    is_folder = found is not None and found.submodule_search_locations is not None
    path = f"gpu_actions.{action}.{name}"
    return path if is_folder and find_spec(path) is not None else None
