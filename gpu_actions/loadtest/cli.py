"""The load test's command line: `python -m gpu_actions.loadtest` (and `gpu-oncall loadtest`).

The runbook's flags keep their names. Exit codes: 0 passed, 1 failed its limits, 2 wrong usage, 3 void. Under torchrun only
rank 0 makes load. Subcommands: baseline, compare, orchestrate (in `commands.py`).
"""

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from gpu_actions.loadtest.result import LoadProgress, LoadTestResult
from gpu_actions.loadtest.spec import LoadSpec, explain_invalid

EXIT_WRONG_USAGE = 2
API_KEY_VARIABLE = "GPU_ONCALL_LOADTEST_API_KEY"
T = TypeVar("T")

FLAGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("--duration", "duration_s", {"type": float, "metavar": "SECONDS"}),
    ("--target-qps", "target_qps", {"type": float, "metavar": "QPS"}),
    ("--max-new-tokens", "max_new_tokens", {"type": int, "metavar": "N"}),
    ("--prompt-len-min", "prompt_len_min", {"type": int, "metavar": "N"}),
    ("--prompt-len-max", "prompt_len_max", {"type": int, "metavar": "N"}),
    ("--url", "url", {}),
    ("--model", "model", {}),
    ("--name", "name", {}),
    ("--api", "api", {"choices": ("completions", "chat")}),
    ("--seed", "seed", {"type": int}),
    ("--arrival", "arrival", {"choices": ("poisson", "constant", "burst", "ramp", "replay")}),
    ("--burst-size", "burst_size", {"type": int, "metavar": "N"}),
    ("--ramp-from-qps", "ramp_from_qps", {"type": float, "metavar": "QPS"}),
    ("--trace-file", "trace_file", {"type": Path, "metavar": "FILE"}),
    ("--prompt-unit", "prompt_unit", {"choices": ("auto", "bytes", "words")}),
    ("--warmup-s", "warmup_s", {"type": float, "metavar": "SECONDS"}),
    ("--slo-ttft-ms", "slo_ttft_ms", {"type": float, "metavar": "MS"}),
    ("--slo-e2e-ms", "slo_e2e_ms", {"type": float, "metavar": "MS"}),
    ("--max-error-percent", "max_error_percent", {"type": float, "metavar": "PERCENT"}),
    ("--timeout-s", "timeout_s", {"type": float, "metavar": "SECONDS"}),
    ("--stall-s", "stall_s", {"type": float, "metavar": "SECONDS"}),
    ("--drain-s", "drain_s", {"type": float, "metavar": "SECONDS"}),
    ("--max-in-flight", "max_in_flight", {"type": int, "metavar": "N"}),
    ("--processes", "processes", {"type": int, "metavar": "N"}),
    ("--metrics-url", "metrics_url", {}),
    ("--tls-ca", "tls_ca", {"type": Path, "metavar": "FILE"}),
    ("--price-usd-per-kwh", "price_usd_per_kwh", {"type": float, "metavar": "USD"}),
    ("--gpus", "gpus", {"type": int, "metavar": "N"}),
    ("--tensor-parallel", "tensor_parallel", {"type": int, "metavar": "N"}),
    ("--dtype", "dtype", {}),
)
SWITCHES = (
    ("--stop-when-saturated", "stop_when_saturated", True),
    ("--tls-insecure", "tls_insecure", True),
    ("--no-ignore-eos", "ignore_eos", False),
    ("--no-require-usage", "require_usage", False),
    ("--no-energy", "measure_energy", False),
)


def add_load_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a load; none has a default here, so that the spec's own defaults hold."""
    for flag, field, options in FLAGS:
        text = LoadSpec.model_fields[field].description or field
        default = LoadSpec.model_fields[field].default
        shown = (
            "" if default is None or LoadSpec.model_fields[field].is_required() else f" (default {default})"
        )
        parser.add_argument(flag, dest=field, default=None, help=(text + shown).replace("%", "%%"), **options)
    for flag, field, value in SWITCHES:
        parser.add_argument(
            flag,
            dest=field,
            action="store_const",
            const=value,
            default=None,
            help=LoadSpec.model_fields[field].description,
        )
    parser.add_argument(
        "--gpu-uuid",
        dest="gpu_uuids",
        action="append",
        default=None,
        help="a GPU whose energy counts; may be repeated",
    )
    parser.add_argument(
        "--allow-smaller-world",
        action="store_true",
        help="accepted for the runbook's sake: this tool needs no world of GPUs",
    )


def spec_from(options: argparse.Namespace) -> LoadSpec:
    """Make the spec of parsed flags; the API key comes from the environment. Raises pydantic.ValidationError."""
    given = {
        name: value
        for name, value in vars(options).items()
        if name in LoadSpec.model_fields and value is not None
    }
    key = os.environ.get(API_KEY_VARIABLE)
    return LoadSpec.model_validate({**given, **({"api_key": key} if key else {})})


