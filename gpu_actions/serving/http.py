"""The one HTTP client for engines and routers: a deadline for each request, a cap on what is read, and one kind of failure.

A session lives for one request, so a caller works in any event loop and leaves nothing open. aiohttp is imported late, because
the load generator reads the registry of engines and has its own client.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from aiohttp import ClientResponse

USER_AGENT = "gpu-oncall"
"""Distinguishes our probes from the requests of clients in the router's record."""

MAX_PAGE_BYTES = 8 * 1024 * 1024

Failure = Literal["timeout", "refused", "invalid_url", "broken", "malformed"]


class HttpFailure(Exception):
    """A request got no full answer. `reason` is the class of failure; the message names the URL."""

    def __init__(self, reason: Failure, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Page(NamedTuple):
    """A whole answer, or its start up to the cap (`truncated`)."""

    status: int
    body: bytes
    truncated: bool

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """Return the JSON document, or None if the answer is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


@asynccontextmanager
async def request(
    method: str,
    url: str,
    *,
    timeout_s: float,
    api_key: str | None = None,
    body: dict[str, Any] | None = None,
) -> AsyncIterator["ClientResponse"]:
    """Send one request and yield its response of any status. Raises HttpFailure, also while the caller reads."""
    import aiohttp

    headers = {"User-Agent": USER_AGENT}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s), headers=headers) as session,
            session.request(method, url, json=body) as response,
        ):
            yield response
    except TimeoutError as error:
        raise HttpFailure("timeout", f"{url} returned no full answer within {timeout_s:.1f} s") from error
    except aiohttp.InvalidURL as error:
        raise HttpFailure("invalid_url", f"{url!r} is not a URL") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        reason: Failure = "broken" if isinstance(error, aiohttp.ClientError | OSError) else "malformed"
        if isinstance(error, aiohttp.ClientConnectorError | ConnectionRefusedError):
            reason = "refused"
        raise HttpFailure(reason, f"{url} failed: {type(error).__name__}: {error}") from error


async def fetch(
    url: str, *, timeout_s: float, api_key: str | None = None, max_bytes: int = MAX_PAGE_BYTES
) -> Page:
    """Read a page of any status, up to `max_bytes`. Raises HttpFailure."""
    async with request("GET", url, timeout_s=timeout_s, api_key=api_key) as response:
        raw = bytearray()
        while len(raw) <= max_bytes and (more := await response.content.read(65536)):
            raw += more
        return Page(response.status, bytes(raw[:max_bytes]), len(raw) > max_bytes)
