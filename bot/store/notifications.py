"""Hears of changes that another process made to the runs, and tells them to this one's streams as if they were its own.

`gpu-oncall bot` and `gpu-oncall worker` share the rows and nothing else: what one writes, the other finds here within `POLL_S`.
"""

import asyncio
from collections.abc import Callable

import structlog
from sqlalchemy.exc import OperationalError

from bot.store.store import Store

log = structlog.get_logger()

POLL_S = 0.2
"""One indexed query each time: 0.1 % of a core on SQLite; an approval reaches the worker within two of them."""


async def follow_changes(store: Store, tell: Callable[[str], None], *, since: int) -> None:
    """Call `tell(run_id)` for each run that changes after a version, until cancelled. Own ones come too: telling is harmless.

    The caller reads `since` before it says that it is there: what is asked of it from then on must not count as known.
    """
    seen = since
    away = False
    while True:
        await asyncio.sleep(POLL_S)
        try:
            changed = await asyncio.to_thread(store.changed_since, seen)
        except OperationalError as error:
            if not away:
                log.warning("the database does not answer, trying again", error=str(error)[:200])
            away = True
            continue
        away = False
        for run_id, version in changed:
            seen = max(seen, version)
            tell(run_id)
