"""The engine's own counters, scraped at both ends of the window.

The page is read in the dialect of whichever known engine it shows. A refused connection and a page that is not Prometheus
text are readings too: the checks decide what they mean.
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.serving.condition import TokenSample, held_of
from gpu_actions.serving.engines.metrics import histogram_count, summed
from gpu_actions.serving.http import HttpFailure, fetch
from gpu_actions.serving.interfaces import ReplicaMetrics
from gpu_actions.serving.registry import engine_of_page
from gpu_actions.snapshot.collector import Collector, CollectorSkipped, Source
from gpu_actions.system.redact import redacted_head

Outcome = Literal["ok", "refused", "timeout", "http_error", "not_metrics"]
FIGURES = ("running", "waiting", "generation_tokens", "progress", "prompt_tokens", "kv_cache_usage")
NO_KNOWN_METRIC = "the page has none of the metrics of a known engine"


class EngineSample(Frozen):
    """One scrape of /metrics. `missing` lists the figures that this engine does not export as a number."""

    at_s: float
    outcome: Outcome
    detail: str = ""
    dialect: str = ""
    running: float | None = None
    waiting: float | None = None
    generation_tokens: float | None = None
    progress: float | None = Field(default=None, description="changes with every generated token")
    prompt_tokens: float | None = None
    kv_cache_usage: float | None = None
    ttft_count: float | None = None
    ttft_sum_s: float | None = None
    missing: tuple[str, ...] = ()
    replicas: tuple[ReplicaMetrics, ...] = Field(
        default=(), description="data-parallel replicas, if there are several"
    )

    @property
    def tokens(self) -> float | None:
        """The count that changes with every token; snapshots of older versions have only `generation_tokens`."""
        return self.generation_tokens if self.progress is None else self.progress


class EngineReading(Frozen):
    """The engine's counters at the start and the end of the window."""

    url: str
    samples: tuple[EngineSample, ...]

    def replica_samples(self) -> dict[str, tuple[TokenSample, ...]]:
        """Return the counters of each replica, by its name, if there are several."""
        return {
            last.name: tuple(
                TokenSample(
                    at_s=sample.at_s,
                    tokens=replica.progress,
                    held=held_of(replica.running, replica.waiting),
                    waiting=replica.waiting,
                    kv_cache_usage=replica.kv_cache_usage,
                )
                for sample in self.samples
                for replica in sample.replicas
                if replica.name == last.name and replica.outcome == "ok"
            )
            for last in (self.samples[-1].replicas if self.samples else ())
        }

    def ttft_mean(self) -> tuple[float | None, float]:
        """Return the mean time to first token within the window in milliseconds, and the number of requests behind it."""
        first, last = self.samples[0], self.samples[-1]
        if (
            first.ttft_count is None
            or last.ttft_count is None
            or first.ttft_sum_s is None
            or last.ttft_sum_s is None
        ):
            return None, 0
        requests = last.ttft_count - first.ttft_count
        return (1000 * (last.ttft_sum_s - first.ttft_sum_s) / requests if requests > 0 else None), requests

    def tokens_per_s_under_queue(self) -> float | None:
        """Return the generation rate within the window, or None if requests were not queued at both ends."""
        first, last = self.samples[0], self.samples[-1]
        seconds = last.at_s - first.at_s
        if not (first.waiting or 0) > 0 or not (last.waiting or 0) > 0 or seconds <= 0:
            return None
        if first.tokens is None or last.tokens is None:
            return None
        return (last.tokens - first.tokens) / seconds


async def collect_engine(source: Source) -> EngineReading:
    """Scrape /metrics at both ends of the window. Raises CollectorSkipped without a URL."""
    url = source.engine_url
    if url is None:
        raise CollectorSkipped("no engine is configured, or the tier is stopped on purpose")
    urls = source.target.replica_urls or (url,)
    first = await asyncio.gather(*(scrape(one, source) for one in urls))
    if await needs_no_window(tier_sample(urls, first), source):
        source.window.needs_no_more("engine")
    await source.window_end(max(one.at_s for one in first))
    last = await asyncio.gather(*(scrape(one, source) for one in urls))
    both = [one.outcome == later.outcome == "ok" for one, later in zip(first, last, strict=True)]
    return EngineReading(
        url=url, samples=tuple(tier_sample(urls, samples, both) for samples in (first, last))
    )


