"""A bundle: many small collectors run at once within one budget, their output redacted, capped, and described in a manifest.

What did not come in time is listed with its reason, never waited for. Files are 0600 and appear whole or not at all.
"""

import asyncio
import hashlib
import io
import json
import tarfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.system.files import write_atomically
from gpu_actions.system.redact import redact

MANIFEST_VERSION = 1
ITEM_CAP_BYTES = 2 * 1024 * 1024
TOTAL_CAP_BYTES = 32 * 1024 * 1024
"""A bundle of 8 GPUs and 8 ranks is about 2 MB before compression; the caps hold when a log has gone wild."""

PACK_SHARE = 0.15
"""Share of the budget kept for redacting and packing: 5 MB of logs take about half a second."""

CANCEL_WAIT_S = 1.0


class Missing(Exception):
    """A collector has nothing; the message is the reason that goes into the manifest."""


class Collected(Frozen):
    """What a collector gives. `exit_code` where a program made it."""

    text: str
    exit_code: int | None = None
    truncated: bool = False


@dataclass(frozen=True, kw_only=True)
class Item:
    """One file of the bundle. `keep` says which end stays when it is over the cap: the tail of a log, the head of the rest."""

    path: str
    source: str
    collect: Callable[[], Awaitable[Collected]]
    keep: Literal["head", "tail"] = "head"


class Entry(Frozen):
    """One file that is there."""

    path: str
    size_bytes: int
    sha256: str
    source: str
    exit_code: int | None = None
    truncated: bool = False
    redactions: dict[str, int] = Field(default_factory=dict)
    seconds: float


class MissingEntry(Frozen):
    """One file that is not there, and why."""

    path: str
    source: str
    reason: str


class Manifest(Frozen):
    """What the bundle holds and what it should hold."""

    version: int = MANIFEST_VERSION
    host: str
    run_id: str
    taken_at: str
    budget_s: float
    seconds: float
    entries: tuple[Entry, ...]
    missing: tuple[MissingEntry, ...]


class Bundle(Frozen):
    """A written bundle."""

    path: Path
    manifest: Manifest


def cap(text: str, *, keep: Literal["head", "tail"], limit_bytes: int) -> tuple[str, bool]:
    """Cut a text to at most `limit_bytes` UTF-8 bytes at one end; gives it and whether it was cut."""
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
    """Run all collectors at once, keep what came within the budget, and write `path` (a .tar.gz) with its manifest."""
    started = time.monotonic()
    taken_at = datetime.now(UTC).isoformat(timespec="seconds")
    deadline_s = budget_s * (1 - PACK_SHARE)
    done: dict[str, tuple[Collected, float]] = {}
    reasons: dict[str, str] = {}

    async def run(item: Item) -> None:
        try:
            collected = await item.collect()
        except Missing as reason:
            reasons[item.path] = str(reason)
        except (OSError, ValueError, RuntimeError) as error:
            reasons[item.path] = f"{type(error).__name__}: {error}"
        else:
            done[item.path] = (collected, time.monotonic() - started)
        report(
            f"{len(done) + len(reasons)} of {len(items)} collected", (len(done) + len(reasons)) / len(items)
        )

    tasks = {asyncio.create_task(run(item)): item for item in items}
    try:
        _, pending = await asyncio.wait(tasks, timeout=deadline_s)
    finally:
        for task in tasks:
            task.cancel()
    if pending:
        await asyncio.wait(pending, timeout=CANCEL_WAIT_S)
    for task in pending:
        item = tasks[task]
        if item.path not in done:
            reasons.setdefault(item.path, f"not finished within {deadline_s:.1f} s")
    for task, item in tasks.items():
        if task not in pending and (broken := task.exception()) is not None:
            reasons[item.path] = f"the collector broke: {type(broken).__name__}: {broken}"
    return await asyncio.to_thread(
        _pack, items, done, reasons, path, host, run_id, taken_at, budget_s, started
    )


def _pack(
    items: Sequence[Item],
    done: dict[str, tuple[Collected, float]],
    reasons: dict[str, str],
    path: Path,
    host: str,
    run_id: str,
    taken_at: str,
    budget_s: float,
    started: float,
) -> Bundle:
    entries: list[Entry] = []
    missing: list[MissingEntry] = []
    files: list[tuple[str, bytes]] = []
    room = TOTAL_CAP_BYTES
    for item in items:
        if item.path not in done:
            reason = redact(reasons.get(item.path, "it gave nothing")).text
            missing.append(MissingEntry(path=item.path, source=item.source, reason=reason[:500]))
            continue
        collected, seconds = done[item.path]
        # Capped before the secrets are cut: redacting is the slow part, and a cut token is a shorter secret still
        # only at the cut end, which the margin below takes away.
        text, cut = cap(collected.text, keep=item.keep, limit_bytes=ITEM_CAP_BYTES)
        if cut:
            text = _whole_lines(text, keep=item.keep)
        clean = redact(text)
        raw = clean.text.encode(errors="replace")
        if len(raw) > room:
            missing.append(MissingEntry(path=item.path, source=item.source, reason="the bundle is full"))
            continue
        room -= len(raw)
        files.append((item.path, raw))
        entries.append(
            Entry(
                path=item.path,
                size_bytes=len(raw),
                sha256=hashlib.sha256(raw).hexdigest(),
                source=redact(item.source).text,
                exit_code=collected.exit_code,
                truncated=cut or collected.truncated,
                redactions=dict(clean.counts),
                seconds=round(seconds, 3),
            )
        )
    manifest = Manifest(
        host=host,
        run_id=run_id,
        taken_at=taken_at,
        budget_s=budget_s,
        seconds=round(time.monotonic() - started, 3),
        entries=tuple(entries),
        missing=tuple(missing),
    )
    write_atomically(
        path, _tar([("manifest.json", json.dumps(manifest.model_dump(), indent=1).encode()), *files])
    )
    return Bundle(path=path, manifest=manifest)


def _whole_lines(text: str, *, keep: Literal["head", "tail"]) -> str:
    """Drop the half line at the cut: half a secret is not recognised as one."""
    if keep == "tail":
        return text.partition("\n")[2]
    return text.rpartition("\n")[0]


def _tar(files: Sequence[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    # Level 1: logs shrink nearly as well, in a third of the time.
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, raw in files:
            info = tarfile.TarInfo(f"bundle/{name}")
            info.size, info.mode, info.mtime = len(raw), 0o600, int(time.time())
            tar.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a bundle. Raises OSError or tarfile.TarError for a file that is none."""
    with tarfile.open(path, mode="r:gz") as tar:
        member = tar.extractfile("bundle/manifest.json")
        if member is None:
            raise OSError(f"{path} holds no manifest")
        return Manifest.model_validate_json(member.read())
