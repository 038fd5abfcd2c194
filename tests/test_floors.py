"""Every room of gpu_actions has its floor in the import contract. An action needs none: nothing may import it."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from gpu_actions.registry import ACTION_NAMES

ROOT = Path(__file__).parents[1]
ROOMS = {path.stem for path in (ROOT / "gpu_actions").glob("[a-z]*.py")} | {
    path.parent.name for path in (ROOT / "gpu_actions").glob("*/__init__.py")
}
FLOORS = "the floors of gpu_actions"


def listed() -> set[str]:
    """Return the rooms that the contract of pyproject.toml lists."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [one["layers"] for one in contracts if one["name"] == FLOORS]
    return {room.strip() for layer in layers for room in layer.split("|")}


def imports_of(rooms: Iterable[str], text: str) -> list[str]:
    """Return the rooms that a module imports."""
    return [
        room
        for room in rooms
        if re.search(rf"^\s*(from|import) gpu_actions(\.| import ){room}\b", text, re.M)
    ]


def test_a_room_without_a_floor_is_an_action_that_no_other_room_imports() -> None:
    unlisted = ROOMS - listed()
    assert unlisted <= set(ACTION_NAMES), "list it among the floors of gpu_actions in pyproject.toml"
    for path in (ROOT / "gpu_actions").rglob("*.py"):
        outside = unlisted - set(path.relative_to(ROOT / "gpu_actions").with_suffix("").parts)
        assert not imports_of(outside, path.read_text()), path


def test_an_import_of_a_room_is_found() -> None:
    assert imports_of(["trace"], "def f():\n    from gpu_actions.trace.action import SPEC\n") == ["trace"]
    assert imports_of(["trace"], "from gpu_actions import trace\nimport gpu_actions.tracer\n") == ["trace"]
    assert not imports_of(["trace"], "import gpu_actions.tracer  # from gpu_actions.trace\n")
