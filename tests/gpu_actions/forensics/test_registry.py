"""Every kind of evidence declares itself, and the docs list it."""

from pathlib import Path

from gpu_actions.forensics import items, registry

DOC = Path(__file__).parents[3] / "docs" / "evidence.md"


def test_every_evidence_file_is_in_the_registry_and_no_path_is_declared_twice() -> None:
    folder = Path(items.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert files == set(registry.EVIDENCE_FILES)
    paths = [kind.path for kind in registry.all_evidence()]
    assert len(paths) == len(set(paths)) > 10


def test_the_docs_have_a_line_for_every_kind_of_evidence() -> None:
    text = DOC.read_text()
    assert [kind.path for kind in registry.all_evidence() if f"`{kind.path}`" not in text] == []
