"""An engine's Prometheus page as data, and the arithmetic on its histograms.

Metric names were read off the pages of vLLM 0.32 and SGLang 0.5.23; the reference engine uses vLLM's. The parser is our own
because prometheus_client's takes nine times as long on a vLLM page (docs/serving.md), which a watch pays each second.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from gpu_actions.config.host import EngineKind
from gpu_actions.serving.interfaces import EngineMetrics, Histogram


class Names(NamedTuple):
    """The names of one figure, the preferred first. `combine` is how label sets become one figure."""

    names: tuple[str, ...]
    combine: str = "sum"


VLLM_NAMES: dict[str, Names] = {
    "running": Names(("vllm:num_requests_running",)),
    "waiting": Names(("vllm:num_requests_waiting",)),
    "generation_tokens": Names(("vllm:generation_tokens_total",)),
    "prompt_tokens": Names(("vllm:prompt_tokens_total",)),
    "requests_finished": Names(("vllm:request_success_total",)),
    "kv_cache_usage": Names(("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"), "max"),
    "ttft": Names(("vllm:time_to_first_token_seconds",)),
    "itl": Names(("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")),
    "e2e": Names(("vllm:e2e_request_latency_seconds",)),
    "queue": Names(("vllm:request_queue_time_seconds",)),
}
SGLANG_NAMES: dict[str, Names] = {
    "running": Names(("sglang:num_running_reqs",)),
    "waiting": Names(("sglang:num_queue_reqs",)),
    "generation_tokens": Names(("sglang:generation_tokens_total",)),
    "prompt_tokens": Names(("sglang:prompt_tokens_total",)),
    "requests_finished": Names(("sglang:num_requests_total",)),
    "kv_cache_usage": Names(("sglang:token_usage",), "max"),
    "ttft": Names(("sglang:time_to_first_token_seconds",)),
    "itl": Names(("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds")),
    "e2e": Names(("sglang:e2e_request_latency_seconds",)),
    "queue": Names(("sglang:queue_time_seconds",)),
}
METRIC_NAMES: dict[EngineKind, dict[str, Names]] = {
    "reference": VLLM_NAMES,
    "vllm": VLLM_NAMES,
    "sglang": SGLANG_NAMES,
    "openai": {
        figure: Names((*VLLM_NAMES[figure].names, *SGLANG_NAMES[figure].names), VLLM_NAMES[figure].combine)
        for figure in VLLM_NAMES
    },
}
"""The one table of metric names, by engine kind and by field of EngineMetrics."""

HISTOGRAMS = frozenset({"ttft", "itl", "e2e", "queue"})

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


class Sample(NamedTuple):
    """One line of a Prometheus page."""

    name: str
    labels: dict[str, str]
    value: float


def parse_samples(text: str, prefixes: tuple[str, ...]) -> Iterable[Sample]:
    """Give the samples whose names start with one of `prefixes`. Raises ValueError for a line that is not a sample."""
    for line in text.splitlines():
        if not line.startswith(prefixes):
            continue
        match = _SAMPLE.match(line)
        if match is None:
            raise ValueError(f"not a Prometheus sample: {line[:120]!r}")
        name, labels, value = match.groups()
        pairs = {key: _unescape(text) for key, text in _LABEL.findall(labels)} if labels else {}
        yield Sample(name, pairs, float(value))


def _unescape(value: str) -> str:
    if "\\" not in value:
        return value
    return re.sub(r"\\(.)", lambda found: "\n" if found.group(1) == "n" else found.group(1), value)


def read_engine_metrics(text: str, *, kind: EngineKind, model: str, taken_at_s: float) -> EngineMetrics:
    """Give the figures of an engine's page. Figures it does not have are None and named in `missing`.

    Label sets (data-parallel engines, finish reasons) are summed, the fullest KV cache counts. Where the page has
    several models, only the samples of `model` count. Raises ValueError for a page that is not Prometheus text.
    """
    table = METRIC_NAMES[kind]
    wanted = tuple({name for names in table.values() for name in names.names})
    by_name: dict[str, list[Sample]] = {}
    models: set[str] = set()
    for sample in parse_samples(text, wanted):
        by_name.setdefault(sample.name, []).append(sample)
        models.add(sample.labels.get("model_name", ""))
    if len(models) > 1 and model in models:
        by_name = {
            name: [sample for sample in samples if sample.labels.get("model_name") == model]
            for name, samples in by_name.items()
        }
    figures: dict[str, float | Histogram | None] = {}
    for figure, names in table.items():
        found: float | Histogram | None = None
        for name in names.names:
            found = (
                _histogram(by_name, name) if figure in HISTOGRAMS else _number(by_name, name, names.combine)
            )
            if found is not None:
                break
        figures[figure] = found
    missing = tuple(figure for figure, value in figures.items() if value is None)
    return EngineMetrics.model_validate({"taken_at_s": taken_at_s, "missing": missing, **figures})


def _number(by_name: Mapping[str, list[Sample]], name: str, combine: str) -> float | None:
    values = [sample.value for sample in by_name.get(name, ()) if not math.isnan(sample.value)]
    if not values:
        return None
    return max(values) if combine == "max" else math.fsum(values)


def _histogram(by_name: Mapping[str, list[Sample]], name: str) -> Histogram | None:
    counts: dict[float, float] = {}
    for sample in by_name.get(f"{name}_bucket", ()):
        bound = float(sample.labels.get("le", "nan"))
        counts[bound] = counts.get(bound, 0.0) + sample.value
    bounds = sorted(bound for bound in counts if not math.isnan(bound))
    if not bounds or bounds[-1] != math.inf:
        return None
    return Histogram(
        bounds_s=tuple(bounds),
        counts=tuple(counts[bound] for bound in bounds),
        total_s=math.fsum(sample.value for sample in by_name.get(f"{name}_sum", ())),
    )


def histogram_count(histogram: Histogram) -> float:
    """Give how many observations it holds."""
    return histogram.counts[-1] if histogram.counts else 0.0


def histogram_delta(before: Histogram, after: Histogram) -> Histogram:
    """Give the observations between two moments.

    Counts that fell mean that the engine was started again in between: then everything in `after` is new, as in
    Prometheus. Raises ValueError when the buckets differ (another engine or another version answered).
    """
    if before.bounds_s != after.bounds_s:
        raise ValueError(
            f"the histograms have different buckets ({len(before.bounds_s)} and {len(after.bounds_s)}): "
            "they come from different engines or versions and cannot be subtracted"
        )
    if any(new < old for old, new in zip(before.counts, after.counts, strict=True)):
        return after
    return Histogram(
        bounds_s=after.bounds_s,
        counts=tuple(new - old for old, new in zip(before.counts, after.counts, strict=True)),
        total_s=max(0.0, after.total_s - before.total_s),
    )


def histogram_percentile(histogram: Histogram, q: float) -> float | None:
    """Give the q-quantile in seconds (0 <= q <= 1), linear within its bucket as Prometheus' histogram_quantile does.

    None when there are no observations. Beyond the last finite bound the bound itself is given: the true value is at
    least that. Raises ValueError for q outside 0..1.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q is {q}: it must be between 0 and 1")
    total = histogram_count(histogram)
    if total <= 0:
        return None
    rank = q * total
    lower_bound, lower_count = 0.0, 0.0
    for bound, count in zip(histogram.bounds_s, histogram.counts, strict=True):
        if count >= rank and count > lower_count:
            if math.isinf(bound):
                return lower_bound
            return lower_bound + (bound - lower_bound) * max(0.0, rank - lower_count) / (count - lower_count)
        lower_bound, lower_count = (lower_bound if math.isinf(bound) else bound), max(lower_count, count)
    return lower_bound
