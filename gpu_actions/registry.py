"""All actions, one line each. An action is a folder whose `action.py` declares its `SPEC`; nothing else names it."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_actions.action import ActionSpec

ACTION_NAMES = (
    "triage",
    "fallback",
    "restore",
    "loadtest",
    "trace",
    "forensics",
)


@cache
def actions() -> "Mapping[str, ActionSpec]":
    """Return every action by its name in commands. Importing them registers the step functions that plans refer to."""
    specs = (import_module(f"gpu_actions.{name}.action").SPEC for name in ACTION_NAMES)
    return {spec.name: spec for spec in specs}
