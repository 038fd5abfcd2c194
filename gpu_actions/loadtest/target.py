"""Where the load goes: the resolved address, TLS, the request head, and a plain GET for the pages beside the load.

The name is resolved once, before the start, so that no measured latency contains a look-up.
"""

import asyncio
import http.client
import socket
import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.system.urls import port_of

USER_AGENT = "gpu-oncall-loadtest"
"""A router tells our load from the requests of clients by it."""

MAX_PAGE_BYTES = 16 * 1024 * 1024


class LoadTestRefused(Exception):
    """The test cannot start as asked (wrong model, TLS, refused key, ...). One clear line; the shell exits 2."""


class ServiceDown(Exception):
    """The service does not serve: nothing listens, or no completion comes back. The run is failed, not void."""

    what = "the service is down"


class ServiceRefuses(ServiceDown):
    """The service refused every request with 429 or 503: it is saturated, or nothing serves behind its router."""

    what = "the service refuses every request"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An address to connect to. `head` is all of a request up to its Content-Length value."""

    url: str
    host: str
    address: str
    port: int
    family: int
    tls: ssl.SSLContext | None
    head: bytes = field(repr=False)
    authority: str
    authorization: str | None = field(default=None, repr=False)

    def request(self, body: bytes) -> bytes:
        """Return the bytes of one completion request."""
        return self.head + b"%d\r\n\r\n" % len(body) + body

    @property
    def is_local(self) -> bool:
        """Return True if the address is on this machine, so that this host's GPUs may be the ones that serve."""
        if self.address.startswith("127.") or self.address == "::1":
            return True
        try:
            with socket.socket(self.family, socket.SOCK_STREAM) as probe:
                probe.bind((self.address, 0))  # only an own address can be bound
        except OSError:
            return False
        return True


async def resolve_target(spec: LoadSpec) -> Target:
    """Resolve the URL of a spec. Raises LoadTestRefused for an unknown host name or a bad certificate file."""
    parts = urlsplit(spec.url)
    host = parts.hostname or ""
    port = port_of(spec.url)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise LoadTestRefused(
            f"url = {spec.url}: the host {host!r} is not known ({error.strerror}); check the name"
        ) from error
    family, _, _, _, address = found[0]
    path = parts.path.rstrip("/") + ("/v1/chat/completions" if spec.api == "chat" else "/v1/completions")
    authorization = f"Bearer {spec.api_key.get_secret_value()}" if spec.api_key else None
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {parts.netloc}",
        f"User-Agent: {USER_AGENT}",
        "Accept: text/event-stream",
        "Content-Type: application/json",
        *([f"Authorization: {authorization}"] if authorization else []),
        "Content-Length: ",
    ]
    return Target(
        url=spec.url,
        host=host,
        address=str(address[0]),
        port=port,
        family=family,
        tls=_tls_context(spec) if parts.scheme == "https" else None,
        head="\r\n".join(lines).encode(),
        authority=parts.netloc,
        authorization=authorization,
    )


def _tls_context(spec: LoadSpec) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=spec.tls_ca)
    except (OSError, ssl.SSLError) as error:
        raise LoadTestRefused(
            f"tls_ca = {spec.tls_ca}: is not a usable certificate file ({error}); use a PEM file"
        ) from error
    if spec.tls_insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def fetch(target: Target, url: str, *, timeout_s: float = 5.0) -> tuple[int, bytes]:
    """GET a page and return its status and body. Raises OSError, TimeoutError or ValueError (not HTTP, too large).

    A URL on the target's own authority goes to its resolved address; the bearer token goes nowhere else. The TLS settings
    hold for the target's host only: another host is verified as usual.
    """
    return await asyncio.wait_for(asyncio.to_thread(_get, target, url, timeout_s), timeout_s)


def _get(target: Target, url: str, timeout_s: float) -> tuple[int, bytes]:
    parts = urlsplit(url)
    is_target = parts.netloc == target.authority
    headers = {"Connection": "close", "User-Agent": USER_AGENT}
    if is_target and target.authorization:
        headers["Authorization"] = target.authorization
    connection = http.client.HTTPConnection(parts.netloc)
    address = target.address if is_target else (parts.hostname or "")
    connection.sock = socket.create_connection((address, port_of(url)), timeout_s)
    try:
        if parts.scheme == "https":
            own = target.tls if parts.hostname == target.host else None
            tls = own or ssl.create_default_context()
            connection.sock = tls.wrap_socket(connection.sock, server_hostname=parts.hostname)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = response.read(MAX_PAGE_BYTES + 1)
    except http.client.HTTPException as error:
        raise ValueError(f"{url} does not answer as an HTTP server ({type(error).__name__})") from error
    finally:
        connection.close()
    if len(body) > MAX_PAGE_BYTES:
        raise ValueError(f"{url} answers more than {MAX_PAGE_BYTES} bytes")
    return response.status, body
