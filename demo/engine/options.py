"""The options of the reference engine, checked once at start.

A frozen dataclass and argparse stand here instead of pydantic: the engine's start-up time is a figure that we publish,
and every rank pays each import again.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

VOCABULARY = 257
"""256 bytes and one end-of-text token (`tokenizer.END_OF_TEXT`)."""


class StartError(Exception):
    """The engine cannot start as it was asked to. The message says why and what to change."""


@dataclass(frozen=True, slots=True)
class Options:
    """What one engine was started with. The rank processes get the same options, and a rank and a port beside them."""

    host: str
    port: int
    model_name: str
    hidden_size: int
    num_layers: int
    num_heads: int
    max_model_len: int
    seed: int
    weights: Path | None
    save_weights: Path | None
    all_bytes: bool
    dtype: str
    device: str
    threads: int
    gpu_memory_gib: float | None
    tensor_parallel_size: int
    dist_port: int
    collective_timeout_s: float
    max_num_seqs: int
    prefill_chunk: int
    max_num_queued_reqs: int | None
    queue_timeout_s: float
    long_prompt_tokens: int
    long_window_s: float
    max_long_seqs: int
    retry_after_s: int
    shutdown_timeout: float
    profiler_dir: Path | None
    profiler_max_iterations: int
    slow_ms: float
    drill_sleep_rank: int | None
    drill_sleep_after_s: float
    drill_sleep_s: float
    rank: int

    @property
    def intermediate_size(self) -> int:
        """Width of the gated MLP: 8/3 of the hidden size, up to the next multiple of 64, so that 64 ranks can share it."""
        return -(-self.hidden_size * 8 // 3 // 64) * 64

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def long_windows(self) -> bool:
        return self.long_prompt_tokens > 0


def build_parser() -> argparse.ArgumentParser:
    """The command line. Names follow vLLM's where vLLM has the option."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.engine",
        description="A small OpenAI-compatible engine for drills, demonstration and tests. Not for production.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=8101, help="port to listen on; 0 takes a free one and logs it")
    add("--model-name", "--served-model-name", default="reference", help="name that requests ask for")

    model = parser.add_argument_group("model").add_argument
    model("--hidden-size", type=int, default=256)
    model("--num-layers", type=int, default=4)
    model("--num-heads", type=int, default=8)
    model("--max-model-len", type=int, default=2048, help="prompt and output tokens together")
    model("--seed", type=int, default=0, help="seed of the random weights, and of sampling without its own")
    model("--weights", type=Path, default=None, help="a state_dict file, loaded with weights_only=True")
    model("--save-weights", type=Path, default=None, help="write the seeded weights to this file and exit")
    model(
        "--all-bytes",
        action="store_true",
        help="may generate any byte; seeded weights otherwise keep to printable ASCII (--weights: always any byte)",
    )
    model("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
          help="auto: float32 on the CPU, bfloat16 on CUDA")  # fmt: skip
    model(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="CUDA_VISIBLE_DEVICES scopes cuda"
    )
    model("--threads", type=int, default=1, help="torch threads of each rank on the CPU")
    model("--gpu-memory-gib", type=float, default=None,
          help="size of the KV cache; default: max-num-seqs x max-model-len tokens")  # fmt: skip

    parallel = parser.add_argument_group("tensor parallelism").add_argument
    parallel("--tensor-parallel-size", type=int, default=1)
    parallel("--dist-port", type=int, default=0, help="rendezvous port on 127.0.0.1; 0 takes a free one")
    parallel("--collective-timeout-s", type=float, default=600, help="a longer collective ends the engine")

    limits = parser.add_argument_group("batch and queue").add_argument
    limits("--max-num-seqs", type=int, default=32, help="requests in the batch at once")
    limits("--prefill-chunk", type=int, default=256, help="prompt tokens that one step takes in")
    limits(
        "--max-num-queued-reqs", type=int, default=None, help="more than this waiting: 503; default: no limit"
    )
    limits("--queue-timeout-s", type=float, default=0, help="waiting longer than this: 503; 0: no limit")
    limits("--long-prompt-tokens", type=int, default=0, help="a prompt from this length is long; 0: none is")
    limits("--long-window-s", type=float, default=4, help="long prompts are admitted together at these steps")
    limits("--max-long-seqs", type=int, default=4, help="of max-num-seqs, kept for long prompts")
    limits("--retry-after-s", type=int, default=5, help="Retry-After of a 503")
    limits("--shutdown-timeout", type=float, default=30,
           help="seconds that SIGTERM lets requests finish; the rest is cut")  # fmt: skip

    profiler = parser.add_argument_group("profiler").add_argument
    profiler("--profiler-dir", type=Path, default=None, help="turns /start_profile and /stop_profile on")
    profiler(
        "--profiler-max-iterations", type=int, default=1000, help="steps after which a profile ends itself"
    )

    drills = parser.add_argument_group("drills").add_argument
    drills("--slow-ms", type=float, default=0, help="adds this to every step")
    drills("--drill-sleep-rank", type=int, default=None, help="this rank sleeps once before a collective")
    drills("--drill-sleep-after-s", type=float, default=0, help="...this long after the engine was ready")
    drills("--drill-sleep-s", type=float, default=60, help="...and sleeps so long")

    add("--rank", type=int, default=0, help="internal: rank 0 starts the other ranks itself")
    return parser


