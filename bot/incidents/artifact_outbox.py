"""Files that wait on this machine for their upload: a run never waits for a remote store, and a link works at once.

What waits is what lies in the folder, so a process that was killed goes on where it stood.
"""

import contextlib
import fcntl
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bot.incidents.artifact_backends.base import ArtifactBackend
from bot.incidents.artifact_backends.folder import FolderBackend

BLOCK_BYTES = 1024 * 1024
FAILURES_IN_A_ROW = 3
"""After so many the store is away, and the rest waits for the next time."""


class Outbox:
    """The folder of waiting files, and their way to the remote store."""

    def __init__(self, root: Path, remote: ArtifactBackend) -> None:
        self.folder = FolderBackend(str(root))
        self._remote = remote
        self._lock = root.with_name(f"{root.name}.lock")
        self._failed: set[str] = set()

    def waiting(self) -> list[str]:
        """Return the paths of the files that wait, oldest first."""
        return self.folder.names()

    def upload(self) -> Iterator[tuple[str, str, bool]]:
        """Upload every waiting file. Yield its path, why it failed (empty: it arrived), and whether that is news.

        Yields nothing while another process uploads. The next call tries again what failed, after the others.
        """
        self._lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock.open("wb") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            failures = 0
            for path in sorted(self.waiting(), key=self._failed.__contains__):
                had_failed = path in self._failed
                if problem := self._send(path):
                    failures += 1
                    self._failed.add(path)
                else:
                    failures = 0
                    self._failed.discard(path)
                yield path, problem, had_failed if not problem else not had_failed
                if failures == FAILURES_IN_A_ROW:
                    return

    def _send(self, path: str) -> str:
        """Upload a file and remove it here, once the store returns what was sent. Return why it failed, or ''."""
        try:
            with self.folder.open(path, "rb") as source, self._remote.open(f"{path}.part", "wb") as target:
                sent = _copy_blocks(source, target)
            with self._remote.open(f"{path}.part", "rb") as back:
                received = _copy_blocks(back)
            if sent != received:
                return "the store returns something else than was sent"
            self._remote.rename(f"{path}.part", path)
        except OSError as error:
            return str(error)[:300] or type(error).__name__
        self.folder.remove(path)
        return ""


def _copy_blocks(source: IO[bytes], target: IO[bytes] | None = None) -> str:
    """Read a file to its end, into another one if given. Return its sha256."""
    digest = hashlib.sha256()
    while block := source.read(BLOCK_BYTES):
        digest.update(block)
        if target is not None:
            target.write(block)
    return digest.hexdigest()
