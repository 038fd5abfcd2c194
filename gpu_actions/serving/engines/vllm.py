"""vLLM. Metric names and the stop behaviour were checked with version 0.32."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gpu_actions.serving.engines.base import HttpEngine
from gpu_actions.serving.engines.metrics import Names
from gpu_actions.serving.startup_phases import StartupPhase

METRIC_NAMES = {
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
    "prompt_lengths": Names(("vllm:request_prompt_tokens",)),
    "answer_lengths": Names(("vllm:request_generation_tokens",)),
}


class VllmEngine(HttpEngine):
    """vLLM. Its profiler must be configured at start and takes no number of iterations from a request."""

    kind = "vllm"
    metric_names = METRIC_NAMES
    metric_prefix = "vllm:"
    rank_title = re.compile(r"Worker((?:_[A-Z]+_?\d+)+)", re.IGNORECASE)  # VLLM::Worker_PP1_TP0
    core_title = re.compile(r"EngineCore((?:_DP_?\d+)?)", re.IGNORECASE)  # VLLM::EngineCore_DP0
    replica_label = "engine"
    process_words = ("vllm",)
    prompt_lines = (  # --enable-log-requests and --enable-log-outputs: vllm/entrypoints/logger.py, 0.6 to 0.32
        re.compile(r"(.*?\bReceived request \S+: )prompt: "),
        re.compile(r"(.*?\bRequest \S+ details: )prompt: "),
        re.compile(
            r"(.*?\bGenerated response \S+?(?: \(streaming \w+\))?:? (?:details: )?)output(?:_token_ids)?: "
        ),
        re.compile(r"(.*?\bReceived raw HTTP request \S+: )"),
    )
    packages = ("vllm",)
    batch_flag = "--max-num-seqs"
    group_stop_hazard = (
        "a stop also signals vLLM's engine processes, which die at once and break every running request"
    )
    profiler_hint = (
        'start vLLM with --profiler-config \'{"profiler": "torch", "torch_profiler_dir": "/path/of/traces"}\' '
        "(before 0.13: with VLLM_TORCH_PROFILER_DIR=/path/of/traces in its environment)"
    )
    profiler_variable: ClassVar[str] = "VLLM_TORCH_PROFILER_DIR"

    startup_phases = (  # vllm/v1 of 0.8 to 0.32: default_loader, gpu_model_runner, compilation/monitor, engine/core
        StartupPhase("weights", re.compile(r"Loading weights took ([\d.]+) seconds")),
        StartupPhase(
            "weights", re.compile(r"Model loading took [\d.]+ GiB(?: memory)? and ([\d.]+) seconds")
        ),
        StartupPhase("compile", re.compile(r"torch\.compile t(?:akes|ook) ([\d.]+) s\b")),
        StartupPhase("CUDA graphs", re.compile(r"Graph capturing finished in ([\d.]+) secs")),
        StartupPhase(
            "warm-up",
            re.compile(r"init engine \(profile, create kv cache, warmup(?: model)?\) took ([\d.]+) s"),
            includes=("compile", "CUDA graphs"),
        ),
    )
    sleep_path = "/sleep?level=1"  # level 2 would discard the weights
    wake_path = "/wake_up"
    asleep_path = "/is_sleeping"
    sleep_hint = "start vLLM with --enable-sleep-mode and with VLLM_SERVER_DEV_MODE=1 in its environment"

    @classmethod
    def trace_folder(cls, argv: Sequence[str], environment: Mapping[str, str]) -> str | None:
        """Return the folder set by `--profiler-config` (from 0.13) or by the environment."""
        for part, following in zip(argv, [*argv[1:], ""], strict=True):
            name, has_value, value = part.replace("_", "-").partition("=")
            value = part.partition("=")[2] if has_value else following
            if name == "--profiler-config.torch-profiler-dir":
                return value or None
            if name == "--profiler-config":
                try:
                    folder = json.loads(value).get("torch_profiler_dir")
                except (json.JSONDecodeError, AttributeError):
                    continue
                if folder:
                    return str(folder)
        return super().trace_folder(argv, environment)
