"""A bundle of evidence: all items collected concurrently within one budget, redacted, capped, and described in a manifest.

Items are independent: one that fails or comes too late is listed with its reason and costs nothing else. The file is 0600 and
appears whole or not at all.
"""

import asyncio
import gzip
import hashlib
import io
import json
import tarfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from gpu_actions.forensics.item import ITEM_CAP_BYTES, Collected, Item, Missing
from gpu_actions.models import Frozen
from gpu_actions.system.files import write_atomically
from gpu_actions.system.redact import redact, redacted_head, whole_lines

TOTAL_CAP_BYTES = 32 * 1024 * 1024
"""A bundle of 8 GPUs and 8 ranks is about 2 MB before compression. The caps matter when a log has grown out of hand."""

PACK_SHARE = 0.15
"""Share of the budget kept for redacting and packing: 5 MB of logs take about half a second."""

CANCEL_WAIT_S = 1.0

PREFIX = "bundle/"
MANIFEST_NAME = "manifest.json"
CHECKSUM_NAME = "manifest.sha256"


class Entry(Frozen):
    """One file of the bundle. `note` says what was left out if `truncated`."""

    path: str
    size_bytes: int
    sha256: str
    source: str
    exit_code: int | None = None
    truncated: bool = False
    note: str = ""
    redactions: dict[str, int] = Field(default_factory=dict)
    seconds: float


class MissingEntry(Frozen):
    """One file that should be in the bundle and is not, with the reason."""

    path: str
    source: str
    reason: str


class Manifest(Frozen):
    """The files of a bundle, and the files that are missing from it."""

    version: int = 1
    host: str
    run_id: str
    taken_at: str
    budget_s: float
    seconds: float
    entries: tuple[Entry, ...] = ()
    missing: tuple[MissingEntry, ...] = ()


class Bundle(Frozen):
    """A written bundle."""

    path: Path
    manifest: Manifest


def cap(text: str, *, keep: Literal["head", "tail"], limit_bytes: int) -> tuple[str, bool]:
    """Cut a text to at most `limit_bytes` UTF-8 bytes at one end. Return it and whether it was cut."""
    raw = text.encode(errors="replace")
    if len(raw) <= limit_bytes:
        return text, False
    kept = raw[:limit_bytes] if keep == "head" else raw[len(raw) - limit_bytes :]
    return kept.decode(errors="ignore"), True


async def make_bundle(
    items: Sequence[Item],
    *,
    path: Path,
    host: str,
    run_id: str,
    budget_s: float,
    report: Callable[[str, float | None], None],
) -> Bundle:
    """Collect all items concurrently, keep what arrives within the budget, and write `path` (a .tar.gz) with its manifest."""
    started = time.monotonic()
    taken_at = datetime.now(UTC).isoformat(timespec="seconds")
    outcomes = await _collect_all(items, deadline_s=budget_s * (1 - PACK_SHARE), report=report)
    empty = Manifest(host=host, run_id=run_id, taken_at=taken_at, budget_s=budget_s, seconds=0)
    return await asyncio.to_thread(_pack, items, outcomes, path, empty, started)


Outcome = tuple[Collected | str, float]
"""What was collected, or the reason why nothing was; and after how many seconds."""


async def _collect_all(
    items: Sequence[Item], *, deadline_s: float, report: Callable[[str, float | None], None]
) -> dict[str, Outcome]:
    started = time.monotonic()
    outcomes: dict[str, Outcome] = {}

    async def run(item: Item) -> None:
        limit_s = min(item.deadline_s or deadline_s, deadline_s)
        outcome: Collected | str = f"not finished within {limit_s:.1f} s"
        deadline = asyncio.timeout(limit_s)
        try:
            async with deadline:
                outcome = await item.collect()
        except Missing as reason:
            outcome = str(reason)
        except Exception as error:  # noqa: BLE001  (one failing item costs that item only)
            if not deadline.expired():
                outcome = f"failed: {type(error).__name__}: {error}"
        finally:
            outcomes[item.path] = (outcome, time.monotonic() - started)
        report(f"{len(outcomes)} of {len(items)} collected", len(outcomes) / len(items))

    tasks = [asyncio.create_task(run(item)) for item in items]
    try:
        if tasks:  # a collector that ignores its cancellation is left behind
            await asyncio.wait(tasks, timeout=deadline_s + CANCEL_WAIT_S)
    finally:
        for task in tasks:
            task.cancel()
    return outcomes


