"""The engine's own counters, scraped at both ends of the window.

The page is read in the dialect of whichever known engine it shows. A refused connection and a page that is not Prometheus
text are readings too; the checks judge what they mean.
"""

import asyncio
import math
import time

import aiohttp

from gpu_actions.serving.engines.metrics import histogram_count
from gpu_actions.serving.registry import engine_of_page
from gpu_actions.snapshot.collectors import CollectorSkipped
from gpu_actions.snapshot.host_model import EngineReading, EngineSample

MAX_PAGE_BYTES = 8 * 1024 * 1024
FIGURES = ("running", "waiting", "generation_tokens", "progress", "prompt_tokens", "kv_cache_usage")


async def collect_engine(
    url: str | None,
    *,
    model: str | None,
    session: aiohttp.ClientSession,
    window_s: float,
    timeout_s: float,
    began: float,
) -> EngineReading:
    """Scrape `url`/metrics now and `window_s` seconds later. Raises CollectorSkipped when no engine was named."""
    if url is None:
        raise CollectorSkipped("no engine was named")
    first = await scrape(url, model=model, session=session, timeout_s=timeout_s, began=began)
    await asyncio.sleep(max(0.0, first.at_s + window_s - (time.monotonic() - began)))
    last = await scrape(url, model=model, session=session, timeout_s=timeout_s, began=began)
    return EngineReading(url=url, samples=(first, last))


async def scrape(
    url: str, *, model: str | None, session: aiohttp.ClientSession, timeout_s: float, began: float
) -> EngineSample:
    """Read one page of metrics. Never raises for what the far end does: that is the sample's outcome."""
    asked_at_s = time.monotonic() - began
    try:
        async with asyncio.timeout(timeout_s), session.get(f"{url.rstrip('/')}/metrics") as response:
            raw = await response.content.read(MAX_PAGE_BYTES)
            while len(raw) < MAX_PAGE_BYTES and (more := await response.content.read(65536)):
                raw += more
            status = response.status
    except TimeoutError:
        return EngineSample(
            at_s=asked_at_s, outcome="timeout", detail=f"no answer from {url}/metrics within {timeout_s:g} s"
        )
    except aiohttp.InvalidURL as error:
        return EngineSample(at_s=asked_at_s, outcome="not_metrics", detail=f"{error} is no URL")
    except (aiohttp.ClientConnectorError, ConnectionError) as error:
        return EngineSample(at_s=asked_at_s, outcome="refused", detail=_short(error))
    except (aiohttp.ClientError, ValueError, OSError) as error:
        return EngineSample(at_s=asked_at_s, outcome="not_metrics", detail=_short(error))
    at_s = time.monotonic() - began
    if status != 200:
        return EngineSample(at_s=at_s, outcome="http_error", detail=f"{url}/metrics answered {status}")
    return sample_of_page(raw.decode(errors="replace"), model=model, at_s=at_s)


def sample_of_page(text: str, *, model: str | None, at_s: float) -> EngineSample:
    """Turn a Prometheus page into a sample. Negative and infinite figures count as missing, because no counter has them."""
    engine = engine_of_page(text)
    if engine is None:
        return EngineSample(
            at_s=at_s,
            outcome="not_metrics",
            detail="the page holds none of the metrics of a known engine",
            missing=FIGURES,
        )
    try:
        metrics = engine.read_page(text, model=model or "", taken_at_s=at_s)
    except (ValueError, OverflowError) as error:
        return EngineSample(at_s=at_s, outcome="not_metrics", detail=_short(error))
    figures: dict[str, float | None] = {}
    for name in FIGURES:
        value = getattr(metrics, name)
        figures[name] = value if value is not None and math.isfinite(value) and value >= 0 else None
    missing = tuple(name for name, value in figures.items() if value is None)
    if len(missing) == len(FIGURES):
        return EngineSample(
            at_s=at_s,
            outcome="not_metrics",
            detail="the page holds none of the metrics of a known engine",
            missing=missing,
        )
    ttft = metrics.ttft
    usable = ttft is not None and math.isfinite(ttft.total_s) and math.isfinite(histogram_count(ttft))
    return EngineSample(
        at_s=at_s,
        outcome="ok",
        dialect=engine.kind,
        ttft_count=histogram_count(ttft) if ttft is not None and usable else None,
        ttft_sum_s=ttft.total_s if ttft is not None and usable else None,
        missing=missing,
        **figures,
    )


def _short(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
