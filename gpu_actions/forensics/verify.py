"""`gpu-oncall forensics verify FILE`: check that a bundle is, byte for byte, the one that was written.

The bundle is built again from its own files and manifest and compared: a changed byte anywhere, also in a header, is found.
Whoever rewrites the whole file can make it consistent again, so compare the printed SHA-256 with the one in the incident's
report or the audit trail.
"""

import argparse
import gzip
import hashlib
import io
import json
import sys
import tarfile
import zlib
from pathlib import Path

from pydantic import ValidationError

from gpu_actions.forensics.bundle import CHECKSUM_NAME, MANIFEST_NAME, PREFIX, Manifest, pack_files
from gpu_actions.models import Frozen

MAX_UNPACKED_BYTES = 256 * 1024 * 1024


class BundleCheck(Frozen):
    """The result of a check. `problem` is empty if the bundle is intact; `note` says what is odd and changes no content."""

    sha256: str
    files: int = 0
    missing: int = 0
    problem: str = ""
    note: str = ""


def check_bundle(raw: bytes) -> BundleCheck:
    """Check a bundle's bytes."""
    digest = hashlib.sha256(raw).hexdigest()
    try:
        files, manifest = _read(raw)
    except (OSError, EOFError, tarfile.TarError, zlib.error, ValueError, KeyError) as error:
        return BundleCheck(sha256=digest, problem=f"it cannot be read: {error}")
    entries = {entry.path: entry for entry in manifest.entries}
    found = {"files": len(entries), "missing": len(manifest.missing)}
    for path in sorted({*entries, *files} - {MANIFEST_NAME, CHECKSUM_NAME}):
        if path not in files:
            return BundleCheck(
                sha256=digest, problem=f"{path} is in the manifest and not in the bundle", **found
            )
        if path not in entries:
            return BundleCheck(sha256=digest, problem=f"{path} is not in the manifest", **found)
        if hashlib.sha256(files[path]).hexdigest() != entries[path].sha256:
            return BundleCheck(sha256=digest, problem=f"{path} was changed: its SHA-256 differs", **found)
    if hashlib.sha256(files[MANIFEST_NAME]).hexdigest().encode() != files.get(CHECKSUM_NAME, b"").strip():
        return BundleCheck(sha256=digest, problem="manifest.json was changed: its SHA-256 differs", **found)
    again = pack_files(list(files.items()), taken_at=manifest.taken_at)
    if gzip.decompress(again) != gzip.decompress(raw) or again[:10] != raw[:10]:
        return BundleCheck(
            sha256=digest, problem="a header was changed; the files in it are unchanged", **found
        )
    note = "" if again == raw else "its content is intact, but it was not compressed by this version of zlib"
    return BundleCheck(sha256=digest, note=note, **found)


def _read(raw: bytes) -> tuple[dict[str, bytes], Manifest]:
    unpacker = zlib.decompressobj(wbits=31)
    data = unpacker.decompress(raw, MAX_UNPACKED_BYTES)
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("it is cut off, too large, or has something behind its end")
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is None or not member.isreg():
                raise ValueError(f"{member.name} is not a plain file")
            files[member.name.removeprefix(PREFIX)] = content.read()
    try:
        return files, Manifest.model_validate(json.loads(files[MANIFEST_NAME]), extra="ignore")
    except (KeyError, ValidationError) as error:
        raise ValueError(f"its manifest cannot be read: {error}") from None


def main(argv: list[str]) -> int:
    """Check a bundle. Exit 0: intact; 1: changed; 2: no such file."""
    parser = argparse.ArgumentParser(prog="gpu-oncall forensics verify", description=main.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    try:
        raw = options.file.read_bytes()
    except OSError as error:
        sys.stderr.write(f"{options.file}: {error.strerror}\n")
        return 2
    checked = check_bundle(raw)
    if checked.problem:
        sys.stdout.write(f"CHANGED: {options.file}: {checked.problem}\n")
    else:
        missing = f", {checked.missing} listed as missing with the reason" if checked.missing else ""
        odd = f" ({checked.note})" if checked.note else ""
        sys.stdout.write(f"intact: {checked.files} files{missing}{odd}\n")
    hint = "compare it with the one in the incident's report or in the audit trail"
    sys.stdout.write(f"SHA-256 {checked.sha256}: {hint}\n")
    return 1 if checked.problem else 0
