"""Who may talk to the workspace: this machine only, and in a browser only its own page.

Three doors are shut: another bind address than loopback; a foreign host name (DNS rebinding: a web page whose name was
pointed at 127.0.0.1); a foreign origin (any web page can send requests to 127.0.0.1). Other users of this machine are not
shut out: the workspace is for demonstration, drills and tests.
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
    """The address to listen on, if it is a loopback one. Raises ValueError saying what is allowed."""
    if _is_loopback(host):
        return "127.0.0.1" if host == "localhost" else host
    raise ValueError(
        f"the local workspace listens on loopback only, not on {host!r}: whoever reaches it can act as any user. "
        "Use 127.0.0.1 (from another machine: ssh -L 8800:127.0.0.1:8800)"
    )


def _is_loopback(name: str | None) -> bool:
    if name == "localhost":
        return True
    try:
        return name is not None and ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _host_name(authority: str) -> str | None:
    try:
        return urlsplit(f"//{authority}").hostname
    except ValueError:
        return None


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse foreign host names and foreign origins with 403; add the security headers to every answer."""
    authority = request.headers.get("Host", "")
    if not _is_loopback(_host_name(authority)):
        return web.Response(
            status=403,
            text="this workspace answers to 127.0.0.1 and localhost only; the Host header names neither\n",
        )
    # The port may differ from ours behind `ssh -L`; the browser then sends the same one in Host and Origin.
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"http://{authority}":
        return web.Response(status=403, text="requests from other web pages are refused (Origin)\n")
    response = await handler(request)
    if not response.prepared:
        response.headers.update(_HEADERS)
    return response
