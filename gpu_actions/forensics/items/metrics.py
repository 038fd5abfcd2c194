"""The engine's Prometheus page, read twice: the counters that move show what still works."""

from gpu_actions.forensics.item import (
    ITEM_CAP_BYTES,
    Collected,
    Missing,
    Scope,
    evidence,
    twice,
    while_active,
)
from gpu_actions.serving.http import HttpFailure, fetch

TIMEOUT_S = 30.0


@evidence("{tier}/metrics_{number}.txt", source="{url}/metrics", when=twice(while_active))
async def metrics(scope: Scope) -> Collected:
    key = scope.the_tier.config.engine.api_key
    try:
        page = await fetch(
            f"{scope.the_tier.engine.url}/metrics",
            timeout_s=TIMEOUT_S,
            api_key=None if key is None else key.get_secret_value(),
            max_bytes=ITEM_CAP_BYTES,
        )
    except HttpFailure as error:
        raise Missing(str(error)) from error
    return Collected(text=f"# HTTP {page.status}\n{page.text}", truncated=page.truncated)
