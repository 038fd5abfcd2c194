"""The file of golden prompts: written for its owner only, read with tolerance, and refused with reasons."""

import json
from pathlib import Path
from typing import Any

import pytest

from gpu_actions.serving.golden.record import GoldenUnreadable, golden_path, load_golden, save_golden
from tests.gpu_actions.serving.golden.builders import golden_record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return golden_path(tmp_path / "baselines", host="gpu-1", tier="tp")


def test_a_record_comes_back_as_it_was_saved_and_only_its_owner_can_read_it(path: Path) -> None:
    assert path.name == "golden-gpu-1-tp.json"
    assert load_golden(path) is None
    save_golden(golden_record(), path)
    assert load_golden(path) == golden_record()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_fields_of_later_versions_are_ignored(path: Path) -> None:
    save_golden(golden_record(), path)
    document = json.loads(path.read_text())
    document["later"] = 1
    document["prompts"][0]["later"] = {"more": 2}
    path.write_text(json.dumps(document))
    assert load_golden(path) == golden_record()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d | {"golden_version": 2}, "golden_version is 2, this version reads up to 1"),
        (lambda d: d | {"golden_version": "1"}, "not a file of golden prompts"),
        (lambda d: d | {"golden_version": True}, "not a file of golden prompts"),
        (lambda d: [d], "not a file of golden prompts"),
        (lambda d: d | {"idle_spread_nats": -1}, "idle_spread_nats"),
        (lambda d: d | {"load_spread_nats": float("nan")}, "load_spread_nats"),
        (lambda d: d | {"prompts": []}, "prompts"),
        (lambda d: d | {"prompts": [d["prompts"][0] | {"logprobs": [-1]}]}, "prompts.0"),
        (lambda d: {key: d[key] for key in d if key != "model"}, "model"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_name_and_what_to_do(
    path: Path, change: Any, words: str
) -> None:
    save_golden(golden_record(), path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(GoldenUnreadable) as raised:
        load_golden(path)
    assert words in str(raised.value)
    assert str(path) in str(raised.value)
    assert "record" in str(raised.value)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b" " * (4 * 1024**2 + 1)])
def test_garbage_is_refused(path: Path, raw: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(raw)
    with pytest.raises(GoldenUnreadable, match="record it again"):
        load_golden(path)


def test_a_folder_in_its_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(GoldenUnreadable, match="cannot be read"):
        load_golden(path)
