"""Anything that fsspec opens by URL, such as `s3://bucket/prefix`. Each protocol needs its own fsspec package (s3fs)."""

from typing import IO, Any, Literal, cast

from bot.incidents.artifact_backends.base import ArtifactBackend


class FsspecBackend(ArtifactBackend):
    def __init__(self, url: str) -> None:
        self._url = url

    @staticmethod
    def accepts(url: str) -> bool:
        return "://" in url

    def open(self, path: str, mode: Literal["rb", "wb"]) -> IO[bytes]:
        filesystem, place = self._locate(path)
        return cast(IO[bytes], filesystem.open(place, mode))

    def rename(self, old: str, new: str) -> None:
        filesystem, source = self._locate(old)
        filesystem.mv(source, self._locate(new)[1])

    def remove(self, path: str) -> None:
        filesystem, place = self._locate(path)
        if filesystem.exists(place):
            filesystem.rm(place)

    def _locate(self, path: str) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        try:
            filesystem, place = url_to_fs(f"{self._url}/{path}")
        except (ValueError, ImportError) as error:  # an unknown protocol, or one whose package is missing
            raise OSError(f"artifacts.url {self._url} cannot be used: {error}") from error
        return filesystem, str(place)
