"""The interface of artifact backends."""

from abc import ABC, abstractmethod
from typing import IO, ClassVar, Literal


class ArtifactBackend(ABC):
    """Stores files under relative paths such as `run/step/name`. Methods block and raise OSError.

    A file is written under a temporary path and renamed once it is complete:

        with backend.open("fb-7k2m/capture/log.txt.part", "wb") as file:
            file.write(data)
        backend.rename("fb-7k2m/capture/log.txt.part", "fb-7k2m/capture/log.txt")
    """

    is_remote: ClassVar[bool] = False
    """True if files are first kept on this machine and uploaded in the background."""

    @abstractmethod
    def __init__(self, url: str, *, endpoint: str = "") -> None: ...

    @staticmethod
    @abstractmethod
    def accepts(url: str) -> bool:
        """Return True if this kind of backend can use `artifacts.url` of the settings."""

    @abstractmethod
    def open(self, path: str, mode: Literal["rb", "wb"]) -> IO[bytes]:
        """Open a file; the caller closes it. Raise FileNotFoundError if a file to read is missing."""

    @abstractmethod
    def rename(self, old: str, new: str) -> None:
        """Rename a file, replacing one that has the new name."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file. Do nothing if it is missing."""
