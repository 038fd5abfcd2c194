"""Can requests reach a tier at all? The router's servers, their weights and its queue."""

from collections.abc import Iterator

from gpu_actions.models import Finding
from gpu_actions.snapshot.collectors.router import RouterServer
from gpu_actions.triage.checks.context import CheckContext, make_finding


def check_router(context: CheckContext) -> Iterator[Finding]:
    """Findings on the router; none where it was not named."""
    snapshot = context.snapshot
    router = snapshot.router
    if router is None:
        if snapshot.collectors.get("router") is not None and not snapshot.skipped("router"):
            yield make_finding("router.unread", snapshot.why_not("router"))
        return
    if router.outcome == "down":
        yield make_finding("router.down", router.detail, evidence={"socket": router.socket})
        return
    rows = [
        {"server": row.server, "weight": row.weight, "state": row.admin_state, "operational": row.operational}
        for row in router.servers
    ]
    if router.outcome == "no_backend" or not any(usable(row) for row in router.servers):
        yield make_finding(
            "router.no_server",
            router.detail or f"none of {len(rows)} servers of {router.backend!r} takes requests",
            evidence={"servers": rows},
        )
        return
    own = [row for row in router.servers if row.server == snapshot.expected.router_server]
    if own and not any(usable(row) for row in own):
        yield make_finding(
            "router.tier_out",
            f"{own[0].server} takes no new requests ({own[0].admin_state}, weight {own[0].weight})",
            evidence={"servers": rows},
        )
    queued = sum(row.queued for row in router.servers)
    if queued >= context.thresholds.router_queue:
        yield make_finding(
            "router.queue", f"{queued} requests wait at the router", evidence={"queued": queued}
        )
        return
    yield make_finding(
        "router.ok",
        f"{sum(usable(row) for row in router.servers)} of {len(rows)} servers take requests",
        evidence={"servers": rows, "queued": queued},
    )


def usable(row: RouterServer) -> bool:
    """Whether new requests go to it."""
    return row.admin_state == "ready" and row.operational != "DOWN" and row.weight > 0
