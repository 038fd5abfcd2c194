"""SGLang. Metric names were checked with version 0.5.23."""

import re
from typing import Any

from gpu_actions.serving.engines.base import HttpEngine, RefusedError
from gpu_actions.serving.engines.metrics import Names
from gpu_actions.serving.interfaces import EngineError, EngineMetrics
from gpu_actions.serving.startup_phases import StartupPhase

METRIC_NAMES = {
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
    "prompt_lengths": Names(("sglang:prompt_tokens_histogram",)),
    "answer_lengths": Names(("sglang:generation_tokens_histogram",)),
}


class SglangEngine(HttpEngine):
    """SGLang. Its profiler needs no flag and writes to /tmp unless SGLANG_TORCH_PROFILER_DIR is set.

    `generation_tokens_total` rises only when a request ends. The TTFT histogram counts each request's first token and the
    inter-token histogram every later one (`TokenizerManager.collect_metrics`), so their counts show progress.
    """

    kind = "sglang"
    metric_names = METRIC_NAMES
    metric_prefix = "sglang:"
    progress = ("ttft", "itl")
    rank_title = re.compile(r"scheduler((?:_[A-Z]+_?\d+)+)", re.IGNORECASE)  # sglang::scheduler_DP0_TP3
    core_title = re.compile(r"scheduler((?:_[A-Z]+_?\d+)*)$", re.IGNORECASE)
    replica_label = "dp_rank"
    process_words = ("sglang",)
    prompt_lines = (  # --log-requests, as text and as JSON: sglang/srt/utils/request_logger.py
        re.compile(r"(.*?\b(?:Receive|Finish)(?: OpenAI)?: obj=(?:\w+\(rid='[\w-]{1,80}'(?=,))?)"),
        re.compile(r"(.*?\"event\": ?\"request\.(?:received|finished)\",?)"),
    )
    packages = ("sglang",)
    batch_flag = "--max-running-requests"
    lengths_flag = "--collect-tokens-histogram"
    profiler_hint = "this SGLang has no /start_profile: is the URL the engine's own and not a gateway's?"
    profiler_variable = "SGLANG_TORCH_PROFILER_DIR"
    startup_phases = (  # sglang/srt/model_executor/model_runner.py; before 0.5 the line of the weights has no time
        StartupPhase("weights", re.compile(r"Load weight end\. elapsed=([\d.]+) s")),
        StartupPhase(
            "CUDA graphs",
            re.compile(
                r"Capture (?:\w+ )*cuda graph end\. (?:Time elapsed: |elapsed=)([\d.]+) s", re.IGNORECASE
            ),
        ),
    )
    sleep_path = "/release_memory_occupation"
    wake_path = "/resume_memory_occupation"
    sleep_flags = ("--enable-memory-saver", "--enable-weights-cpu-backup")
    sleep_hint = f"start SGLang with {' '.join(sleep_flags)} (without the backup the weights are lost)"
    version_paths = ("/server_info", "/get_server_info")
    default_trace_folder = "/tmp"  # noqa: S108  (SGLang's own default)

    def _profile_body(self, max_iterations: int) -> dict[str, Any]:
        return {"num_steps": max_iterations, "activities": ["CPU", "GPU"]}

    async def metrics(self, *, timeout_s: float = 2.0) -> EngineMetrics:
        """Read its counters, which SGLang exports only with --enable-metrics."""
        try:
            return await super().metrics(timeout_s=timeout_s)
        except RefusedError as error:
            if error.status == 404:
                raise EngineError(
                    f"{self.url} has no /metrics: start SGLang with --enable-metrics"
                ) from error
            raise
