"""The router's servers: weights, states, sessions and queues."""

import json

from gpu_actions.forensics.item import Collected, Scope, evidence


@evidence("router/servers.json", source="router admin socket: servers, weights, sessions and queues")
async def servers(scope: Scope) -> Collected:
    rows = await scope.host.router.servers()
    return Collected(text=json.dumps([row.model_dump() for row in rows], indent=1))
