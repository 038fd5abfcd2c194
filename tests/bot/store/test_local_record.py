"""The record of `--local` runs: chained line by line, and never in the way of a run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bot.store import local_record

OLD = json.dumps({"at": 1.0, "user": "root", "run": "fo-0", "event": "start"})


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Return a record with three chained lines after one of a version without a chain."""
    path = tmp_path / local_record.NAME
    path.write_text(OLD + "\n")
    for event in ("start", "step", "end"):
        local_record.append(tmp_path, run="fo-1", event=event)
    return path


def test_chained_lines_follow_those_of_an_older_version(record: Path) -> None:
    lines, last, problem = local_record.verify(record.parent)
    assert (lines, problem) == (3, "")
    assert last == json.loads(record.read_text().splitlines()[-1])["hash"]
    assert local_record.verify(record.parent / "nothing") == (0, "", "")


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (lambda lines: [*lines[:2], lines[2].replace("step", "stop"), lines[3]], 3),
        (lambda lines: [lines[0], lines[1], lines[3]], 3),
        (lambda lines: [lines[0], lines[2], lines[3]], 2),
        (lambda lines: [*lines[:2], lines[3], lines[2]], 3),
        (lambda lines: [*lines[:3], OLD, lines[3]], 4),
        (lambda lines: [*lines, "not json"], 5),
    ],
    ids=["changed", "removed", "first removed", "moved", "inserted", "damaged"],
)
def test_a_line_that_is_no_longer_as_written_is_named(
    record: Path, change: Callable[[list[str]], list[str]], at: int
) -> None:
    record.write_text("\n".join(change(record.read_text().splitlines())) + "\n")
    assert f"line {at} of local.jsonl was changed" in local_record.verify(record.parent)[2]


def test_a_folder_that_takes_no_file_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    local_record.append(tmp_path / "file" / "state", run="fo-1", event="start")
