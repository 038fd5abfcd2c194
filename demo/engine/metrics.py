"""The engine's metrics under vLLM's names, so that whatever reads vLLM reads this engine. Bucket bounds are vLLM's."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

TTFT_BOUNDS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
                 160, 640, 2560)  # fmt: skip
ITL_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5,
                10, 20, 40, 80)  # fmt: skip
"""vLLM's bounds start at 0.01 s; three finer ones come first, since a token of this engine takes 3 ms."""
REQUEST_BOUNDS_S = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960,
                    1920, 7680)  # fmt: skip
"""vLLM's bounds start at 0.3 s; three finer ones come first."""

TOKEN_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
"""vLLM's bounds of lengths, up to its longest context."""

FINISHED_REASONS = ("stop", "length", "abort", "error")


class Metrics:
    """The metrics of one engine, written by the model thread and the HTTP side."""

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        labels = {"engine": "0", "model_name": model_name}

        def made(kind: type[MetricWrapperBase], name: str, text: str, **more: Any) -> Any:
            return kind(f"vllm:{name}", text, list(labels), registry=self._registry, **more).labels(**labels)

        self.running = made(Gauge, "num_requests_running", "Requests in the batch.")
        self.waiting = made(Gauge, "num_requests_waiting", "Requests that are waiting.")
        self.cache_usage = made(Gauge, "kv_cache_usage_perc", "Used share of the KV cache, 0 to 1.")
        self.prompt_tokens = made(Counter, "prompt_tokens", "Prompt tokens processed.")
        self.generation_tokens = made(Counter, "generation_tokens", "Tokens generated.")
        self.ttft_s = made(Histogram, "time_to_first_token_seconds", "Seconds.", buckets=TTFT_BOUNDS_S)
        self.itl_s = made(Histogram, "inter_token_latency_seconds", "Seconds.", buckets=ITL_BOUNDS_S)
        self.e2e_s = made(Histogram, "e2e_request_latency_seconds", "Seconds.", buckets=REQUEST_BOUNDS_S)
        self.queue_s = made(Histogram, "request_queue_time_seconds", "Seconds.", buckets=REQUEST_BOUNDS_S)
        self.prompt_lengths = made(
            Histogram, "request_prompt_tokens", "Tokens of a prompt.", buckets=TOKEN_BOUNDS
        )
        self.answer_lengths = made(
            Histogram, "request_generation_tokens", "Tokens of an answer.", buckets=TOKEN_BOUNDS
        )
        ended = Counter(
            "vllm:request_success",
            "Ended requests by reason.",
            [*labels, "finished_reason"],
            registry=self._registry,
        )
        self._ended = {reason: ended.labels(**labels, finished_reason=reason) for reason in FINISHED_REASONS}

    def request_ended(self, reason: str, *, seconds: float) -> None:
        """Count an ended request. Its latency counts only when it was served (`stop`, `length`), as in vLLM."""
        self._ended[reason].inc()
        if reason in {"stop", "length"}:
            self.e2e_s.observe(seconds)

    def page(self) -> str:
        """Return the page of a scrape."""
        return generate_latest(self._registry).decode()
