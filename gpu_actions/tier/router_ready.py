"""A router that answers, before a step relies on it: one that was just killed gets a second chance."""

import asyncio

from gpu_actions.serving.interfaces import Router, RouterError

SECOND_TRY_AFTER_S = 0.5
"""A supervisor restarts a killed HAProxy after 0.25 s; a start of ours in that very moment may meet it."""


async def ready_router(router: Router) -> None:
    """See that the router runs, starting a managed one where it does not. Raises RouterError when it stays away."""
    try:
        await router.ensure_running()
    except RouterError:
        await asyncio.sleep(SECOND_TRY_AFTER_S)
        await router.ensure_running()
