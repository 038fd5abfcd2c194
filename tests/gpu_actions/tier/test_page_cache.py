"""The page cache keeper on real files, with what mincore says of them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bot.settings.watch import MonitorSettings
from bot.watch.page_cache_keeper import PageCacheKeeper
from gpu_actions.config.host import PageCacheSettings
from gpu_actions.tier import page_cache
from gpu_actions.tier.page_cache import files_in, keep, missing_bytes

MIB = 1024**2
Make = Callable[..., Path]


@pytest.fixture
def cold(tmp_path: Path) -> Make:
    """Make a file of which nothing is in the page cache."""

    def make(name: str, mib: int, *, extra: int = 0) -> Path:
        file = tmp_path / name
        with file.open("wb") as opened:
            opened.write(os.urandom(MIB) * mib + b"x" * extra)
            opened.flush()
            os.fsync(opened.fileno())
        drop(file)
        if missing_bytes(file) == 0:
            pytest.skip("this file system keeps its files in memory")
        return file

    return make


def drop(file: Path, offset: int = 0, length: int = 0) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def test_what_is_missing_is_read_and_only_that(cold: Make, tmp_path: Path) -> None:
    file = cold("model.safetensors", 24, extra=100)
    size = file.stat().st_size
    assert missing_bytes(file) == size
    state = keep([tmp_path], max_bytes=64 * MIB)
    assert state == {"bytes": size, "resident_bytes": size, "read_bytes": size, "problems": []}
    assert keep([tmp_path], max_bytes=64 * MIB)["read_bytes"] == 0
    drop(file, 4 * MIB, 8 * MIB)
    again = keep([tmp_path], max_bytes=64 * MIB)
    assert (again["read_bytes"], missing_bytes(file)) == (8 * MIB, 0)


def test_the_bound_leaves_files_out_and_names_them(cold: Make, tmp_path: Path) -> None:
    first, second = cold("a.safetensors", 6), cold("b.safetensors", 6)
    state = keep([tmp_path], max_bytes=10 * MIB)
    assert (missing_bytes(first), missing_bytes(second)) == (0, 6 * MIB)
    assert state["problems"] == ["max_gib leaves out 1 file: b.safetensors"]
    assert state["bytes"] == 6 * MIB


def test_nothing_is_read_where_the_memory_is_short(cold: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    file = cold("model.safetensors", 6)
    monkeypatch.setattr(page_cache, "available_bytes", lambda: 5 * MIB)
    state = keep([file], max_bytes=64 * MIB)
    assert (state["read_bytes"], missing_bytes(file)) == (0, 6 * MIB)
    assert "nothing was read" in str(state["problems"])


def test_a_look_reads_nothing(cold: Make) -> None:
    file = cold("model.safetensors", 6)
    state = keep([file], max_bytes=64 * MIB, read=False)
    assert (state["resident_bytes"], missing_bytes(file)) == (0, 6 * MIB)


def test_of_a_file_of_somebody_else_the_part_that_is_there_is_unknown_and_it_is_read_ahead(
    cold: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mincore says of such a file that all of it is there."""
    file = cold("model.safetensors", 6)
    monkeypatch.setattr(page_cache, "may_ask", lambda file: False)
    state = keep([file], max_bytes=64 * MIB)
    monkeypatch.undo()
    assert (state["resident_bytes"], state["read_bytes"]) == (None, 0)


def test_links_count_once_and_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model").symlink_to(tmp_path / "blob")
    files, problems = files_in([tmp_path, tmp_path / "gone"])
    assert files == [(tmp_path / "blob").resolve()]
    assert problems == [f"{tmp_path / 'gone'} does not exist"]


def test_the_child_prints_what_is_there(cold: Make) -> None:
    file = cold("model.safetensors", 6)
    argv = [sys.executable, "-m", "gpu_actions.tier.page_cache", "--max-bytes", str(64 * MIB), str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout)["resident_bytes"] == 6 * MIB
    assert missing_bytes(file) == 0


async def test_the_keeper_reads_while_all_is_quiet_and_leaves_the_disk_alone_otherwise(cold: Make) -> None:
    file = cold("model.safetensors", 6)
    settings = PageCacheSettings(paths=(file,), max_gib=1)
    quiet: list[bool] = [False]
    keeper = PageCacheKeeper(MonitorSettings(), lambda host: quiet[0])
    assert await keeper.keep("h1", "fallback", settings) is None
    assert missing_bytes(file) == 6 * MIB
    quiet[0] = True
    state = await keeper.keep("h1", "fallback", settings)
    assert state is not None and state.text == "0.0 GiB of 0.0 GiB of weights in the page cache"
    assert (state.resident_bytes, missing_bytes(file)) == (6 * MIB, 0)
