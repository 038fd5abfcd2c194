"""The engine's Prometheus page, read twice: the counters that move show what still works."""

import aiohttp

from gpu_actions.forensics.item import Collected, Missing, Scope, evidence, read_to_cap, twice, while_active


@evidence("{tier}/metrics_{number}.txt", source="{url}/metrics", when=twice(while_active))
async def metrics(scope: Scope) -> Collected:
    engine = scope.the_tier.config.engine
    url = f"{scope.the_tier.engine.url}/metrics"
    key = engine.api_key
    headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30), headers=headers) as session,
            session.get(url) as response,
        ):
            text, truncated = await read_to_cap(response.content)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Missing(f"{url}: {type(error).__name__}: {error}") from error
    return Collected(text=f"# HTTP {response.status}\n{text}", truncated=truncated)