def _pack(
    items: Sequence[Item], outcomes: dict[str, Outcome], path: Path, empty: Manifest, started: float
) -> Bundle:
    entries: list[Entry] = []
    missing: list[MissingEntry] = []
    files: list[tuple[str, bytes]] = []
    room = TOTAL_CAP_BYTES
    for item in items:
        outcome, seconds = outcomes.get(item.path, ("the collector did not end", 0.0))
        if isinstance(outcome, Collected):
            text, note = _capped(outcome, item)
            clean = redact(text)
            raw = clean.text.encode(errors="replace")
            if len(raw) <= room:
                room -= len(raw)
                files.append((item.path, raw))
                entries.append(
                    Entry(
                        path=item.path, size_bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest(),
                        source=redact(item.source).text, exit_code=outcome.exit_code, truncated=bool(note), note=note,
                        redactions=dict(clean.counts), seconds=round(seconds, 3),
                    )
                )  # fmt: skip
                continue
            outcome = "the bundle is full"
        missing.append(
            MissingEntry(path=item.path, source=redact(item.source).text, reason=redacted_head(outcome, 500))
        )
    manifest = empty.model_copy(
        update={
            "seconds": round(time.monotonic() - started, 3),
            "entries": tuple(entries),
            "missing": tuple(missing),
        }
    )
    described = json.dumps(manifest.model_dump(), indent=1).encode()
    checksum = f"{hashlib.sha256(described).hexdigest()}\n".encode()
    packed = [(MANIFEST_NAME, described), *sorted(files), (CHECKSUM_NAME, checksum)]
    write_atomically(path, pack_files(packed, taken_at=manifest.taken_at))
    return Bundle(path=path, manifest=manifest)


def _capped(collected: Collected, item: Item) -> tuple[str, str]:
    """Cut a text to its item's cap, at a whole line. Return it and a note on what was left out, empty for nothing.

    It is capped before it is redacted, since redacting is slow.
    """
    text, cut = cap(collected.text, keep=item.keep, limit_bytes=item.cap_bytes or ITEM_CAP_BYTES)
    if not cut and not collected.truncated:
        return text, ""
    # Half a secret at the cut would not be recognised. What the source cut off itself is cut at its other end too.
    kept = whole_lines(text, cut=True) if item.keep == "tail" else text.rpartition("\n")[0]
    end = "last" if item.keep == "tail" else "first"
    rest = "; the source has more" if collected.truncated else f" of {_kib(collected.text)}"
    return kept, f"only the {end} {_kib(text)}{rest}"


def _kib(text: str) -> str:
    return f"{len(text.encode(errors='replace')) / 1024:,.1f} KiB"


def pack_files(files: Sequence[tuple[str, bytes]], *, taken_at: str) -> bytes:
    """Pack files as .tar.gz. The same files and time give the same bytes: `forensics verify` packs them again to compare."""
    buffer = io.BytesIO()
    mtime = int(datetime.fromisoformat(taken_at).timestamp())
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as tar:
        for name, raw in files:
            info = tarfile.TarInfo(f"{PREFIX}{name}")
            info.size, info.mode, info.mtime = len(raw), 0o600, mtime
            tar.addfile(info, io.BytesIO(raw))
    # Level 1: logs shrink nearly as well, in a third of the time.
    return gzip.compress(buffer.getvalue(), compresslevel=1, mtime=0)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a bundle. Raises OSError or tarfile.TarError for any other file."""
    with tarfile.open(path, mode="r:gz") as tar:
        member = tar.extractfile(f"{PREFIX}{MANIFEST_NAME}")
        if member is None:
            raise OSError(f"{path} has no manifest")
        return Manifest.model_validate(json.loads(member.read()), extra="ignore")
