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
    """The servers of the router's backend, or why it did not answer. `before`: the same at the start of the window."""

    socket: str
    backend: str
    outcome: Literal["ok", "down", "no_backend"]
    detail: str = ""
    servers: tuple[RouterServer, ...] = ()
    before: tuple[RouterServer, ...] = ()


async def collect_router(source: Source) -> RouterReading:
    """Read the servers of a backend at both ends of the window. A router that does not answer is a reading: down.

    Raises CollectorSkipped without an address, CollectorFailed if permission is denied or the answer cannot be parsed.
    """
    if source.target.router_address is None:
        raise CollectorSkipped("no router is configured")
    first = await read_router(source)
    if first.outcome != "ok":
        return first
    if not any(row.sessions or row.queued for row in first.servers):
        source.window.needs_no_more("router")
    await source.window_end()
    last = await read_router(source)
    return last.model_copy(update={"before": first.servers})


async def read_router(source: Source) -> RouterReading:
    """Read the servers once. Raises CollectorFailed if permission is denied or the answer cannot be parsed."""
    target = source.target
    address, backend = target.router_address or "", target.router_backend
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


ROUTER = Collector(
    collect=collect_router,
    observes=True,
    deadline_s=lambda source: source.window_s + 4 * source.limits.router_timeout_s + 1,
)
