"""The engine's own counters, scraped at both ends of the window.

The page is read in the dialect of whichever known engine it shows. A refused connection and a page that is not Prometheus
text are readings too: the checks decide what they mean.
"""

import math
from typing import Literal

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.serving.engines.metrics import histogram_count
from gpu_actions.serving.http import HttpFailure, fetch
from gpu_actions.serving.interfaces import ReplicaMetrics
from gpu_actions.serving.registry import engine_of_page
from gpu_actions.snapshot.collector import Collector, CollectorSkipped, Source
from gpu_actions.system.redact import redacted_head

FIGURES = ("running", "waiting", "generation_tokens", "progress", "prompt_tokens", "kv_cache_usage")
NO_KNOWN_METRIC = "the page has none of the metrics of a known engine"


class EngineSample(Frozen):
    """One scrape of /metrics. `missing` lists the figures that this engine does not export as a number."""

    at_s: float
    outcome: Literal["ok", "refused", "timeout", "http_error", "not_metrics"]
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

    def flat_replicas(self) -> tuple[str, ...]:
        """Return the replicas that had running requests at both ends of the window and generated no token in between."""
        before = {replica.name: replica for replica in self.samples[0].replicas} if self.samples else {}
        return tuple(
            last.name
            for last in (self.samples[-1].replicas if self.samples else ())
            if (first := before.get(last.name)) is not None
            and (first.running or 0) > 0
            and (last.running or 0) > 0
            and first.progress is not None
            and first.progress == last.progress
        )

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
    first = await scrape(url, source)
    if await needs_no_window(first, source):
        source.window.needs_no_more("engine")
    await source.window_end(first.at_s)
    return EngineReading(url=url, samples=(first, await scrape(url, source)))


async def needs_no_window(first: EngineSample, source: Source) -> bool:
    """Return True if the first sample says enough: nothing listens, or an idle engine answered the synthetic completion.

    Under traffic the window shows progress, latency and throughput, and an idle engine that does not answer may hang.
    """
    if first.outcome == "refused":
        return True
    if first.outcome != "ok" or first.tokens is None or first.running != 0 or first.waiting:
        return False
    completion = await source.reading("completion")
    return completion.outcome == "ok" if completion is not None else not source.target.completion


async def scrape(url: str, source: Source) -> EngineSample:
    """Scrape /metrics once. Never raises for what the server does: the sample's outcome says it."""
    at_s = source.at_s
    try:
        page = await fetch(f"{url.rstrip('/')}/metrics", timeout_s=source.limits.metrics_timeout_s)
    except HttpFailure as failure:
        outcome: Literal["refused", "timeout", "not_metrics"] = "not_metrics"
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
