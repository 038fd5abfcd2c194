"""One process of a kind per state folder: a second one would run steps twice, or post everything twice.

`bot.lock` is held by the process that executes the runs, `slack.lock` by the process that is connected to Slack.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Literal

LockName = Literal["bot.lock", "slack.lock"]
HARM: dict[LockName, str] = {
    "bot.lock": "two would run the same steps twice",
    "slack.lock": "two would post every message twice",
}


class AlreadyRunning(Exception):
    """Another process holds the state folder. The message names it and says what to do."""


class ProcessLock:
    """A `flock` on a file in the state folder, which holds our pid. The kernel releases it however we die."""

    def __init__(self, folder: Path, name: LockName = "bot.lock") -> None:
        self._path = folder / name
        self._name: LockName = name
        self._handle: int | None = None

    def take(self) -> None:
        """Hold the lock until `release`. Raise AlreadyRunning."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(handle)
        except BlockingIOError:
            pid = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise AlreadyRunning(
                f"the bot with pid {pid} already runs on {self._path.parent}; {HARM[self._name]}. "
                "Stop that one first, or give this one another state_dir."
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        self._handle = handle

    def is_held(self) -> bool:
        """Return True if a living process holds the lock, this one included."""
        if self._handle is not None:
            return True
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _lock(handle: int) -> None:
    """Take the lock. Retry, since the `is_held` of another process holds it for an instant."""
    for attempt in range(5):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == 4:
                raise
            time.sleep(0.05)
        else:
            return
