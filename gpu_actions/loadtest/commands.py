"""The load test's subcommands."""

from collections.abc import Callable

COMMANDS: dict[str, Callable[[list[str]], int]] = {}
