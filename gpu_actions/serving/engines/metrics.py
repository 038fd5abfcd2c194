"""Parse an engine's Prometheus page into `EngineMetrics`, and compute with its histograms.

The parser is our own because prometheus_client's takes nine times as long on a vLLM page (docs/serving.md), and a restore
reads one twice a second.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gpu_actions.serving.interfaces import EngineMetrics, Histogram, ReplicaMetrics, TokenHistogram


class Names(NamedTuple):
    """The metric names of one figure, the preferred one first. `combine` says how its label sets become one figure."""

    names: tuple[str, ...]
    combine: str = "sum"


NUMBERS = ("running", "waiting", "generation_tokens", "prompt_tokens", "requests_finished", "kv_cache_usage")
HISTOGRAMS = ("ttft", "itl", "e2e", "queue")
LENGTHS = ("prompt_lengths", "answer_lengths")
FIGURES = (*NUMBERS, *HISTOGRAMS, *LENGTHS)
"""The figures of `EngineMetrics` that an engine may export."""
OF_REPLICAS = ("running", "waiting", "kv_cache_usage")

Figure = float | Histogram | TokenHistogram | None

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


class Sample(NamedTuple):
    """One line of a Prometheus page."""

    name: str
    labels: dict[str, str]
    value: float


def parse_samples(text: str, prefixes: tuple[str, ...]) -> Iterable[Sample]:
    """Yield the samples whose names start with one of `prefixes`. Raises ValueError for a line that is not a sample."""
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


def read_engine_metrics(
    text: str,
    names: Mapping[str, Names],
    *,
    model: str,
    taken_at_s: float,
    progress: tuple[str, ...] = ("generation_tokens",),
    replica_label: str = "",
) -> EngineMetrics:
    """Return the figures of an engine's page. Figures that the page lacks are None and listed in `missing`.

    Label sets (data-parallel engines, finish reasons) are summed; of KV caches the fullest counts. If the page covers
    several models, only the samples of `model` count. `progress` lists the figures whose sum changes with every token.
    Raises ValueError for a page that is not Prometheus text.
    """
    by_name: dict[str, list[Sample]] = {}
    models: set[str] = set()
    for sample in parse_samples(text, tuple({name for figure in names.values() for name in figure.names})):
        by_name.setdefault(sample.name, []).append(sample)
        models.add(sample.labels.get("model_name", ""))
    if model and len(models) > 1 and model in models:
        by_name = {
            name: [sample for sample in samples if sample.labels.get("model_name") == model]
            for name, samples in by_name.items()
        }
    figures = _figures(by_name, names)
    missing = tuple(figure for figure, value in figures.items() if value is None)
    return EngineMetrics.model_validate(
        {
            "taken_at_s": taken_at_s,
            "missing": missing,
            "progress": _progress(figures, progress),
            "replicas": _replicas(by_name, names, progress, replica_label) if replica_label else (),
            **figures,
        }
    )


def _figures(by_name: Mapping[str, list[Sample]], names: Mapping[str, Names]) -> dict[str, Figure]:
    figures: dict[str, Figure] = dict.fromkeys(FIGURES)
    for figure, (candidates, combine) in names.items():
        for name in candidates:
            found: Figure
            if figure in NUMBERS:
                found = _number(by_name, name, combine)
            else:
                found = _histogram(by_name, name)
                if found is not None and figure in LENGTHS:
                    found = TokenHistogram(
                        bounds_tokens=found.bounds_s, counts=found.counts, total_tokens=found.total_s
                    )
            if found is not None:
                figures[figure] = found
                break
    return figures


def _progress(figures: Mapping[str, Figure], progress: tuple[str, ...]) -> Figure:
    counts = [_count(figures[figure]) for figure in progress if figures[figure] is not None]
    return math.fsum(counts) if counts else figures["generation_tokens"]


def _replicas(
    by_name: Mapping[str, list[Sample]], names: Mapping[str, Names], progress: tuple[str, ...], label: str
) -> tuple[ReplicaMetrics, ...]:
    """Return the progress of each data-parallel replica, or an empty tuple if the page has only one."""
    found = {
        sample.labels[label] for samples in by_name.values() for sample in samples if label in sample.labels
    }
    if len(found) < 2:
        return ()
    wanted = {
        figure: names[figure] for figure in (*OF_REPLICAS, "generation_tokens", *progress) if figure in names
    }
    replicas = []
    for replica in sorted(found, key=lambda name: (len(name), name)):
        own = {
            name: [sample for sample in samples if sample.labels.get(label) == replica]
            for name, samples in by_name.items()
        }
        figures = _figures(own, wanted)
        replicas.append(
            ReplicaMetrics.model_validate(
                {
                    "name": replica,
                    "progress": _progress(figures, progress),
                    **{figure: figures[figure] for figure in OF_REPLICAS},
                }
            )
        )
    return tuple(replicas)


def sum_of(pages: Sequence[EngineMetrics]) -> EngineMetrics:
    """Return the figures of replicas with pages of their own as those of one tier: sums, and the fullest KV cache.

    A figure that one of them lacks is that of the others; histograms of different buckets cannot be added and are left out.
    """
    figures = summed(pages, (*FIGURES, "progress"))
    missing = tuple(name for name in FIGURES if figures[name] is None)
    return EngineMetrics.model_validate({"taken_at_s": pages[-1].taken_at_s, "missing": missing, **figures})


def summed(rows: Sequence[object], names: Iterable[str]) -> dict[str, Figure]:
    """Return the figures of these names over the rows of several replicas; None where no row has one."""
    figures: dict[str, Figure] = {}
    for name in names:
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        if name == "kv_cache_usage":
            figures[name] = max(values, default=None)
        elif values and isinstance(values[0], Histogram | TokenHistogram):
            figures[name] = _histogram_sum(values)
        else:
            figures[name] = math.fsum(values) if values else None
    return figures


def _histogram_sum(values: list[Any]) -> Figure:
    first = values[0].model_dump()
    bounds, total = ("bounds_s", "total_s") if "bounds_s" in first else ("bounds_tokens", "total_tokens")
    if any(getattr(one, bounds) != first[bounds] for one in values):
        return None
    counts = tuple(math.fsum(column) for column in zip(*(one.counts for one in values), strict=True))
    found: Figure = values[0].model_copy(
        update={"counts": counts, total: math.fsum(getattr(one, total) for one in values)}
    )
    return found


def _count(figure: Figure) -> float:
    if isinstance(figure, Histogram):
        return histogram_count(figure)
    return figure if isinstance(figure, float) else 0.0


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
    """Return the number of observations."""
    return histogram.counts[-1] if histogram.counts else 0.0


def histogram_delta(before: Histogram, after: Histogram) -> Histogram:
    """Return the observations between two readings.

    Counts that fell mean that the engine restarted in between; then everything in `after` is new, as in Prometheus.
    Raises ValueError if the buckets differ, because another engine or another version answered.
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