def _complaint(options: Options) -> str | None:
    """The first thing that is wrong with the options, or None."""
    tp = options.tensor_parallel_size
    positive = ("hidden_size", "num_layers", "num_heads", "max_num_seqs", "prefill_chunk", "threads",
                "tensor_parallel_size", "collective_timeout_s", "profiler_max_iterations")  # fmt: skip
    for name in positive:
        if getattr(options, name) <= 0:
            return f"--{name.replace('_', '-')} must be above 0, not {getattr(options, name)}"
    not_negative = ("shutdown_timeout", "queue_timeout_s", "long_prompt_tokens", "slow_ms", "drill_sleep_after_s",
                    "drill_sleep_s", "retry_after_s")  # fmt: skip
    for name in not_negative:
        if getattr(options, name) < 0:
            return f"--{name.replace('_', '-')} must not be below 0, not {getattr(options, name)}"
    if options.max_model_len < 2:
        return "--max-model-len must be at least 2: one prompt token and one output token"
    if options.hidden_size % options.num_heads or options.head_size % 2:
        return (
            f"--hidden-size {options.hidden_size} must split into {options.num_heads} heads of an even size"
        )
    if options.num_heads % tp or options.intermediate_size % tp:
        return (
            f"--tensor-parallel-size {tp} must divide --num-heads {options.num_heads} and the MLP's width "
            f"{options.intermediate_size}"
        )
    if not 0 <= options.rank < tp:
        return f"--rank {options.rank} is outside --tensor-parallel-size {tp}"
    if options.max_num_queued_reqs is not None and options.max_num_queued_reqs < 0:
        return "--max-num-queued-reqs must not be below 0; leave it out for no limit"
    if options.gpu_memory_gib is not None and options.gpu_memory_gib <= 0:
        return "--gpu-memory-gib must be above 0"
    if options.drill_sleep_rank is not None and not 0 <= options.drill_sleep_rank < tp:
        return f"--drill-sleep-rank {options.drill_sleep_rank} is outside --tensor-parallel-size {tp}"
    if options.long_windows:
        if not 0 < options.max_long_seqs < options.max_num_seqs:
            return f"--max-long-seqs {options.max_long_seqs} must be above 0 and below --max-num-seqs {options.max_num_seqs}"
        if options.long_window_s <= 0:
            return "--long-window-s must be above 0"
        if 0 < options.queue_timeout_s <= options.long_window_s:
            return (
                f"--queue-timeout-s {options.queue_timeout_s:g} must be above --long-window-s {options.long_window_s:g}: "
                "a long prompt may wait a whole window before it can start"
            )
    return None


def parse_options(arguments: list[str] | None = None) -> Options:
    """Read and check the command line. Exits with 2 and one line on stderr when something is wrong."""
    parser = build_parser()
    options = Options(**vars(parser.parse_args(arguments)))
    complaint = _complaint(options)
    if complaint is not None:
        parser.error(complaint)
    return options
