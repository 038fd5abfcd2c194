"""Files that runs leave behind: written whole or not at all, private, and described with size and sha256."""

import hashlib
import os
import tempfile
from pathlib import Path

from gpu_actions.models import Artifact

MEDIA_TYPES = {
    ".json": "application/json",
    ".html": "text/html",
    ".png": "image/png",
    ".txt": "text/plain",
    ".log": "text/plain",
    ".gz": "application/gzip",
}


def write_atomically(path: Path, content: bytes | str, *, mode: int = 0o600) -> Path:
    """Write a file through a temporary one, fsync and rename, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def artifact_of(path: Path, *, source: str, title: str = "", inline: bool = False) -> Artifact:
    """Describe a file as an artifact. Raises OSError when it cannot be read."""
    digest = hashlib.sha256()
    size_bytes = 0
    with path.open("rb") as file:
        while block := file.read(1024 * 1024):
            digest.update(block)
            size_bytes += len(block)
    return Artifact(
        name=path.name,
        path=path,
        size_bytes=size_bytes,
        sha256=digest.hexdigest(),
        media_type=MEDIA_TYPES.get(path.suffix, "application/octet-stream"),
        source=source,
        title=title or path.name,
        inline=inline,
    )