def run_event_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where it is installed, else on asyncio; with as many sockets as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    result: T = uvloop.run(main)
    return result


def complain(*lines: str) -> int:
    """Say what is wrong on standard error; gives the exit code of wrong usage."""
    for line in lines:
        sys.stderr.write(f"loadtest: {line}\n")
    return EXIT_WRONG_USAGE


async def run_with_signals(
    spec: LoadSpec, out_dir: Path, progress: Callable[[LoadProgress], None] | None, *, lifeline: bool = False
) -> LoadTestResult:
    """Run a load test that SIGINT and SIGTERM stop and drain (a second one ends it); `lifeline`: so does the end of stdin."""
    from gpu_actions.loadtest.run import run_load_test

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    this = asyncio.current_task()
    assert this is not None  # noqa: S101  (a coroutine runs in a task)

    def asked() -> None:
        if stop.is_set():
            this.cancel()
        stop.set()

    def lifeline_readable() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, asked)
    if lifeline:
        loop.add_reader(0, lifeline_readable)
    gc.collect()
    gc.freeze()  # what exists now is never garbage; keeps collections short during the run
    return await run_load_test(spec, out_dir=out_dir, progress=progress, stop=stop)


def progress_lines(progress: LoadProgress) -> None:
    """Show progress as lines on standard error."""
    p99 = "-" if progress.ttft_p99_ms is None else f"{progress.ttft_p99_ms:.1f} ms"
    phase = "warm-up" if progress.elapsed_s < 0 else f"{progress.elapsed_s:.0f}/{progress.duration_s:g} s"
    sys.stderr.write(
        f"{phase}: sent {progress.sent}, ok {progress.done}, errors {progress.errors}, in flight {progress.in_flight}, "
        f"TTFT p99 {p99}\n"
    )


def _print_line(progress: LoadProgress) -> None:
    sys.stdout.write(progress.model_dump_json() + "\n")
    sys.stdout.flush()


def run_and_report(spec: LoadSpec, options: argparse.Namespace, *, from_stdin: bool = False) -> int:
    """Run one load test, write its files, print its five lines; gives the exit code."""
    from gpu_actions.loadtest.report import JSON_NAME, summary_text
    from gpu_actions.loadtest.schedule import BadTrace
    from gpu_actions.loadtest.target import LoadTestRefused

    show = _print_line if from_stdin else None if options.quiet else progress_lines
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        out_dir: Path = options.report or Path(scratch)
        try:
            result = run_event_loop(run_with_signals(spec, out_dir, show, lifeline=from_stdin))
        except (LoadTestRefused, BadTrace) as error:
            return complain(str(error))
        except asyncio.CancelledError:
            return complain("ended by a second signal: no result") + 1
        except OSError as error:
            return complain(
                f"report = {out_dir}: cannot be written ({error}); choose another folder with --report"
            )
        if options.output_json is not None:
            try:
                options.output_json.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(out_dir / JSON_NAME, options.output_json)
            except OSError as error:
                return complain(
                    f"output_json = {options.output_json}: cannot be written ({error}); choose another path"
                )
    if not from_stdin:
        sys.stdout.write(summary_text(result))
    return result.exit_code


def build_parser() -> argparse.ArgumentParser:
    """The parser of a plain run."""
    parser = argparse.ArgumentParser(
        prog="python -m gpu_actions.loadtest",
        description="An open-loop load test whose latencies count from the due time of each request.",
        epilog="Subcommands: baseline record|list|show|set, compare A B, orchestrate SECONDS QPS NAME. "
        f"The API key comes from {API_KEY_VARIABLE}. Exit: 0 passed, 1 failed its limits, 2 wrong usage, 3 void.",
    )
    add_load_flags(parser)
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the result here as well")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="folder for the JSON, the page, the picture and the text",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    parser.add_argument(
        "--spec-stdin",
        action="store_true",
        help="read the spec as a JSON line; progress as JSON lines",
    )
    return parser


def main(argv: list[str]) -> int:
    """Run the command line. Gives the exit code; never raises SystemExit."""
    from gpu_actions.loadtest import commands

    try:
        if argv and argv[0] in commands.COMMANDS:
            return commands.COMMANDS[argv[0]](argv[1:])
        options = build_parser().parse_args(argv)
    except SystemExit as end:  # argparse has already said why
        return end.code if isinstance(end.code, int) else EXIT_WRONG_USAGE
    rank = os.environ.get("RANK", "0")
    if rank not in {"", "0"}:
        sys.stderr.write(f"loadtest: rank {rank} makes no load; rank 0 does\n")
        return 0
    try:
        spec = (
            LoadSpec.model_validate_json(sys.stdin.buffer.readline())
            if options.spec_stdin
            else spec_from(options)
        )
    except ValidationError as error:
        return complain(*explain_invalid(error))
    return run_and_report(spec, options, from_stdin=options.spec_stdin)
