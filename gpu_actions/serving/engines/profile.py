"""Find the trace files of an engine's profiler through its process, because most engines do not name them over HTTP."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from gpu_actions.system.listening import listening_process

TRACE_PATTERNS = ("*.pt.trace.json*", "*.trace.json*", "*.trace.gz")

FolderOf = Callable[[Sequence[str], Mapping[str, str]], str | None]
"""Reads the trace folder from a process's arguments and environment."""


def profile_folder(
    folder_of: FolderOf, argv: Sequence[str], environment: Mapping[str, str], cwd: Path
) -> Path | None:
    """Return the trace folder that a process in `cwd` was given, or None."""
    found = folder_of(argv, environment)
    return None if found is None else cwd / found


def folder_of_listener(port: int, folder_of: FolderOf) -> Path | None:
    """Return the trace folder of the engine that listens on `port`, or None if its process cannot be read."""
    process = listening_process(port)
    if process is None:
        return None
    try:
        return profile_folder(folder_of, process.cmdline(), process.environ(), Path(process.cwd()))
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return None


def traces_since(folder: Path, since_s: float) -> tuple[Path, ...]:
    """Return the trace files in `folder` and its subfolders written at or after a Unix time, oldest first."""
    found = {
        path: path.stat().st_mtime
        for pattern in TRACE_PATTERNS
        for path in (*folder.glob(pattern), *folder.glob(f"*/{pattern}"))
        if path.is_file()
    }
    return tuple(sorted((path for path, at in found.items() if at >= since_s), key=found.__getitem__))
