"""Anything that fsspec opens by URL. Each protocol needs its own fsspec package beside the bot."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal, cast

from bot.incidents.artifact_backends.base import ArtifactBackend


class FsspecBackend(ArtifactBackend):
    is_remote = True

    def __init__(self, url: str, *, endpoint: str = "") -> None:
        self._url, self._endpoint = url.rstrip("/"), endpoint

    @staticmethod
    def accepts(url: str) -> bool:
        return "://" in url

    def open(self, path: str, mode: Literal["rb", "wb"]) -> IO[bytes]:
        with self._reported():
            filesystem, place = self._locate(path)
            if mode == "rb":
                filesystem.info(place)  # raises what it is, before a file object is made
            return cast(IO[bytes], filesystem.open(place, mode))

    def rename(self, old: str, new: str) -> None:
        with self._reported():
            filesystem, source = self._locate(old)
            filesystem.mv(source, self._locate(new)[1])

    def remove(self, path: str) -> None:
        with self._reported():
            filesystem, place = self._locate(path)
            if filesystem.exists(place):
                filesystem.rm(place)

    def _options(self) -> dict[str, Any]:
        """Return the options of the file system."""
        return {}

    def _locate(self, path: str) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        filesystem, place = url_to_fs(f"{self._url}/{path}", **self._options())
        return filesystem, str(place)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turn whatever a file system raises (each has errors of its own) into OSError."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:  # also an unknown protocol, or one whose package is missing
            raise OSError(f"artifacts.url {self._url} cannot be used: {error}") from error
