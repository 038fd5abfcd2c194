"""A bundle keeps its budget, names what is missing, and has no secret in it."""

import asyncio
import contextlib
import hashlib
import tarfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from gpu_actions.forensics import bundle as bundle_module
from gpu_actions.forensics.bundle import cap, make_bundle, read_manifest
from gpu_actions.forensics.item import Collected, Evidence, Item, Missing, Scope
from gpu_actions.host import Host


def item(
    path: str, text: str = "x", *, after_s: float = 0.0, keep: str = "head", error: Exception | None = None
) -> Item:
    async def collect() -> Collected:
        await asyncio.sleep(after_s)
        if error is not None:
            raise error
        return Collected(text=text)

    return Item(path=path, source=f"test {path}", collect=collect, keep=keep)  # type: ignore[arg-type]


def quiet(text: str, fraction: float | None) -> None:
    """Report to nobody."""


def content(path: Path, name: str) -> bytes:
    with tarfile.open(path) as tar:
        file = tar.extractfile(f"bundle/{name}")
        assert file is not None
        return file.read()


async def test_a_late_or_failing_item_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    items = [
        item("quick.txt", "here"),
        item("slow.txt", after_s=30),
        item("none.txt", error=Missing("nothing to read")),
        item("broken.txt", error=KeyError("oops")),
        item("denied.txt", error=PermissionError(13, "Permission denied")),
    ]
    started = time.monotonic()
    made = await make_bundle(
        items, path=tmp_path / "b.tar.gz", host="h", run_id="r", budget_s=0.5, report=quiet
    )
    assert time.monotonic() - started < 3
    assert [entry.path for entry in made.manifest.entries] == ["quick.txt"]
    reasons = {entry.path: entry.reason for entry in made.manifest.missing}
    assert "not finished within" in reasons["slow.txt"]
    assert reasons["none.txt"] == "nothing to read"
    assert "failed: KeyError" in reasons["broken.txt"]
    assert "Permission denied" in reasons["denied.txt"]


async def test_a_collector_that_ignores_its_cancellation_is_left_behind(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def stubborn() -> Collected:
        while not ended.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await ended.wait()
        return Collected(text="too late")

    items = [item("quick.txt"), Item(path="stubborn.txt", source="test", collect=stubborn)]
    started = time.monotonic()
    made = await make_bundle(
        items, path=tmp_path / "b.tar.gz", host="h", run_id="r", budget_s=0.5, report=quiet
    )
    assert time.monotonic() - started < 4
    assert [entry.path for entry in made.manifest.entries] == ["quick.txt"]
    assert made.manifest.missing[0].reason == "the collector did not end"
    ended.set()
    await asyncio.sleep(0)


async def test_a_kind_that_cannot_decide_where_it_applies_costs_its_own_items_only(tmp_path: Path) -> None:
    def when(scope: Scope) -> Sequence[Scope]:
        raise OSError("no /proc here")

    async def collect(scope: Scope) -> Collected:
        return Collected(text="never")

    kind = Evidence(path="odd_{pid}.txt", source="test", collect=collect, when=when)
    (odd,) = kind.items(Scope(host=cast(Host, None), budget_s=1, gap_s=0))
    made = await make_bundle(
        [odd, item("a.txt")], path=tmp_path / "b.tar.gz", host="h", run_id="r", budget_s=1, report=quiet
    )
    assert [entry.path for entry in made.manifest.entries] == ["a.txt"]
    assert made.manifest.missing[0].path == "odd_unknown.txt"
    assert "no /proc here" in made.manifest.missing[0].reason


async def test_an_item_has_its_own_deadline_and_cap(tmp_path: Path) -> None:
    slow, long = item("slow.txt", after_s=5), item("long.txt", "line\n" * 100)
    items = [replace(slow, deadline_s=0.1), replace(long, cap_bytes=12)]
    made = await make_bundle(
        items, path=tmp_path / "b.tar.gz", host="h", run_id="r", budget_s=4, report=quiet
    )
    assert "not finished within 0.1 s" in made.manifest.missing[0].reason
    (entry,) = made.manifest.entries
    assert (entry.size_bytes, entry.truncated) == (9, True)
    assert entry.note == "only the first 0.0 KiB of 0.5 KiB"


async def test_the_manifest_describes_each_file_of_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    items = [item("log.txt", "start\nHF_TOKEN=verysecret\nend\n"), item("plain.txt", "nothing secret\n")]
    await make_bundle(items, path=path, host="h", run_id="r", budget_s=5, report=quiet)
    manifest = read_manifest(path)
    assert path.stat().st_mode & 0o777 == 0o600
    for entry in manifest.entries:
        raw = content(path, entry.path)
        assert (entry.size_bytes, entry.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert b"verysecret" not in content(path, "log.txt")
    assert [entry.redactions for entry in manifest.entries] == [{"assignment": 1}, {}]


async def test_a_log_over_its_cap_keeps_its_tail_and_never_half_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "ITEM_CAP_BYTES", 100)
    lines = "".join(f"line {number:04d} KEY=secret{number}\n" for number in range(50))
    path = tmp_path / "b.tar.gz"
    items = [item("tail.log", lines, keep="tail"), item("head.txt", lines)]
    made = await make_bundle(items, path=path, host="h", run_id="r", budget_s=5, report=quiet)
    assert all(entry.truncated for entry in made.manifest.entries)
    tail, head = content(path, "tail.log").decode(), content(path, "head.txt").decode()
    assert tail.startswith("line ")
    assert "line 0049" in tail
    assert head.startswith("line 0000")
    assert "secret" not in tail + head


async def test_a_full_bundle_names_what_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "TOTAL_CAP_BYTES", 10)
    items = [item("a.txt", "12345678"), item("b.txt", "12345678")]
    made = await make_bundle(
        items, path=tmp_path / "b.tar.gz", host="h", run_id="r", budget_s=5, report=quiet
    )
    assert [entry.path for entry in made.manifest.entries] == ["a.txt"]
    assert made.manifest.missing[0].reason == "the bundle is full"


@pytest.mark.parametrize(("keep", "expected"), [("head", ("aaä", True)), ("tail", ("äbb", True))])
def test_a_cut_never_splits_a_character(keep: str, expected: tuple[str, bool]) -> None:
    assert cap("aaäbb", keep=keep, limit_bytes=4) == expected  # type: ignore[arg-type]
