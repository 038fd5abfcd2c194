"""Can requests reach a tier? The router's servers, their weights and its queue."""

from collections.abc import Iterator

from gpu_actions.models import Finding, VerdictKind
from gpu_actions.snapshot.collectors.router import RouterServer
from gpu_actions.triage.check import Check, CheckContext
from gpu_actions.triage.rule import CRITICAL, INFO, OK, UNKNOWN, WATCH, Rules, rule

SOCKET = "router's admin socket"

RULES = Rules(
    rule("router.ok", OK, "the router answers and at least one server takes requests", source=SOCKET),
    rule(
        "router.down", CRITICAL, "the router does not answer: clients reach no tier",
        "Start the router. A fallback alone does not help.", source=SOCKET, cause="router_down",
        verdict=VerdictKind.WATCH,
    ),
    rule(
        "router.no_server", CRITICAL, "no server of the router's backend takes requests",
        "Restore the weight of a tier that generates tokens.", source=SOCKET, cause="router_down",
        verdict=VerdictKind.WATCH,
    ),
    rule(
        "router.tier_out", INFO, "this tier takes no new requests (drained, weight 0 or in maintenance)",
        source=SOCKET,
    ),
    rule(
        "router.queue", WATCH, "many requests wait at the router",
        "Lower the rate, or shift weight to a tier with headroom.", source=SOCKET, cause="serving_regression",
        threshold="router_queue",
    ),
    rule(
        "router.unread", UNKNOWN, "the router's admin socket could not be read",
        "Run triage as its owner or in its group.", source=SOCKET, verdict=VerdictKind.WATCH,
    ),
)  # fmt: skip


def check_router(context: CheckContext) -> Iterator[Finding]:
    """Judge the router, if one is configured."""
    snapshot = context.snapshot
    router = snapshot.router
    if router is None:
        if snapshot.failed("router"):
            yield RULES.finding("router.unread", snapshot.why_not("router"))
        return
    if router.outcome == "down":
        yield RULES.finding("router.down", router.detail, socket=router.socket)
        return
    rows = [
        {"server": row.server, "weight": row.weight, "state": row.admin_state, "operational": row.operational}
        for row in router.servers
    ]
    usable = sum(takes_requests(row) for row in router.servers)
    if router.outcome == "no_backend" or not usable:
        yield RULES.finding(
            "router.no_server",
            router.detail or f"none of the {len(rows)} servers of {router.backend!r} takes requests",
            servers=rows,
        )
        return
    own = [row for row in router.servers if row.server == snapshot.expected.router_server]
    if own and not any(takes_requests(row) for row in own):
        yield RULES.finding(
            "router.tier_out",
            f"{own[0].server} takes no new requests ({own[0].admin_state}, weight {own[0].weight})",
            servers=rows,
        )
    queued = sum(row.queued for row in router.servers)
    if queued >= context.thresholds.router_queue:
        yield RULES.finding("router.queue", f"{queued} requests wait at the router", queued=queued)
        return
    yield RULES.finding(
        "router.ok", f"{usable} of {len(rows)} servers take requests", servers=rows, queued=queued
    )


def takes_requests(row: RouterServer) -> bool:
    """Return True if the router sends new requests to a server."""
    return row.admin_state == "ready" and row.operational != "DOWN" and row.weight > 0


ROUTER = Check(title="Router", rules=RULES, reads=frozenset({"router"}), judge=check_router)
