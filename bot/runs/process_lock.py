"""One process of a kind a state folder: two with the same database would run steps twice, or say everything twice.

`bot.lock` is held by whoever carries the runs (engine.md, trap 3), `slack.lock` by whoever speaks to Slack.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Literal

LockName = Literal["bot.lock", "slack.lock"]
TWICE: dict[LockName, str] = {
    "bot.lock": "two would run the same steps twice",
    "slack.lock": "two would post every message twice",
}


class AlreadyRunning(Exception):
    """Another process holds the state folder. The message names it and says what to do."""


class ProcessLock:
    """`flock` on a file of the state folder, which holds our pid. The kernel frees it when we die, however we die."""

    def __init__(self, folder: Path, name: LockName = "bot.lock") -> None:
        self._path = folder / name
        self._name: LockName = name
        self._handle: int | None = None

    def take(self) -> None:
        """Hold the lock until `release`. Raises AlreadyRunning."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(handle)
        except BlockingIOError:
            pid = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise AlreadyRunning(
                f"the bot with pid {pid} already runs on {self._path.parent}; {TWICE[self._name]}. "
                "Stop that one first, or give this one another state_dir."
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        self._handle = handle

    def held(self) -> bool:
        """Whether some living process holds it, this one included."""
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
        else:
            return False
        finally:
            os.close(handle)

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _lock(handle: int) -> None:
    """Take the lock; somebody's `held` may have it for an instant, so it is tried more than once."""
    for _ in range(4):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
