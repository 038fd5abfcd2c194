"""docs/chaos.md matches the tests and has every fault that the product promises to survive."""

from pathlib import Path

import pytest

from tests.chaos.table import PATH, Mark, marks, marks_of, render

PROMISED = (
    "HAProxy",
    "admin socket",
    "approval",
    "disk full",
    "kill -9 of the bot",
    "kill -9 of the worker",
    "never gets ready",
    "dies in its warm-up",
    "port is taken",
    "SIGTERM",
    "two people",
    "wall clock",
)


@pytest.fixture(scope="module")
def all_marks() -> list[Mark]:
    return marks()


def test_the_document_matches_the_marks() -> None:
    assert PATH.read_text(encoding="utf-8") == render(), "run `make docs`: docs/chaos.md is stale"


@pytest.mark.parametrize("fault", PROMISED)
def test_every_promised_fault_has_a_test_in_the_suite(all_marks: list[Mark], fault: str) -> None:
    runs = {mark.runs for mark in all_marks if fault in f"{mark.fault} {mark.at}"}
    assert runs & {"suite", "part"}, f"no test of the suite makes it: {fault}"


def test_an_incomplete_mark_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "test_one.py"
    path.write_text("import pytest\n\n@pytest.mark.chaos(fault='f', at='a')\ndef test_one(): ...\n")
    with pytest.raises(ValueError, match=r"test_one.py:3: chaos takes fault, at, after"):
        list(marks_of(path))
