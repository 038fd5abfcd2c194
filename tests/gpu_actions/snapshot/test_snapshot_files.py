"""Recorded snapshots: a saved file loads unchanged, and an invalid one is refused with the field named."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.snapshot.model import (
    MAX_SNAPSHOT_BYTES,
    Snapshot,
    SnapshotUnreadable,
    load_snapshot,
    parse_snapshot,
    save_snapshot,
)
from tests.gpu_actions.triage import builders as make

GOOD = make.healthy().model_dump_json().encode()


def changed(path: str, value: Any) -> bytes:
    document = json.loads(GOOD)
    inner = document
    *parents, last = path.split(".")
    for part in parents:
        inner = inner[int(part)] if part.isdigit() else inner[part]
    inner[last] = value
    return json.dumps(document).encode()


def test_a_saved_snapshot_is_private_and_loads_unchanged(tmp_path: Path) -> None:
    path = save_snapshot(make.healthy(), tmp_path / "s.json")
    assert load_snapshot(path) == make.healthy()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", "is not JSON"),
        (GOOD[: len(GOOD) // 2], "truncated"),
        (b"[1, 2]", "holds a list"),
        (b"{}", "schema_version"),
        (changed("schema_version", 2), "schema_version: is 2"),
        (changed("schema_version", "1"), "schema_version"),
        (changed("schema_version", True), "schema_version"),
        (changed("window_s", -3), "window_s"),
        (changed("taken_at", "yesterday"), "taken_at"),
        (changed("taken_at", "2026-11-23T10:00:00"), "taken_at"),
        (changed("nvml.gpus.3.index", "three"), "nvml.gpus.3.index"),
        (changed("nvml.gpus.3.surprise", 1), "nvml.gpus.3.surprise"),
        (changed("engine.samples", None), "engine.samples"),
        (changed("collectors.nvml.status", "fine"), "collectors.nvml.status"),
        (changed("nvml", None), "nvml: the collector says ok but its data is missing"),
        (b'{"schema_version": 1' + b"[" * 100_000, "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
    ],
)
def test_an_invalid_snapshot_is_refused_in_one_line_that_names_the_field(
    raw: bytes, named: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(raw)
    with pytest.raises(SnapshotUnreadable) as refused:
        load_snapshot(path)
    assert named in str(refused.value) and str(path) in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_a_huge_file_is_refused_without_being_parsed(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    with path.open("wb") as file:
        file.truncate(MAX_SNAPSHOT_BYTES + 1)
    with pytest.raises(SnapshotUnreadable, match="larger than 8 MiB"):
        load_snapshot(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.json", tmp_path):
        with pytest.raises(SnapshotUnreadable, match="no such file"):
            load_snapshot(path)


@given(st.binary(max_size=300))
def test_any_bytes_either_parse_or_are_refused(raw: bytes) -> None:
    with suppress(SnapshotUnreadable):
        assert isinstance(parse_snapshot(raw, name="f"), Snapshot)


@given(st.integers(min_value=0, max_value=len(GOOD) - 1), st.binary(min_size=1, max_size=3))
def test_damage_to_a_good_file_never_crashes_the_parser(position: int, damage: bytes) -> None:
    try:
        parse_snapshot(GOOD[:position] + damage + GOOD[position + len(damage) :], name="f")
    except SnapshotUnreadable as error:
        assert str(error).startswith("f: ")
