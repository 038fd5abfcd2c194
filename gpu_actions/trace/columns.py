"""Read a trace event by event into compact columns: a Chrome trace of the torch profiler, or an SQLite export of nsys.

Nothing is held but the columns, about 30 bytes an event, so a trace of 1 GB needs about 200 MB. Only the child process of
`gpu_actions.trace` imports this.
"""

import gzip
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import ijson

UNPACKED_LIMIT_BYTES = 8 * 1024**3
KERNEL_CATEGORIES = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
SQLITE_MAGIC = b"SQLite format 3\0"
GZIP_MAGIC = b"\x1f\x8b"


class Columns:
    """The kernels and operators of one rank: start and duration in microseconds, name as an index into `names`."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._indices: dict[str, int] = {}
        self.kernels = (array("d"), array("d"), array("I"))
        self.operators = (array("d"), array("d"), array("I"))
        self.threads = array("I")
        """The thread of each operator, as an index."""
        self._thread_indices: dict[tuple[Any, Any], int] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        """Add a Chrome trace event. One that is malformed, or neither kernel nor operator, is skipped."""
        category = event.get("cat")
        if event.get("ph") != "X" or (category != "cpu_op" and category not in KERNEL_CATEGORIES):
            return
        try:
            start, duration = float(event["ts"]), float(event["dur"])
        except (KeyError, TypeError, ValueError):
            return
        if category == "cpu_op":
            if self.kernels[0]:
                return  # operators are only tabulated where there are no kernels
            thread = (event.get("pid"), event.get("tid"))
            self.threads.append(self._thread_indices.setdefault(thread, len(self._thread_indices)))
            self._append(self.operators, start, duration, str(event.get("name", "?")))
        else:
            self.add_kernel(start, duration, str(event.get("name", "?")))

    def add_kernel(self, start_us: float, duration_us: float, name: str) -> None:
        """Add a kernel. The first one drops the operators so far."""
        if not self.kernels[0]:
            self.operators, self.threads = (array("d"), array("d"), array("I")), array("I")
        self._append(self.kernels, start_us, duration_us, name)

    def _append(
        self,
        columns: "tuple[array[float], array[float], array[int]]",
        start: float,
        duration: float,
        name: str,
    ) -> None:
        index = self._indices.get(name)
        if index is None:
            index = self._indices[name] = len(self.names)
            self.names.append(name)
        columns[0].append(start)
        columns[1].append(duration)
        columns[2].append(index)


def from_events(events: Iterable[Mapping[str, Any]]) -> Columns:
    """Return the columns of Chrome trace events."""
    columns = Columns()
    for event in events:
        columns.add(event)
    return columns


def read_trace(path: Path, *, rank: int) -> dict[int, Columns]:
    """Return the columns of a trace file, by rank. Raises ValueError, naming the file, if it is none or too large.

    A Chrome trace is of one rank, `rank`. An SQLite export of nsys has all GPUs of a host: each is a rank.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(SQLITE_MAGIC))
        if magic == SQLITE_MAGIC:
            return _read_nsys(path)
        opener: Callable[..., Any] = gzip.open if magic.startswith(GZIP_MAGIC) else open
        with opener(path, "rb") as file:
            return {rank: _read_chrome(file)}
    except ijson.JSONError as error:
        raise ValueError(f"{path.name}: is not JSON: {error}") from None
    except (OSError, EOFError, sqlite3.Error) as error:
        raise ValueError(f"{path.name}: cannot be read: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


class _Bounded:
    """A file that ends with an error when it is unpacked beyond the limit."""

    def __init__(self, file: IO[bytes], head: bytes) -> None:
        self._file = file
        self._head = head
        self._left = UNPACKED_LIMIT_BYTES

    def read(self, size: int = -1) -> bytes:
        if self._head and size:
            chunk, self._head = self._head, b""
            return chunk
        chunk = self._file.read(size)
        self._left -= len(chunk)
        if self._left < 0:
            raise ValueError(
                f"is over {UNPACKED_LIMIT_BYTES // 1024**3} GiB unpacked; trace fewer iterations"
            )
        return chunk


def _read_chrome(file: IO[bytes]) -> Columns:
    head = file.read(64 * 1024)
    path = "item" if head.lstrip()[:1] == b"[" else "traceEvents.item"
    columns = Columns()
    found = False
    for event in ijson.items(_Bounded(file, head), path, use_float=True, buf_size=1024 * 1024):
        found = True
        if isinstance(event, dict):
            columns.add(event)
    if not found:
        raise ValueError("has no traceEvents list")
    return columns


def _read_nsys(path: Path) -> dict[int, Columns]:
    """Read an `nsys export --type sqlite`: times in nanoseconds, names as ids of StringIds."""
    by_device: dict[int, Columns] = {}
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        for row in nsys_rows(connection):
            columns = by_device.setdefault(row.device, Columns())
            columns.add_kernel(row.start_ns / 1e3, (row.end_ns - row.start_ns) / 1e3, row.name)
    finally:
        connection.close()
    if not by_device:
        raise ValueError("the export of nsys has no GPU kernels (was it taken with --trace=cuda?)")
    return by_device


class NsysRow(NamedTuple):
    """A GPU event of an export; times in nanoseconds."""

    device: int
    stream: int
    start_ns: int
    end_ns: int
    name: str


def nsys_rows(connection: sqlite3.Connection) -> Iterator[NsysRow]:
    """Yield the kernels, then the copies, of an export; it has a table only if such events were collected."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "CUPTI_ACTIVITY_KIND_KERNEL" in tables:
        rows = connection.execute(
            "SELECT k.deviceId, k.streamId, k.start, k.end, coalesce(s.value, 'kernel') "
            "FROM CUPTI_ACTIVITY_KIND_KERNEL k LEFT JOIN StringIds s ON s.id = k.shortName"
        )
        yield from map(NsysRow._make, rows)
    for table, name in (("CUPTI_ACTIVITY_KIND_MEMCPY", "memcpy"), ("CUPTI_ACTIVITY_KIND_MEMSET", "memset")):
        if table in tables:
            copies = connection.execute(f"SELECT deviceId, streamId, start, end, '{name}' FROM {table}")  # noqa: S608
            yield from map(NsysRow._make, copies)
