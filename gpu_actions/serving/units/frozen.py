"""A frozen tier that runs all the same: somebody's cron job, another service manager, a colleague in a shell."""

import asyncio

from gpu_actions.serving.interfaces import UnitState
from gpu_actions.system.listening import listener_of
from gpu_actions.system.urls import port_of


async def runs_although_frozen(state: UnitState, url: str) -> str:
    """Who runs a tier whose unit is frozen, in a few words: its unit's process, or whoever listens on the engine's port.
    Empty when nobody does, and for a unit that is not frozen."""
    if not state.frozen:
        return ""
    if state.active:
        return f"process {state.main_pid}" if state.main_pid else "its unit is active"
    port = port_of(url)
    owner = await asyncio.to_thread(listener_of, port)
    return "" if owner is None else f"{owner} listens on its port {port}"
