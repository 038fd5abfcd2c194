"""NCCL's own view of its communicators, read twice from its RAS port (NCCL 2.24 and later)."""

from collections.abc import Sequence

from gpu_actions.forensics.item import Collected, Missing, Scope, evidence, read_to_cap, twice
from gpu_actions.snapshot.collectors.ras import ASK_SHORT_WAIT, ASK_STATUS, connect_ras


def _where_configured(scope: Scope) -> Sequence[Scope]:
    return (scope,) if scope.host.config.ras_address else ()


@evidence("nccl/ras_{number}.txt", source="NCCL RAS: VERBOSE STATUS", when=twice(_where_configured))
async def ras(scope: Scope) -> Collected:
    """Read one raw answer to its end. A refused connection and silence are evidence too; the reason tells them apart."""
    address = scope.host.config.ras_address or ""
    async with connect_ras(address) as (reader, writer):
        writer.write(ASK_SHORT_WAIT + ASK_STATUS)
        await writer.drain()
        text, truncated = await read_to_cap(reader)
    if not text:
        raise Missing(f"RAS at {address} closed the connection without an answer")
    return Collected(text=text, truncated=truncated)