def name_of(url: str) -> str:
    """Return the name of a replica with an address of its own: its host and port."""
    return urlsplit(url).netloc


def tier_sample(
    urls: Sequence[str], samples: Sequence[EngineSample], counted: Sequence[bool] = ()
) -> EngineSample:
    """Return the sample of a tier: the one of its only server, or the sum over its replicas with each one's figures.

    Only replicas that were read at both ends of the window are `counted`, if any was: a sum must not fall with one that ended.
    """
    if len(samples) == 1:
        return samples[0]
    good = [one for one in samples if one.outcome == "ok"]
    whole = [one for one, at_both in zip(samples, counted, strict=False) if at_both] or good
    figures = summed(whole, (*FIGURES, "ttft_count", "ttft_sum_s"))
    silent = next((one for one in samples if one.outcome == "timeout"), samples[0])
    return (whole or [silent])[0].model_copy(
        update={
            **figures,
            "at_s": max(one.at_s for one in samples),
            "missing": tuple(name for name in FIGURES if figures[name] is None),
            "replicas": tuple(
                ReplicaMetrics(
                    name=name_of(url),
                    running=one.running,
                    waiting=one.waiting,
                    progress=one.tokens,
                    kv_cache_usage=one.kv_cache_usage,
                    outcome=one.outcome,
                    detail=one.detail,
                )
                for url, one in zip(urls, samples, strict=True)
            ),
        }
    )


async def needs_no_window(first: EngineSample, source: Source) -> bool:
    """Return True if the first sample says enough: nothing listens, or an idle engine answered the synthetic completion.

    Under traffic the window shows progress, latency and throughput, and an idle engine that does not answer may hang.
    """
    if first.outcome == "refused":
        return True
    if first.outcome != "ok" or first.tokens is None or first.running != 0 or first.waiting:
        return False
    if any(replica.outcome != "ok" for replica in first.replicas):
        return False
    completion = await source.reading("completion")
    if completion is None:
        return not source.target.completion
    return all(one.outcome == "ok" for one in (completion, *completion.replicas))


async def scrape(url: str, source: Source) -> EngineSample:
    """Scrape /metrics once. Never raises for what the server does: the sample's outcome says it."""
    at_s = source.at_s
    try:
        page = await fetch(f"{url.rstrip('/')}/metrics", timeout_s=source.limits.metrics_timeout_s)
    except HttpFailure as failure:
        outcome: Outcome = "not_metrics"
        if failure.reason in ("refused", "timeout"):
            outcome = failure.reason
        return EngineSample(at_s=at_s, outcome=outcome, detail=_short(failure))
    at_s = source.at_s
    if page.status != 200:
        return EngineSample(at_s=at_s, outcome="http_error", detail=f"{url}/metrics answered {page.status}")
    return sample_of_page(page.text, model=source.target.model, at_s=at_s)


def sample_of_page(text: str, *, model: str | None, at_s: float) -> EngineSample:
    """Turn a Prometheus page into a sample. Negative and infinite figures count as missing: no counter can have them."""
    engine = engine_of_page(text)
    if engine is None:
        return EngineSample(at_s=at_s, outcome="not_metrics", detail=NO_KNOWN_METRIC, missing=FIGURES)
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
        return EngineSample(at_s=at_s, outcome="not_metrics", detail=NO_KNOWN_METRIC, missing=missing)
    ttft = metrics.ttft
    usable = ttft is not None and math.isfinite(ttft.total_s) and math.isfinite(histogram_count(ttft))
    return EngineSample(
        at_s=at_s,
        outcome="ok",
        dialect=engine.kind,
        ttft_count=histogram_count(ttft) if ttft is not None and usable else None,
        ttft_sum_s=ttft.total_s if ttft is not None and usable else None,
        missing=missing,
        replicas=metrics.replicas,
        **figures,
    )


def _short(error: BaseException) -> str:
    return redacted_head(" ".join(str(error).split()) or type(error).__name__, 200)


ENGINE = Collector(
    collect=collect_engine,
    deadline_s=lambda source: source.window_s + 2 * source.limits.metrics_timeout_s + 1,
    observes=True,
)
