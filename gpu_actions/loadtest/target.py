"""Where the load goes: the resolved address, TLS, the request head, and a plain GET for the pages beside the load.

The name is resolved once, before the start, so that no look-up sits inside a measured latency.
"""

import asyncio
import socket
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import from_json, to_json

from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.system.urls import port_of

MAX_PAGE_BYTES = 16 * 1024 * 1024


class LoadTestRefused(Exception):
    """The test cannot start as asked (wrong model, TLS, refused key, ...). One clear line; the shell exits 2."""


class ServiceDown(Exception):
    """The service does not serve: nothing listens, or it answers no completion. The run is failed, not void."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An address ready to connect to. `head` is everything of a request before its Content-Length value."""

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
        """Give the bytes of one completion request."""
        return self.head + b"%d\r\n\r\n" % len(body) + body

    @property
    def is_local(self) -> bool:
        """Whether the address is on this machine, so that this host's GPUs may be the ones that serve."""
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
    tls = _tls_context(spec) if parts.scheme == "https" else None
    authority = parts.netloc
    path = parts.path.rstrip("/") + ("/v1/chat/completions" if spec.api == "chat" else "/v1/completions")
    authorization = f"Bearer {spec.api_key.get_secret_value()}" if spec.api_key else None
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {authority}",
        "User-Agent: gpu-oncall-loadtest",
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
        tls=tls,
        head="\r\n".join(lines).encode(),
        authority=authority,
        authorization=authorization,
    )


def _tls_context(spec: LoadSpec) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=spec.tls_ca)
    except (OSError, ssl.SSLError) as error:
        raise LoadTestRefused(
            f"tls_ca = {spec.tls_ca}: is not a usable certificate file ({error}); give a PEM file"
        ) from error
    if spec.tls_insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def fetch(
    target: Target, url: str, *, timeout_s: float = 5.0, authorize: bool = True
) -> tuple[int, bytes]:
    """GET a page; gives status and body. Raises OSError, TimeoutError or ValueError (not HTTP, too large).

    A URL on the target's own authority goes to its resolved address with its TLS settings; the bearer token goes nowhere else.
    """
    parts = urlsplit(url)
    same = parts.netloc == target.authority
    host = target.address if same else (parts.hostname or "")
    port = port_of(url)
    tls: Any = (target.tls or ssl.create_default_context()) if parts.scheme == "https" else None
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(
            host, port, ssl=tls, server_hostname=(parts.hostname if tls else None), limit=MAX_PAGE_BYTES
        )
        try:
            lines = [
                f"GET {parts.path or '/'} HTTP/1.0",
                f"Host: {parts.netloc}",
                "Accept: */*",
                "Connection: close",
            ]
            if same and authorize and target.authorization:
                lines.append(f"Authorization: {target.authorization}")
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            headers = head.lower()
            length = _content_length(headers)
            body = bytearray()
            while (length is None or len(body) < length) and (block := await reader.read(65536)):
                body += block
                if len(body) > MAX_PAGE_BYTES:
                    raise ValueError(f"{url} answers more than {MAX_PAGE_BYTES} bytes")
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError(f"{url} closed the connection without an answer") from error
        except asyncio.LimitOverrunError as error:
            raise ValueError(f"{url} does not answer as an HTTP server") from error
        finally:
            writer.close()
    if b"transfer-encoding: chunked" in headers:
        return status, _dechunk(bytes(body))
    return status, bytes(body)


def _content_length(headers: bytes) -> int | None:
    """The length that a lower-case header announces, None when it goes to the end of the connection."""
    for line in headers.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return None


def _dechunk(raw: bytes) -> bytes:
    """Undo chunked encoding, which some servers use even for HTTP/1.0 requests."""
    out, position = bytearray(), 0
    while (line_end := raw.find(b"\r\n", position)) >= 0:
        size = int(raw[position:line_end].partition(b";")[0], 16)
        if size == 0:
            return bytes(out)
        out += raw[line_end + 2 : line_end + 2 + size]
        position = line_end + 2 + size + 2
    raise ValueError("the page ended in the middle of a chunk")


def encode_json(value: object) -> bytes:
    """JSON as bytes."""
    return to_json(value)


def decode_json(raw: bytes) -> Any:
    """Python data from JSON bytes. Raises ValueError."""
    return from_json(raw)
