"""Keep or look at a tier's files in the page cache, through the child `page_cache.py`, and say what is there."""

import sys

from pydantic import ValidationError

from gpu_actions.config.host import PageCacheSettings
from gpu_actions.models import Frozen
from gpu_actions.system.processes import child_environment, run_process

GIB = 1024**3
SLOWEST_BYTES_PER_S = 50 * 1024**2


class PageCacheState(Frozen):
    """What is in the page cache of the files of one tier. `resident_bytes` is None if the kernel does not say."""

    bytes: int
    resident_bytes: int | None
    read_bytes: int
    problems: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        there = "an unknown part" if self.resident_bytes is None else f"{self.resident_bytes / GIB:.1f} GiB"
        return f"{there} of {self.bytes / GIB:.1f} GiB of weights in the page cache"


async def page_cache_of(settings: PageCacheSettings, *, look: bool = False) -> PageCacheState:
    """Keep a tier's files in the page cache, or only look. Raises OSError if the child fails."""
    max_bytes = int(settings.max_gib * GIB)
    flags = ["--look"] if look else []
    result = await run_process(
        [
            sys.executable, "-m", "gpu_actions.tier.page_cache", "--max-bytes", str(max_bytes), *flags,
            *map(str, settings.paths),
        ],
        timeout_s=60 + max_bytes / SLOWEST_BYTES_PER_S,
        env=child_environment(),
    )  # fmt: skip
    try:
        return PageCacheState.model_validate_json(result.stdout)
    except ValidationError:
        raise OSError(f"the page cache is not kept: {result.describe()}") from None
