"""A program's standard output in a bounded file of its own, kept by its supervisor without ever holding the program up.

The program writes to a named pipe that does not block: if nobody reads, or the disk is full, its lines are dropped, never
delayed. The pipe outlives both sides, so a new supervisor goes on where a killed one ended. Each line is one JSON object, and
the supervisor adds lines of its own: `{"started_ms": ...}` when the program starts, `{"adopted_ms": ...}` when a new supervisor
takes over from a killed one, which may have held lines, `{"lost_lines": ...}` after lines that could not be written.
Nothing but the standard library is imported, because the supervisor imports this module.
"""

import contextlib
import fcntl
import json
import os
import select
import threading
import time
from pathlib import Path

PIPE_BYTES = 1 << 20
"""What a user without privileges may ask for (pipe(7)): 4,000 lines of 250 bytes while the reader is away."""

READ_BYTES = 1 << 18
GATHER_S = 0.05
"""Lines are written together, at most this late, so that 1,000 requests/s do not cost 1,000 wake-ups."""


class OutputFile:
    """Copies a pipe to `path`. `path` and `path.1`, the older half, stay below `cap_bytes` together. Both have mode 0600."""

    def __init__(self, path: Path, cap_bytes: int) -> None:
        self.path = path
        self.half_bytes = cap_bytes // 2
        self._lost_lines = 0
        self._torn = False
        self._lock = threading.Lock()
        pipe = pipe_of(path)
        with contextlib.suppress(FileExistsError):
            os.mkfifo(pipe, 0o600)
        # Open for writing as well, so that reading waits instead of ending while no program runs.
        self._pipe = os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def start(self) -> None:
        """Copy in the background until the process ends."""
        threading.Thread(target=self._copy, daemon=True).start()

    def mark(self, event: str) -> None:
        """Write that something happened now: `started` or `adopted`."""
        self.drain()
        with self._lock:
            self._write(json.dumps({f"{event}_ms": round(time.time() * 1000)}).encode() + b"\n")

    def drain(self) -> None:
        """Copy everything that is in the pipe now."""
        with self._lock:
            while True:
                try:
                    lines = os.read(self._pipe, READ_BYTES)
                except BlockingIOError:
                    return
                self._write(lines)

    def _copy(self) -> None:
        while True:
            select.select([self._pipe], [], [])
            self.drain()
            time.sleep(GATHER_S)

    def _write(self, lines: bytes) -> None:
        """Append lines. If the disk is full they are counted, and the count is written once there is room."""
        count = lines.count(b"\n")
        if self._lost_lines:
            lines = json.dumps({"lost_lines": self._lost_lines}).encode() + b"\n" + lines
        if self._torn:
            lines = b"\n" + lines
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(file).st_size
                written = os.write(file, lines)
            finally:
                os.close(file)
        except OSError:
            self._lost_lines += count
            return
        self._torn = lines[written - 1 : written] != b"\n"
        self._lost_lines = 0 if written == len(lines) else lines[written:].count(b"\n")
        if size + written > self.half_bytes:
            with contextlib.suppress(OSError):
                self.path.replace(older(self.path))


def pipe_of(path: Path) -> Path:
    """Return the named pipe of an output file."""
    return path.with_name(f".{path.name}.pipe")


def older(path: Path) -> Path:
    """Return the file that holds the lines before those in `path`."""
    return path.with_name(f"{path.name}.1")


def open_for_program(path: Path) -> int:
    """Return a descriptor for the program's standard output. It needs no reader and never blocks."""
    return os.open(pipe_of(path), os.O_RDWR | os.O_NONBLOCK)
