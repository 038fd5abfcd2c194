"""A folder on this machine: the default artifact backend."""

from pathlib import Path
from typing import IO, Literal, cast

from bot.incidents.artifact_backends.base import ArtifactBackend


class FolderBackend(ArtifactBackend):
    def __init__(self, url: str, *, endpoint: str = "") -> None:
        self._root = Path(url.removeprefix("file://"))

    @staticmethod
    def accepts(url: str) -> bool:
        return "://" not in url or url.startswith("file://")

    def names(self) -> list[str]:
        """Return the paths of all complete files, oldest first."""
        files = [file for file in self._root.rglob("*") if file.is_file() and not file.name.endswith(".part")]
        return [
            str(file.relative_to(self._root)) for file in sorted(files, key=lambda file: file.stat().st_mtime)
        ]

    def open(self, path: str, mode: Literal["rb", "wb"]) -> IO[bytes]:
        file = self._root / path
        if mode == "wb":
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cast(IO[bytes], file.open(mode))

    def rename(self, old: str, new: str) -> None:
        (self._root / old).replace(self._root / new)

    def remove(self, path: str) -> None:
        """Remove a file, and the folders of its step and run when they are empty."""
        file = self._root / path
        file.unlink(missing_ok=True)
        for folder in (file.parent, file.parent.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
