"""The router's view of the tiers: servers, weights, queue (over its admin socket)."""

from pathlib import Path
from typing import Literal

from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import RouterError
from gpu_actions.serving.routers.haproxy_socket import HaproxySocket, join_rows
from gpu_actions.snapshot.collector import Collector, CollectorFailed, CollectorSkipped

MAX_SERVERS = 64


class RouterServer(Frozen):
    """One server line of the router."""

    server: str
    weight: int
    admin_state: str
    operational: str
    sessions: int
    queued: int
    responses_5xx: int = 0


class RouterReading(Frozen):
    """The servers of the router's backend, or why it did not answer."""

    socket: str
    backend: str
    outcome: Literal["ok", "down", "no_backend"]
    detail: str = ""
    servers: tuple[RouterServer, ...] = ()


async def collect_router(socket: Path | None, *, backend: str, timeout_s: float) -> RouterReading:
    """Read the servers of a backend. A router that does not answer is a reading: down.

    Raises CollectorSkipped without a socket, CollectorFailed if permission is denied or the answer cannot be parsed.
    """
    if socket is None:
        raise CollectorSkipped("no router socket is configured")
    admin = HaproxySocket(socket, timeout_s=timeout_s)
    try:
        rows = join_rows(await admin.stat(), await admin.states())
    except RouterError as error:
        if isinstance(error.__cause__, PermissionError):
            raise CollectorFailed(
                f"permission denied for {socket}: run triage as its owner or in its group"
            ) from error
        return RouterReading(socket=str(socket), backend=backend, outcome="down", detail=str(error)[:300])
    except (KeyError, ValueError, TypeError) as error:
        raise CollectorFailed(
            f"{socket} does not answer like a router: {type(error).__name__}: {error}"
        ) from error
    servers = tuple(
        RouterServer(**row.model_dump(include=set(RouterServer.model_fields)))
        for row in rows
        if row.backend == backend
    )
    return RouterReading(
        socket=str(socket),
        backend=backend,
        outcome="ok" if servers else "no_backend",
        detail="" if servers else f"the router has no backend {backend!r} with servers",
        servers=servers[:MAX_SERVERS],
    )


ROUTER = Collector(
    collect=lambda source: collect_router(
        source.target.router_socket,
        backend=source.target.router_backend,
        timeout_s=source.limits.router_timeout_s,
    ),
    deadline_s=lambda source: 2 * source.limits.router_timeout_s + 1,
)
