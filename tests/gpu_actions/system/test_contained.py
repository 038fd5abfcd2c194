"""Files in a folder that others may write to: only what should be there is copied, everything else is refused by name."""

import os
from pathlib import Path

import pytest

from gpu_actions.system.contained import FileRefused, copy_contained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "traces"
    (made / "below").mkdir(parents=True)
    (tmp_path / "secret").write_text("TOKEN=hush")
    return made


def copy(path: Path, folder: Path, **options: float) -> bytes:
    target = folder.parent / "copy"
    limits = {"owner_uid": os.getuid(), "max_bytes": 100, **options}
    copy_contained(path, target, folder=folder, **limits)  # type: ignore[arg-type]
    assert target.stat().st_mode & 0o777 == 0o600
    return target.read_bytes()


def test_a_regular_file_in_the_folder_or_below_is_copied_whole(folder: Path) -> None:
    (folder / "a.json").write_text("here")
    (folder / "below" / "b.json").write_text("there")
    assert copy(folder / "a.json", folder) == b"here"
    assert copy(folder / "below" / "b.json", folder) == b"there"
    alias = folder.parent / "alias"
    alias.symlink_to(folder)
    assert copy(folder / "a.json", alias) == b"here", "the configured folder itself may be a link"


def test_every_way_to_another_file_is_refused_by_name(folder: Path) -> None:
    secret = folder.parent / "secret"
    (folder / "link.json").symlink_to(secret)
    (folder / "gone.json").symlink_to(folder / "nowhere")
    (folder / "way").symlink_to(folder.parent)
    os.link(secret, folder / "hard.json")
    os.mkfifo(folder / "fifo.json")
    (folder / "empty.json").touch()
    refused = {
        folder / "link.json": "without following a link",
        folder / "gone.json": "without following a link",
        folder / "way" / "secret": "without following a link",
        folder / "hard.json": "hard links",
        folder / "fifo.json": "not a regular file",
        folder / "below": "not a regular file",
        folder / "empty.json": "is empty",
        folder / "missing.json": "No such file",
        folder / ".." / "secret": "is not in the folder",
        folder: "is not in the folder",
        secret: "is not in the folder",
        Path("/proc/self/environ"): "is not in the folder",
    }
    for path, reason in refused.items():
        with pytest.raises(FileRefused, match=reason) as caught:
            copy(path, folder)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"owner_uid": os.getuid() + 1}, "belongs to uid"),
        ({"max_bytes": 3}, "over the limit"),
        ({"since_s": 4e9}, "older than this run"),
    ],
)
def test_another_owner_a_large_file_and_an_old_file_are_refused(
    folder: Path, options: dict[str, float], reason: str
) -> None:
    (folder / "a.json").write_text("here")
    with pytest.raises(FileRefused, match=reason):
        copy(folder / "a.json", folder, **options)
