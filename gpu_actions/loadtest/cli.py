"""The load test's command line: `python -m gpu_actions.loadtest` (and `gpu-oncall loadtest`).

The runbook's flags keep their names. Exit codes: 0 passed, 1 failed its limits, 2 wrong usage, 3 void. Under torchrun only
rank 0 makes load. The subcommands baseline, compare and orchestrate are in `commands.py`.
"""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path

from pydantic import ValidationError

from gpu_actions.config.policies import DEFAULT_MAX_QPS
from gpu_actions.loadtest.knee import find_knee, write_knee_files
from gpu_actions.loadtest.knee_result import BUDGET_RANGE_S, BUDGET_S, KneeProgress, KneeResult, knee_text
from gpu_actions.loadtest.report import JSON_NAME, summary_text
from gpu_actions.loadtest.result import LoadProgress
from gpu_actions.loadtest.schedule import BadTrace
from gpu_actions.loadtest.shell import (
    API_KEY_VARIABLE,
    EXIT_WRONG_USAGE,
    add_load_flags,
    complain,
    progress_lines,
    run_event_loop,
    run_with_signals,
    spec_from,
    stop_on_signals,
)
from gpu_actions.loadtest.spec import LoadSpec, explain_invalid
from gpu_actions.loadtest.target import LoadTestRefused


def _print_json(progress: LoadProgress | KneeProgress) -> None:
    sys.stdout.write(progress.model_dump_json() + "\n")
    sys.stdout.flush()


def _run_and_report(spec: LoadSpec, options: argparse.Namespace) -> int:
    """Run one load test, write its files and print its five lines. Return the exit code."""
    show = _print_json if options.spec_stdin else None if options.quiet else progress_lines
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        out_dir: Path = options.report or Path(scratch)
        try:
            result = run_event_loop(run_with_signals(spec, out_dir, show, lifeline=options.spec_stdin))
        except (LoadTestRefused, BadTrace) as error:
            return complain(str(error))
        except asyncio.CancelledError:
            complain("ended by a second signal: no result")
            return 3
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
    if not options.spec_stdin:
        sys.stdout.write(summary_text(result))
    return result.exit_code


async def _knee(spec: LoadSpec, options: argparse.Namespace) -> KneeResult:
    show = _print_json if options.spec_stdin else None if options.quiet else progress_lines
    stop = stop_on_signals(lifeline=options.spec_stdin)
    result = await find_knee(
        spec, max_qps=options.knee_max_qps, budget_s=options.knee_budget_s, progress=show, stop=stop
    )
    if options.report is not None:
        await write_knee_files(result, options.report)
    return result


def _find_and_report(spec: LoadSpec, options: argparse.Namespace) -> int:
    """Search for the knee, write its files and print its lines. Return the exit code."""
    options.knee_max_qps = options.knee_max_qps or DEFAULT_MAX_QPS
    if spec.trace_file is not None or spec.arrival == "ramp":
        return complain("find-knee: takes a steady load; leave --arrival ramp and replay out")
    if (
        not BUDGET_RANGE_S[0] <= options.knee_budget_s <= BUDGET_RANGE_S[1]
        or not 0.5 <= options.knee_max_qps <= 100_000
    ):
        return complain("find-knee: --knee-budget-s takes 20 to 600, --knee-max-qps 0.5 to 100,000")
    try:
        result = run_event_loop(_knee(spec, options))
        if options.output_json is not None:
            options.output_json.parent.mkdir(parents=True, exist_ok=True)
            options.output_json.write_text(result.model_dump_json(indent=1))
    except (LoadTestRefused, OSError) as error:
        return complain(str(error))
    except asyncio.CancelledError:
        complain("ended by a second signal: no result")
        return 3
    if not options.spec_stdin:
        sys.stdout.write(knee_text(result))
    return result.exit_code


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of a plain run."""
    parser = argparse.ArgumentParser(
        prog="python -m gpu_actions.loadtest",
        description="An open-loop load test whose latencies count from the due time of each request.",
        epilog="Subcommands: baseline record|list|show|set, compare A B, orchestrate SECONDS QPS NAME. "
        f"The API key comes from {API_KEY_VARIABLE}. Exit: 0 passed, 1 failed its limits, 2 wrong usage, 3 void.",
    )
    add_load_flags(parser)
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the result here as well")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="folder for the JSON, the page, the picture and the text"
    )
    parser.add_argument(
        "--find-knee",
        action="store_true",
        help="search for the highest rate that holds the limits, beginning at --target-qps",
    )
    parser.add_argument(
        "--knee-budget-s",
        type=float,
        default=BUDGET_S,
        metavar="SECONDS",
        help=f"time of the search (default {BUDGET_S:g})",
    )
    parser.add_argument(
        "--knee-max-qps",
        type=float,
        metavar="QPS",
        help=f"highest rate tried (default {DEFAULT_MAX_QPS:g}, or the cap of the host)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    parser.add_argument(
        "--spec-stdin",
        action="store_true",
        help="read the spec as a JSON line; progress as JSON lines",
    )
    return parser


def main(argv: list[str]) -> int:
    """Run the command line. Return the exit code; never raise SystemExit."""
    from gpu_actions.loadtest.commands import COMMANDS

    try:
        if argv and argv[0] in COMMANDS:
            return COMMANDS[argv[0]](argv[1:])
        options = build_parser().parse_args(argv)
        rank = os.environ.get("RANK", "0")
        if rank not in {"", "0"}:
            sys.stderr.write(f"loadtest: rank {rank} makes no load; rank 0 does\n")
            return 0
        from_stdin = options.spec_stdin
        spec = LoadSpec.model_validate_json(sys.stdin.buffer.readline()) if from_stdin else spec_from(options)
    except SystemExit as end:  # argparse has already said why
        return end.code if isinstance(end.code, int) else EXIT_WRONG_USAGE
    except ValidationError as error:
        return complain(*explain_invalid(error))
    except LoadTestRefused as error:
        return complain(str(error))
    return _find_and_report(spec, options) if options.find_knee else _run_and_report(spec, options)
