"""One bot a state folder: a second process with the same database would run steps twice (engine.md, trap 3)."""

import fcntl
import os
from pathlib import Path


class AlreadyRunning(Exception):
    """Another process holds the state folder. The message names it and says what to do."""


class ProcessLock:
    """`flock` on `FOLDER/bot.lock`, which holds our pid. The kernel frees it when we die, however we die."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "bot.lock"
        self._handle: int | None = None

    def take(self) -> None:
        """Hold the lock until `release`. Raises AlreadyRunning."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise AlreadyRunning(
                f"the bot with pid {pid} already runs on {self._path.parent}; two would run the same steps twice. "
                "Stop that one first, or give this one another state_dir."
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        self._handle = handle

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
