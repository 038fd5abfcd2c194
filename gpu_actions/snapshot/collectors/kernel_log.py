"""NVIDIA errors in the kernel log: Xid, SXid, and GPUs that fell off the bus.

Read from a file (dmesg, dmesg -T, syslog or ISO times), else from /dev/kmsg, else from journalctl. NVML's own events carry the
number but not the text, which decides for Xids 74 and 144-150.
"""

import asyncio
import errno
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from pydantic import AwareDatetime, Field

from gpu_actions.models import Frozen
from gpu_actions.snapshot.collector import Collector, CollectorFailed, CollectorSkipped
from gpu_actions.snapshot.kernel_log_lines import (
    KMSG_RECORD,
    LogMarker,
    OomKill,
    XidEvent,
    event_of,
    marker_of,
    oom_kill_of,
    time_of,
)
from gpu_actions.system.processes import ProcessResult, run_process
from gpu_actions.system.redact import redacted_head

MAX_EVENTS = 200
"""Events kept from a log. Beyond it, the oldest of the most frequent kind are folded into later ones: a flood hides nothing."""

MAX_OOM_KILLS = 20
KMSG = Path("/dev/kmsg")


class KernelLogReading(Frozen):
    """NVIDIA errors since a time. `source` is the file or command that was read."""

    source: str
    since: AwareDatetime | None = None
    lines_read: int = 0
    truncated: bool = Field(default=False, description="only the end of the log was read")
    events: tuple[XidEvent, ...] = ()
    dropped_events: int = Field(default=0, description="folded into later events of their kind")
    markers: tuple[LogMarker, ...] = Field(default=(), description="the last of each kind and GPU")
    oom_kills: tuple[OomKill, ...] = Field(default=(), description="the latest")
    lost: str = Field(default="", description="why messages since then may be missing")


def boot_time() -> datetime:
    """Return the time of this machine's boot."""
    return datetime.now(UTC) - timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME))


class _Events:
    """The events of a log, at most `MAX_EVENTS`. A frequent kind gives way to all others."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, int | None, str, bool], deque[XidEvent]] = {}
        self._kept = 0
        self.dropped = 0

    def add(self, event: XidEvent) -> None:
        key = (event.kind, event.code, event.pci, "fatal" in event.text.lower())
        self._kinds.setdefault(key, deque()).append(event)
        self._kept += 1
        if self._kept > MAX_EVENTS:
            longest = max(self._kinds.values(), key=len)
            if len(longest) > 1:
                oldest, after = longest.popleft(), longest.popleft()
                longest.appendleft(after.model_copy(update={"times": after.times + oldest.times}))
                self._kept -= 1
                self.dropped += 1

    def kept(self) -> tuple[XidEvent, ...]:
        """Return the events in the order of the log."""
        return tuple(sorted((e for kind in self._kinds.values() for e in kind), key=lambda e: e.line))


def read_lines(
    lines: Iterable[str],
    *,
    source: str,
    since: datetime | None,
    now: datetime,
    booted: datetime,
    truncated: bool = False,
    lost: str = "",
) -> KernelLogReading:
    """Find the events of a log. A line without a time counts as recent, so that missing evidence never looks healthy."""
    events = _Events()
    markers: dict[tuple[str, str, str], LogMarker] = {}
    kills: deque[OomKill] = deque(maxlen=MAX_OOM_KILLS)
    read = 0
    first_at: datetime | None = None
    for line in lines:
        read += 1
        if first_at is None:
            first_at = time_of(line, booted=booted, now=now)
        marker, event, killed = marker_of(line, number=read), event_of(line), oom_kill_of(line)
        if marker is None and event is None and killed is None:
            continue
        at = time_of(line, booted=booted, now=now)
        if at is not None and since is not None and at < since:
            continue
        if killed is not None:
            kills.append(killed.model_copy(update={"at": at}))
        if marker is not None:
            markers[marker.kind, marker.pci, marker.uuid] = marker.model_copy(update={"at": at})
        if event is not None:
            events.add(event.model_copy(update={"at": at, "line": read}))
    if not lost and truncated and since is not None and (first_at is None or first_at > since):
        lost = f"the log is longer than the limit, and its part before {first_at or 'the end'} was not read"
    return KernelLogReading(
        source=source,
        since=since,
        lines_read=read,
        truncated=truncated,
        events=events.kept(),
        dropped_events=events.dropped,
        markers=tuple(markers.values()),
        oom_kills=tuple(kills),
        lost=lost,
    )


async def collect_kernel_log(
    path: Path | None, *, since: datetime | None, since_s: float, max_bytes: int, expect_gpus: int | None
) -> KernelLogReading:
    """Read the log: a file as a whole unless `since` is given, the kernel's own log for the last `since_s` seconds.

    Raises CollectorSkipped on a CPU host without a file, CollectorFailed if nothing can be read.
    """
    now = datetime.now(UTC)
    if path is not None:
        lines, truncated = await asyncio.to_thread(tail_of, path, max_bytes)
        return read_lines(
            lines, source=str(path), since=since, now=now, booted=boot_time(), truncated=truncated
        )
    if expect_gpus == 0:
        raise CollectorSkipped("this host has no GPUs, and no log file is configured")
    since = since or now - timedelta(seconds=since_s)
    try:
        records = await asyncio.to_thread(read_kmsg)
    except OSError as error:
        return await _journal(since, now=now, max_bytes=max_bytes, why=f"{KMSG}: {error.strerror}")
    if not records:
        return await _journal(since, now=now, max_bytes=max_bytes, why=f"{KMSG} is empty")
    booted = boot_time()
    return read_lines(
        records,
        source=str(KMSG),
        since=since,
        now=now,
        booted=booted,
        lost=lost_records(records, since=since, booted=booted),
    )


def tail_of(path: Path, max_bytes: int) -> tuple[list[str], bool]:
    """Return the lines in the last `max_bytes` bytes of a file, and True if it is longer. Raises CollectorFailed."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            raw = file.read(max_bytes)
    except OSError as error:
        raise CollectorFailed(f"{path}: {error.strerror or error}") from error
    return raw.decode(errors="replace").splitlines(), size > max_bytes


