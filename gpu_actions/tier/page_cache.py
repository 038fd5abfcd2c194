"""Keep the weights of a tier in the page cache, so that a cold start reads them from memory: look with mincore(2), read what is
missing, and never more than the settings allow.

The kernel may drop the pages whenever programs need the memory; nothing is locked. The keeper runs this module as a child at
the lowest priority, because reading tens of GiB must not slow the service. It imports only the standard library.
"""

import argparse
import ctypes
import json
import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

GIB = 1024**3
WINDOW_BYTES = GIB
CHUNK_BYTES = 8 * 1024**2
AHEAD_BYTES = 128 * 1024
"""What one call of posix_fadvise(WILLNEED) reads at most on a disk with the default read-ahead."""
KEPT_FREE_SHARE = 0.2
"""Nothing is read that would leave less than this share of the available memory."""
LOWEST_NICE = 19
IO_CLASS_IDLE = 3 << 13
IOPRIO_SET = {"x86_64": 251, "aarch64": 30}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
MAP_FAILED = ctypes.c_void_p(-1).value


def files_in(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Return the files of these files and folders, in order and each once, and what cannot be read, with the reason."""
    found: dict[Path, None] = {}
    problems = []
    for path in paths:
        inside = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        for file in inside:
            real = file.resolve()
            if not real.is_file():
                problems.append(f"{file} does not exist")
            elif not os.access(real, os.R_OK):
                problems.append(f"{file} cannot be read")
            else:
                found[real] = None
        if path.is_dir() and not inside:
            problems.append(f"{path} holds no file")
    return list(found), problems


def within(files: Iterable[Path], max_bytes: int) -> tuple[list[Path], list[str]]:
    """Return the files that fit into a bound, in order, and the names of those that do not."""
    kept, left, used = [], [], 0
    for file in files:
        size = file.stat().st_size
        if used + size <= max_bytes:
            kept.append(file)
            used += size
        else:
            left.append(file.name)
    return kept, left


def may_ask(file: Path) -> bool:
    """Return whether mincore tells the truth: of a file that is neither ours nor writable it says that all is there."""
    return os.geteuid() in (0, file.stat().st_uid) or os.access(file, os.W_OK)


def missing_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges `(offset, length)` of an open file that are not in the page cache. Raises OSError."""
    page = mmap.PAGESIZE
    for base in range(0, size, WINDOW_BYTES):
        length = min(WINDOW_BYTES, size - base)
        address = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, base)
        if address == MAP_FAILED:
            raise OSError(ctypes.get_errno(), "mmap")
        try:
            pages = ctypes.create_string_buffer(-(-length // page))
            if _libc.mincore(address, length, pages):
                raise OSError(ctypes.get_errno(), "mincore")
        finally:
            _libc.munmap(address, length)
        # The lowest bit says whether a page is there; the others are reserved.
        bits = pages.raw[: -(-length // page)].translate(bytes(value & 1 for value in range(256)))
        start = bits.find(b"\0")
        while start >= 0:
            end = bits.find(b"\1", start)
            end = len(bits) if end < 0 else end
            yield base + start * page, min((end - start) * page, length - start * page)
            start = bits.find(b"\0", end)


def missing_bytes(file: Path) -> int | None:
    """Return how much of a file is not in the page cache, or None if the kernel does not say."""
    if not may_ask(file):
        return None
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return sum(length for _, length in missing_ranges(descriptor, os.fstat(descriptor).st_size))
    finally:
        os.close(descriptor)


def read_missing(file: Path) -> int:
    """Read what is missing of a file into the page cache. Return how many bytes were asked for."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        if not may_ask(file):
            for offset in range(0, size, AHEAD_BYTES):
                os.posix_fadvise(descriptor, offset, AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
            return 0
        asked, buffer = 0, bytearray(CHUNK_BYTES)
        for offset, length in list(missing_ranges(descriptor, size)):
            for at in range(offset, offset + length, CHUNK_BYTES):
                part = memoryview(buffer)[: min(CHUNK_BYTES, offset + length - at)]
                os.preadv(descriptor, [part], at)
            asked += length
        return asked
    finally:
        os.close(descriptor)


def available_bytes() -> int:
    """Return the memory that programs could still get: the page cache counts as available."""
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024


def keep(paths: Iterable[Path], *, max_bytes: int, read: bool = True) -> dict[str, object]:
    """Read what is missing of the files into the page cache, within the bound and the memory. Return what is there then.

    With `read=False` it only looks. The result has `bytes`, `resident_bytes` (None if the kernel does not say), `read_bytes`
    and `problems`.
    """
    files, problems = files_in(paths)
    files, left = within(files, max_bytes)
    if left:
        problems.append(
            f"max_gib leaves out {len(left)} file{'s' if len(left) > 1 else ''}: {', '.join(left[:3])}"
        )
    missing = {file: missing_bytes(file) for file in files}
    wanted, read_bytes = sum(one or 0 for one in missing.values()), 0
    if read and wanted > (1 - KEPT_FREE_SHARE) * available_bytes():
        problems.append(
            f"nothing was read: {wanted / GIB:.1f} GiB are missing and only {available_bytes() / GIB:.1f} GiB of memory "
            "are available"
        )
    elif read:
        read_bytes = sum(read_missing(file) for file, gone in missing.items() if gone is None or gone > 0)
        missing = {file: missing_bytes(file) for file in files}
    total = sum(file.stat().st_size for file in files)
    known = [one for one in missing.values() if one is not None]
    return {
        "bytes": total,
        "resident_bytes": total - sum(known) if len(known) == len(missing) else None,
        "read_bytes": read_bytes,
        "problems": problems,
    }


def step_back() -> None:
    """Give way to every other process, for the processor and for the disk."""
    os.nice(LOWEST_NICE)
    if (number := IOPRIO_SET.get(os.uname().machine)) is not None:
        _libc.syscall(number, 1, 0, IO_CLASS_IDLE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Keep files in the page cache. Prints what is there as JSON."
    )
    parser.add_argument("--max-bytes", type=int, required=True)
    parser.add_argument("--look", action="store_true", help="read nothing")
    parser.add_argument("paths", nargs="+", type=Path)
    options = parser.parse_args()
    step_back()
    json.dump(keep(options.paths, max_bytes=options.max_bytes, read=not options.look), sys.stdout)


if __name__ == "__main__":
    main()