def lengths_delta(before: TokenHistogram, after: TokenHistogram) -> TokenHistogram:
    """Return the requests between two readings, as `histogram_delta` does; all of `after` if the buckets differ."""
    if before.bounds_tokens != after.bounds_tokens or any(
        new < old for old, new in zip(before.counts, after.counts, strict=True)
    ):
        return after
    return TokenHistogram(
        bounds_tokens=after.bounds_tokens,
        counts=tuple(new - old for old, new in zip(before.counts, after.counts, strict=True)),
        total_tokens=max(0.0, after.total_tokens - before.total_tokens),
    )


def histogram_above(histogram: Histogram, limit_s: float) -> int | None:
    """Return how many observations are above a limit, or None if that is not known: some are beyond the last finite bucket,
    which ends before the limit.

    Between two buckets the upper one counts, so no observation within the limit is counted as above it.
    """
    total, beyond = histogram_count(histogram), 0.0
    for bound, count in zip(histogram.bounds_s, histogram.counts, strict=True):
        if math.isfinite(bound):
            beyond = total - count
            if bound >= limit_s:
                return round(beyond)
    return None if beyond else 0


def histogram_percentile(histogram: Histogram, q: float) -> float | None:
    """Return the q-quantile in seconds (0 <= q <= 1), interpolated within its bucket like Prometheus' histogram_quantile.

    Returns None without observations. Beyond the last finite bound it returns that bound, a lower limit of the true
    value. Raises ValueError for q outside 0..1.
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
