"""The command-line options of the reference engine, checked once at start.

A dataclass and argparse instead of pydantic: the engine's start-up time is a published figure, and every rank pays for
each import again.
"""

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args


def _option(
    default: Any,
    text: str,
    *,
    least: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    metadata = {"help": text, "least": least, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Options:
    """Options of one engine. Each field is the flag of its name; names follow vLLM's where vLLM has the option."""

    host: str = _option("127.0.0.1", "address to listen on")
    port: int = _option(8101, "port to listen on; 0 takes a free one and logs it")
    model_name: str = _option("reference", "model name that requests ask for")

    hidden_size: int = _option(256, "width of the model", least=1)
    num_layers: int = _option(4, "layers of the model", least=1)
    num_heads: int = _option(8, "attention heads", least=1)
    max_model_len: int = _option(2048, "prompt and output tokens of one request together", least=2)
    seed: int = _option(0, "seed of the random weights")
    dtype: str = _option("auto", "auto: float32 on the CPU, bfloat16 on CUDA",
                         choices=("auto", "float32", "bfloat16", "float16"))  # fmt: skip
    weights_dir: Path | None = _option(  # noqa: RUF009
        None, "read the weights from files in this folder, which the first start writes"
    )
    device: str = _option("auto", "CUDA_VISIBLE_DEVICES scopes cuda", choices=("auto", "cpu", "cuda"))
    threads: int = _option(1, "torch threads of each rank on the CPU", least=1)

    tensor_parallel_size: int = _option(1, "number of ranks", least=1)
    dist_port: int = _option(0, "rendezvous port on 127.0.0.1; 0 takes a free one")
    collective_timeout_s: float = _option(600, "a collective that takes longer ends the engine", least=1)

    max_num_seqs: int = _option(32, "requests in the batch at once", least=1)
    prefill_chunk: int = _option(256, "prompt tokens that one step processes", least=1)
    max_num_queued_reqs: int | None = _option(
        None, "503 when more than this many wait; default: no limit", least=0
    )
    queue_timeout_s: float = _option(0, "503 after waiting longer than this; 0: no limit", least=0)
    retry_after_s: int = _option(5, "Retry-After of a 503", least=0)
    shutdown_timeout: float = _option(
        30, "seconds that SIGTERM lets requests finish; the rest are aborted", least=0
    )

    profiler_dir: Path | None = _option(  # noqa: RUF009
        None, "enables /start_profile and /stop_profile; traces go here"
    )
    profiler_max_iterations: int = _option(1000, "steps after which a profile ends by itself", least=1)

    enable_sleep_mode: int = _option(0, "1 enables /sleep and /wake_up", least=0)

    slow_ms: float = _option(0, "drill: added to every step", least=0)
    drill_sleep_rank: int | None = _option(None, "drill: this rank sleeps once before a collective", least=0)
    drill_sleep_after_s: float = _option(0, "drill: ... this long after its first step", least=0)
    drill_sleep_s: float = _option(60, "drill: ... for this long", least=0)

    drill_folder: Path | None = _option(  # noqa: RUF009
        None,
        "drill: while the file rank-K in this folder exists, rank K does what it says: see demo/engine/drills.py",
    )

    rank: int = _option(0, "internal: rank 0 starts the other ranks itself", least=0)

    @property
    def intermediate_size(self) -> int:
        """Width of the gated MLP: 8/3 of the hidden size, up to the next multiple of 64, so that 64 ranks can share it."""
        return -(-self.hidden_size * 8 // 3 // 64) * 64

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads


def _complaint(options: Options) -> str | None:
    """Return the first thing that is wrong with the options, or None."""
    for each in fields(options):
        flag, value = _flag(each.name), getattr(options, each.name)
        least = each.metadata["least"]
        if value is not None and least is not None and value < least:
            return f"{flag} must be at least {least}, not {value}"
    world = options.tensor_parallel_size
    if options.hidden_size % options.num_heads or options.head_size % 2:
        return (
            f"--hidden-size {options.hidden_size} must split into {options.num_heads} heads of an even size"
        )
    if options.num_heads % world or options.intermediate_size % world:
        return (
            f"--tensor-parallel-size {world} must divide --num-heads {options.num_heads} and the MLP's width "
            f"{options.intermediate_size}"
        )
    for name in ("rank", "drill_sleep_rank"):
        if (getattr(options, name) or 0) >= world:
            return f"{_flag(name)} {getattr(options, name)} is outside --tensor-parallel-size {world}"
    return None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse_options(arguments: list[str] | None = None) -> Options:
    """Read and check the command line. Exit with 2 and one line on stderr when something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.engine",
        description="A small OpenAI-compatible engine for drills, demonstration and tests. Not for production.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for each in fields(Options):
        kinds: tuple[Any, ...] = get_args(each.type) or (each.type,)
        parser.add_argument(
            _flag(each.name),
            type=next(kind for kind in kinds if kind is not NoneType),
            default=each.default,
            choices=each.metadata["choices"],
            help=each.metadata["help"],
        )
    options = Options(**vars(parser.parse_args(arguments)))
    if (complaint := _complaint(options)) is not None:
        parser.error(complaint)
    return options
