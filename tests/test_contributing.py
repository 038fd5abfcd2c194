"""CONTRIBUTING.md and docs/architecture.md name only what exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| an? (.+?) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M
)


def words_in_code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_every_kind_has_a_row() -> None:
    kinds = {row[0].partition(" (")[0] for row in ROWS}
    assert {"engine", "unit driver", "router", "slash command without an action", "action"} <= kinds
    assert {"triage check", "collector", "item of evidence", "artifact store", "monitor"} <= kinds


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_names_files_and_registries_that_exist(row: tuple[str, ...]) -> None:
    _, copy, registry, test, doc = row
    for cell in (copy, test, doc):
        for path in words_in_code(cell):
            assert path.startswith("make ") or (ROOT / path).is_file(), path
    names = words_in_code(registry)
    if len(names) == 2:
        name, file = names
        assert re.search(rf"^(class )?{name}\b", (ROOT / file).read_text(), re.M), f"{file} has no {name}"
    elif names:
        (file,) = words_in_code(copy)
        assert re.search(rf"^{names[0]}\b", (ROOT / file).read_text(), re.M), f"{file} has no {names[0]}"


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_paths_in_a_document_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    paths = [word for word in words_in_code(text) if re.fullmatch(r"[\w./-]+/[\w./-]+", word)]
    assert len(paths) > 10
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing, missing
