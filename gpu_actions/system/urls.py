"""Read URLs the same way everywhere. Standard library only, because the load generator imports it."""

from urllib.parse import urlsplit


def port_of(url: str) -> int:
    """Return the TCP port of a URL, or its scheme's default if it names none."""
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def check_url(value: str) -> str:
    """Return an HTTP URL without a trailing slash. Raises ValueError for anything else."""
    if not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://, for example http://127.0.0.1:8101")
    return value.rstrip("/")
