"""The router's view of the tiers: servers, weights, queue."""

from typing import Literal

from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import (
    BackendUnknown,
    RouterDenied,
    RouterError,
    RouterGarbled,
    ServerState,
)
from gpu_actions.serving.registry import router_reader
from gpu_actions.snapshot.collector import Collector, CollectorFailed, CollectorSkipped, Source

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


async def collect_router(source: Source) -> RouterReading:
    """Read the servers of a backend. A router that does not answer is a reading: down.

    Raises CollectorSkipped without an address, CollectorFailed if permission is denied or the answer cannot be parsed.
    """
    target = source.target
    address, backend = target.router_address, target.router_backend
    if address is None:
        raise CollectorSkipped("no router is configured")
    outcome: Literal["ok", "down", "no_backend"] = "ok"
    detail = ""
    rows: tuple[ServerState, ...] = ()
    try:
        router = router_reader(target.router_kind, address, backend=backend)
        rows = await router.servers(timeout_s=source.limits.router_timeout_s)
    except (RouterDenied, RouterGarbled) as error:
        raise CollectorFailed(str(error)) from error
    except BackendUnknown as error:
        outcome, detail = "no_backend", str(error)[:300]
    except RouterError as error:
        outcome, detail = "down", str(error)[:300]
    return RouterReading(
        socket=address,
        backend=backend,
        outcome=outcome,
        detail=detail,
        servers=tuple(
            RouterServer(**row.model_dump(include=set(RouterServer.model_fields)))
            for row in rows
            if row.backend == backend
        )[:MAX_SERVERS],
    )


ROUTER = Collector(collect=collect_router, deadline_s=lambda source: 2 * source.limits.router_timeout_s + 1)
