"""Measure the bare start-up of an engine, with which the time to the first token is compared."""

import time

from gpu_actions.host import Host

READY_TIMEOUT_S = 400.0
STOP_GRACE_S = 5.0


async def bare_start_s(host: Host) -> float:
    """Start the fallback unit alone, wait for its first token, and stop it. Return the seconds to the token."""
    began = time.monotonic()
    await host.fallback.unit.start()
    await host.fallback.engine.wait_ready(timeout_s=READY_TIMEOUT_S)
    took_s = time.monotonic() - began
    await host.fallback.unit.stop(grace_s=STOP_GRACE_S)
    return took_s
