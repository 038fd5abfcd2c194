"""Where artifact files are kept. A kind of backend is one module here and one entry in `BACKENDS`."""

from bot.incidents.artifact_backends.base import ArtifactBackend
from bot.incidents.artifact_backends.folder import FolderBackend
from bot.incidents.artifact_backends.fsspec_url import FsspecBackend
from bot.incidents.artifact_backends.object_store import ObjectStoreBackend

BACKENDS: tuple[type[ArtifactBackend], ...] = (FolderBackend, ObjectStoreBackend, FsspecBackend)
"""The first one that accepts the URL of the settings is used."""


def backend_for(url: str, *, endpoint: str = "") -> ArtifactBackend:
    """Return the backend for a folder or a URL such as `s3://bucket/prefix`. Opens no connection."""
    return next(kind(url, endpoint=endpoint) for kind in BACKENDS if kind.accepts(url))
