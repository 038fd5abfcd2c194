"""The router's view of the tiers, over its admin socket (`show stat`, `show servers state`)."""

from pathlib import Path

from gpu_actions.serving.interfaces import RouterError
from gpu_actions.serving.routers.haproxy_socket import HaproxySocket, join_rows
from gpu_actions.snapshot.collectors import CollectorFailed, CollectorSkipped
from gpu_actions.snapshot.host_model import RouterReading, RouterServer

MAX_SERVERS = 64


async def collect_router(socket: Path | None, *, backend: str, timeout_s: float) -> RouterReading:
    """Read the servers of a backend. A router that does not answer is a reading: down.

    Raises CollectorSkipped without a socket, CollectorFailed where we may not look or do not understand the answer.
    """
    if socket is None:
        raise CollectorSkipped("no router socket was named")
    admin = HaproxySocket(socket, timeout_s=timeout_s)
    try:
        stat = await admin.stat()
        states = await admin.states()
    except RouterError as error:
        if isinstance(error.__cause__, PermissionError):
            raise CollectorFailed(
                f"may not open {socket}: run triage as its owner or in its group"
            ) from error
        return RouterReading(socket=str(socket), backend=backend, outcome="down", detail=str(error)[:300])
    except (KeyError, ValueError, TypeError) as error:
        raise CollectorFailed(
            f"{socket} answered something that is not HAProxy's: {type(error).__name__}: {error}"
        ) from error
    servers = [row for row in join_rows(stat, states) if row.backend == backend]
    return RouterReading(
        socket=str(socket),
        backend=backend,
        outcome="ok" if servers else "no_backend",
        detail="" if servers else f"the router has no backend {backend!r} with servers",
        servers=tuple(
            RouterServer(
                server=row.server,
                weight=row.weight,
                admin_state=row.admin_state,
                operational=row.operational,
                sessions=row.sessions,
                queued=row.queued,
                responses_5xx=row.responses_5xx,
            )
            for row in servers[:MAX_SERVERS]
        ),
    )
