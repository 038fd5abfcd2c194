"""Access control: only this machine can reach the workspace, and in a browser only its own page.

It refuses to listen on anything but loopback, and refuses requests with another host name (DNS rebinding: a web page whose
name points at 127.0.0.1) or another origin (any web page can send requests to 127.0.0.1). Other users of this machine are
not kept out: the workspace is for demonstration, drills and tests.
"""

import ipaddress
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'none'; "
    "img-src 'self' data: http://127.0.0.1:* http://localhost:*; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def checked_bind_address(host: str) -> str:
    """Return the address to listen on. Raises ValueError, saying what is allowed, if it is not a loopback address."""
    if _is_loopback(host):
        return "127.0.0.1" if host == "localhost" else host
    raise ValueError(
        f"the local workspace listens on loopback only, not on {host!r}: whoever reaches it can act as any user. "
        "Use 127.0.0.1 (from another machine: ssh -L 8800:127.0.0.1:8800)"
    )


def _is_loopback(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _host_name(authority: str) -> str:
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


@web.middleware
async def refuse_foreign_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse other host names and origins with 403, and add the security headers to every response."""
    authority = request.headers.get("Host", "")
    if not _is_loopback(_host_name(authority)):
        return web.Response(
            status=403,
            text="this workspace only answers to 127.0.0.1 and localhost; the Host header names neither\n",
        )
    # Behind `ssh -L` the port may differ from ours; the browser then sends the same one in Host and Origin.
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"http://{authority}":
        return web.Response(status=403, text="requests from other web pages are refused (Origin)\n")
    response = await handler(request)
    if not response.prepared:
        response.headers.update(_HEADERS)
    return response
