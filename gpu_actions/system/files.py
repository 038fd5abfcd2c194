"""Write files atomically and describe them with size and sha256.

Nothing but the standard library is imported at the top, because the supervisor imports this module.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_actions.models import Artifact

MEDIA_TYPES = {
    ".json": "application/json",
    ".html": "text/html",
    ".png": "image/png",
    ".txt": "text/plain",
    ".log": "text/plain",
    ".gz": "application/gzip",
}


def write_atomically(path: Path, content: bytes | str, *, mode: int = 0o600, durable: bool = True) -> Path:
    """Write a file through a temporary one and a rename, so that a reader never sees half of it.

    `durable` waits for the disk (fsync), which may take seconds on a busy host.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(raw)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_json(path: Path, data: Any) -> None:
    """Write state as JSON, atomically, without waiting for the disk."""
    write_atomically(path, json.dumps(data), durable=False)


def artifact_of(path: Path, *, source: str, title: str = "", inline: bool = False) -> "Artifact":
    """Describe a file as an artifact. Raises OSError if it cannot be read."""
    from gpu_actions.models import Artifact

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
