"""A lock on a folder across processes and threads: one change of a unit or of a router at a time.

The kernel frees it when its holder dies, so a killed bot leaves nothing locked.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


def make_private_folder(folder: Path) -> None:
    """Create a folder of mode 0700, and missing parents likewise."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)


@asynccontextmanager
async def locked_folder(folder: Path, *, timeout_s: float) -> AsyncIterator[None]:
    """Hold `folder/lock`, creating it if needed. Raises TimeoutError if another holder keeps it for `timeout_s`."""
    make_private_folder(folder)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"{folder / 'lock'} has been held for {timeout_s:.0f} s") from None
                await asyncio.sleep(0.02)
        yield
    finally:
        os.close(handle)
