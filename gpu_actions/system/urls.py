"""What all parts read off a URL in the same way. Standard library only: the load generator imports it too."""

from urllib.parse import urlsplit


def port_of(url: str) -> int:
    """The TCP port of a URL, its scheme's default where it names none."""
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)