def read_kmsg(path: Path = KMSG) -> list[str]:
    """Return all records of the kernel's ring buffer. Raises OSError if it cannot be read."""
    records: list[str] = []
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while len(records) < 1_000_000:
            try:
                record = os.read(descriptor, 16384)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten during the read: the next record is readable
                    continue
                raise
            if not record:
                break
            records.append(record.split(b"\n", 1)[0].decode(errors="replace"))
    finally:
        os.close(descriptor)
    return records


def lost_records(records: Sequence[str], *, since: datetime, booted: datetime) -> str:
    """Return why records since a time are missing: a gap in the sequence, or a ring that starts later. Empty if none is.

    The kernel numbers its records from 0 (Documentation/ABI/testing/dev-kmsg), and overwrites the oldest ones.
    """
    found = [match for record in records if (match := KMSG_RECORD.match(record))]
    if not found:
        return ""
    for before, after in pairwise(found):
        missing = int(after.group(1)) - int(before.group(1)) - 1
        if missing > 0 and booted + timedelta(microseconds=int(after.group(2))) >= since:
            return f"{missing} kernel messages were overwritten before they could be read"
    began = booted + timedelta(microseconds=int(found[0].group(2)))
    if int(found[0].group(1)) > 0 and began > since:
        return f"the kernel's buffer only reaches back to {began:%H:%M:%SZ}: older messages were overwritten"
    return ""


async def _journal(since: datetime, *, now: datetime, max_bytes: int, why: str) -> KernelLogReading:
    """Read the journal. If it shows nothing at all it is unread: without permission, journalctl prints nothing and exits 0."""

    async def ask(*arguments: str) -> ProcessResult:
        # Newest first, so that the limit drops the oldest.
        argv = ["journalctl", "-k", "-r", "-o", "json", "--no-pager", *arguments]
        try:
            result = await run_process(argv, timeout_s=4, max_output_bytes=max_bytes)
        except FileNotFoundError:
            raise CollectorFailed(f"{why}; journalctl is not installed") from None
        if result.exit_code != 0 or result.timed_out or "not seeing messages" in result.stderr:
            raise CollectorFailed(
                f"{why}; journalctl: {redacted_head(result.stderr.strip() or 'failed', 160)}"
            )
        return result

    result = await ask("--since", f"@{since.timestamp():.0f}")
    lines = journal_lines(result.stdout)
    if (
        not lines
    ):  # Quiet since then, or not readable: a readable journal shows at least one message of this boot.
        lines = journal_lines((await ask("--lines", "1")).stdout)
    if not lines:
        raise CollectorFailed(
            f"{why}; journalctl shows no kernel message of this boot: no permission, or a container"
        )
    return read_lines(
        lines[::-1],
        source="journalctl -k",
        since=since,
        now=now,
        booted=boot_time(),
        truncated=result.truncated,
    )


def journal_lines(text: str) -> list[str]:
    """Return the messages of `journalctl -o json`, each after an ISO time. Lines that are not JSON are dropped."""
    lines: list[str] = []
    for row in text.splitlines():
        try:
            record = json.loads(row)
            at = datetime.fromtimestamp(int(record["__REALTIME_TIMESTAMP"]) / 1e6, UTC)
            lines.append(f"{at.isoformat()} {record['MESSAGE']}")
        except (ValueError, KeyError, TypeError, OverflowError, OSError):
            continue
    return lines


KERNEL_LOG = Collector(
    collect=lambda source: collect_kernel_log(
        source.target.kernel_log,
        since=source.target.since,
        since_s=source.limits.since_s,
        max_bytes=source.limits.kernel_log_max_bytes,
        expect_gpus=source.target.expect_gpus,
    ),
    deadline_s=lambda source: 10,
)
