"""A bundle is verified byte for byte: any altered byte is found, and the same files give the same bytes."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_actions.forensics.bundle import (
    CHECKSUM_NAME,
    MANIFEST_NAME,
    Entry,
    Manifest,
    make_bundle,
    pack_files,
)
from gpu_actions.forensics.item import Collected, Item
from gpu_actions.forensics.verify import check_bundle, main
from gpu_actions.registry import shell_verb

TAKEN_AT = "2026-11-26T03:00:00+00:00"


def collected(text: str) -> Item:
    async def collect() -> Collected:
        return Collected(text=text)

    return Item(path=f"{text[:3]}.txt", source="test", collect=collect)


async def bundle(tmp_path: Path, *texts: str) -> Path:
    items = [collected(text) for text in texts]
    path = tmp_path / "evidence.tar.gz"
    await make_bundle(items, path=path, host="h", run_id="r", budget_s=5, report=lambda text, part: None)
    return path


async def test_a_written_bundle_is_intact_and_each_altered_byte_is_found(tmp_path: Path) -> None:
    raw = (await bundle(tmp_path, "abc of a log", "def of metrics")).read_bytes()
    intact = check_bundle(raw)
    assert (intact.problem, intact.note, intact.files) == ("", "", 2)
    for position in range(len(raw)):
        altered = raw[:position] + bytes([raw[position] ^ 0x41]) + raw[position + 1 :]
        checked = check_bundle(altered)
        # Few bytes of compressed data have another value that unpacks to the same content.
        assert checked.problem or checked.note, f"byte {position} of {len(raw)}"
    for cut in (0, 1, 20, len(raw) // 2, len(raw) - 1):
        assert check_bundle(raw[:cut]).problem
    assert check_bundle(raw + b"\0").problem


def made(files: dict[str, bytes], manifest: bytes, checksum: bytes) -> bytes:
    return pack_files(
        [(MANIFEST_NAME, manifest), *files.items(), (CHECKSUM_NAME, checksum)], taken_at=TAKEN_AT
    )


def test_a_repacked_bundle_with_another_content_is_found_by_name() -> None:
    import hashlib

    def entry(path: str, content: bytes) -> Entry:
        digest = hashlib.sha256(content).hexdigest()
        return Entry(path=path, size_bytes=len(content), sha256=digest, source="s", seconds=0)

    manifest = (
        Manifest(
            host="h",
            run_id="r",
            taken_at=TAKEN_AT,
            budget_s=1,
            seconds=1,
            entries=(entry("a.txt", b"right"),),
        )
        .model_dump_json()
        .encode()
    )
    checksum = hashlib.sha256(manifest).hexdigest().encode()
    assert check_bundle(made({"a.txt": b"right"}, manifest, checksum)).problem == ""
    for files, used, says in (
        ({"a.txt": b"wrong"}, manifest, "a.txt was changed"),
        ({}, manifest, "a.txt is in the manifest and not in the bundle"),
        ({"a.txt": b"right", "b.txt": b"x"}, manifest, "b.txt is not in the manifest"),
        ({"a.txt": b"right"}, manifest.replace(b'"h"', b'"g"'), "manifest.json was changed"),
    ):
        assert says in check_bundle(made(files, used, checksum)).problem


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}/[a-z]{1,8}", fullmatch=True), st.binary(max_size=200), max_size=5
    )
)
def test_the_same_files_give_the_same_bytes(files: dict[str, bytes]) -> None:
    packed = [pack_files(list(files.items()), taken_at=TAKEN_AT) for _ in range(2)]
    assert packed[0] == packed[1]


@given(st.binary(max_size=300))
def test_no_bytes_break_the_check(raw: bytes) -> None:
    assert check_bundle(raw).problem


async def test_the_command_prints_the_verdict_and_the_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = await bundle(tmp_path, "abc")
    assert shell_verb("forensics", "verify") == "gpu_actions.forensics.verify"
    assert shell_verb("forensics", "bundle") is None
    assert main([str(path)]) == 0
    assert "intact: 1 files" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-4])
    assert main([str(path)]) == 1
    assert "CHANGED" in capsys.readouterr().out
    assert main([str(tmp_path / "none")]) == 2
