"""Keep the weights of the fallback in the page cache, where the settings ask for it (`page_cache` of a tier).

The work is a child process at the lowest priority. It is left out while an incident is open or a run is at work: the disk is
needed for evidence and for the start itself.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import structlog

from bot.settings.watch import MonitorSettings
from bot.watch.scheduler import Schedule
from gpu_actions.config.host import HostConfig, PageCacheSettings
from gpu_actions.tier.page_cache_state import GIB, PageCacheState, page_cache_of

log = structlog.get_logger()

FIRST_S = 20.0


@dataclass(frozen=True)
class PageCacheKeeper:
    """Keeps the files of each tier that has `page_cache`. `is_quiet` says whether nothing is going on at a host."""

    settings: MonitorSettings
    is_quiet: Callable[[str], bool]

    def schedule(self, schedule: Schedule, hosts: Iterable[HostConfig]) -> None:
        """Schedule the work for every tier that asks for it."""
        for host in hosts:
            for name, tier in host.every_tier.items():
                if tier.page_cache is not None:
                    keep = partial(self.keep, host.name, name, tier.page_cache)
                    schedule.every(
                        self.settings.page_cache_period_s,
                        f"page cache:{host.name}:{name}",
                        keep,
                        first_after_s=FIRST_S,
                    )

    async def keep(self, host: str, tier: str, settings: PageCacheSettings) -> PageCacheState | None:
        """Keep one tier's files, unless something is going on."""
        if not await asyncio.to_thread(self.is_quiet, host):
            return None
        try:
            state = await page_cache_of(settings)
        except OSError as error:
            log.warning("page cache", host=host, tier=tier, error=str(error))
            return None
        if state.read_bytes or state.problems:
            log.info(
                "page cache",
                host=host,
                tier=tier,
                state=state.text,
                read_gib=round(state.read_bytes / GIB, 2),
                problems="; ".join(state.problems),
            )
        return state
