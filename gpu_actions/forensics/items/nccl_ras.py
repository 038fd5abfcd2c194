"""NCCL's own view of its communicators, read twice from its RAS port (NCCL 2.24 and later)."""

import asyncio
from collections.abc import Sequence

from gpu_actions.forensics.item import Collected, Missing, Scope, evidence, read_to_cap, twice


def _where_configured(scope: Scope) -> Sequence[Scope]:
    return (scope,) if scope.host.config.ras_address else ()


@evidence("nccl/ras_{number}.txt", source="NCCL RAS: VERBOSE STATUS", when=twice(_where_configured))
async def ras(scope: Scope) -> Collected:
    """Read one raw answer to its end. A refused connection and silence are evidence too; the reason tells them apart."""
    address = scope.host.config.ras_address or ""
    name, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(name.strip("[]"), int(port))
    try:
        # RAS waits 5 s for silent ranks by default, which is most of the budget.
        writer.write(b"TIMEOUT 1\nVERBOSE STATUS\n")
        await writer.drain()
        text, truncated = await read_to_cap(reader)
    finally:
        writer.close()
    if not text:
        raise Missing(f"RAS at {address} closed the connection without an answer")
    return Collected(text=text, truncated=truncated)
