"""The engine's counters as Prometheus text, under vLLM's names, so that whatever reads vLLM reads this engine.

Written by hand, as the client library's import would be a twentieth of the engine's start-up. Bucket bounds are vLLM's.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable

TTFT_BOUNDS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
                 160, 640, 2560)  # fmt: skip
ITL_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5,
                10, 20, 40, 80)  # fmt: skip
"""vLLM's start at 0.01 s; three finer ones stand before them, since this engine's tokens take 3 ms."""
REQUEST_BOUNDS_S = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960,
                    1920, 7680)  # fmt: skip
"""vLLM's start at 0.3 s; three finer ones stand before them."""

FINISHED_REASONS = ("stop", "length", "abort", "error")


class Histogram:
    """A cumulative histogram of seconds."""

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds


class Metrics:
    """All counters of an engine; written by the model thread and the HTTP side, read by a scrape."""

    def __init__(self, model_name: str) -> None:
        self._labels = f'engine="0",model_name="{_escaped(model_name)}"'
        self._lock = threading.Lock()
        self._generation_tokens = 0
        self._prompt_tokens = 0
        self._finished = dict.fromkeys(FINISHED_REASONS, 0)
        self._ttft = Histogram(TTFT_BOUNDS_S)
        self._itl = Histogram(ITL_BOUNDS_S)
        self._e2e = Histogram(REQUEST_BOUNDS_S)
        self._queue = Histogram(REQUEST_BOUNDS_S)

    def admitted(self, *, waited_s: float) -> None:
        with self._lock:
            self._queue.observe(waited_s)

    def first_token(self, *, prompt_tokens: int, seconds: float) -> None:
        with self._lock:
            self._prompt_tokens += prompt_tokens
            self._generation_tokens += 1
            self._ttft.observe(seconds)

    def next_token(self, *, seconds: float) -> None:
        with self._lock:
            self._generation_tokens += 1
            self._itl.observe(seconds)

    def finished(self, reason: str, *, seconds: float) -> None:
        """Count an end; its whole time counts only when it was served (`stop`, `length`), as in vLLM."""
        with self._lock:
            self._finished[reason] += 1
            if reason in {"stop", "length"}:
                self._e2e.observe(seconds)

    def render(self, *, running: int, waiting: int, cache_usage: float) -> str:
        """Give the text of a scrape."""
        lines: list[str] = []

        def simple(kind: str, name: str, text: str, value: float, labels: str = "") -> None:
            if labels == "" or f"# TYPE {name} {kind}" not in lines:
                lines.extend((f"# HELP {name} {text}", f"# TYPE {name} {kind}"))
            lines.append(f"{name}{{{self._labels}{labels}}} {_number(value)}")

        simple("gauge", "vllm:num_requests_running", "Requests in the batch.", running)
        simple("gauge", "vllm:num_requests_waiting", "Requests that wait.", waiting)
        simple("gauge", "vllm:kv_cache_usage_perc", "Used share of the KV cache, 0 to 1.", cache_usage)
        with self._lock:
            simple("counter", "vllm:prompt_tokens_total", "Prompt tokens taken in.", self._prompt_tokens)
            simple("counter", "vllm:generation_tokens_total", "Tokens made.", self._generation_tokens)
            for reason, count in self._finished.items():
                label = f',finished_reason="{reason}"'
                simple("counter", "vllm:request_success_total", "Ended requests by reason.", count, label)
            self._histogram(lines.append, "vllm:time_to_first_token_seconds", self._ttft)
            self._histogram(lines.append, "vllm:inter_token_latency_seconds", self._itl)
            self._histogram(lines.append, "vllm:e2e_request_latency_seconds", self._e2e)
            self._histogram(lines.append, "vllm:request_queue_time_seconds", self._queue)
        return "\n".join(lines) + "\n"

    def _histogram(self, write: Callable[[str], None], name: str, histogram: Histogram) -> None:
        write(f"# HELP {name} Seconds.")
        write(f"# TYPE {name} histogram")
        total = 0
        for bound, count in zip((*histogram.bounds_s, float("inf")), histogram.counts, strict=True):
            total += count
            write(f'{name}_bucket{{{self._labels},le="{_number(bound)}"}} {total}')
        write(f"{name}_sum{{{self._labels}}} {histogram.sum_s!r}")
        write(f"{name}_count{{{self._labels}}} {total}")


def _number(value: float) -> str:
    return "+Inf" if value == float("inf") else repr(float(value))


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
