"""The load test's subcommands: baseline record|list|show|set, compare A B, orchestrate SECONDS QPS NAME."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from gpu_actions.loadtest.baseline import (
    MIN_RUNS,
    Baseline,
    BaselineError,
    BaselineStore,
    Reference,
    make_baseline,
    run_set,
)
from gpu_actions.loadtest.comparison import TOLERANCE_PERCENT, compare, comparison_text
from gpu_actions.loadtest.orchestrate import orchestrate, run_folder
from gpu_actions.loadtest.report import JSON_NAME, TEXT_NAME
from gpu_actions.loadtest.result import LoadTestResult, RunVerdict, read_result
from gpu_actions.loadtest.schedule import BadTrace
from gpu_actions.loadtest.shell import (
    add_load_flags,
    complain,
    progress_lines,
    run_event_loop,
    run_with_signals,
    spec_from,
)
from gpu_actions.loadtest.spec import LoadSpec, explain_invalid
from gpu_actions.loadtest.target import LoadTestRefused

DEFAULT_STORE = Path("var/baselines")
DEFAULT_REPORTS = Path("var/loadtests")


def _folder_flag(parser: argparse.ArgumentParser, flag: str, default: Path, text: str) -> None:
    parser.add_argument(
        flag, type=Path, default=default, metavar="DIR", help=f"{text} (default {default.as_posix()})"
    )


def _store_flag(parser: argparse.ArgumentParser) -> None:
    _folder_flag(parser, "--store", DEFAULT_STORE, "folder of the baselines")


def _read(path: Path) -> LoadTestResult:
    return read_result(path / JSON_NAME if path.is_dir() else path)


async def _run(spec: LoadSpec, folder: Path) -> LoadTestResult:
    return await run_with_signals(spec, folder, progress_lines)


def baseline_command(argv: list[str]) -> int:
    """Run `baseline record|list|show|set`. Return the exit code."""
    parser = argparse.ArgumentParser(prog="loadtest baseline")
    actions = parser.add_subparsers(dest="action", required=True)
    record = actions.add_parser("record", help="make a baseline of at least 3 runs")
    record.add_argument("name")
    record.add_argument(
        "--from", dest="files", nargs="+", type=Path, metavar="FILE", help="finished runs; else made now"
    )
    record.add_argument("--runs", type=int, default=MIN_RUNS, help="how many runs to make (default 3)")
    record.add_argument("--replace", action="store_true", help="replace a baseline of this name")
    _folder_flag(record, "--report", DEFAULT_REPORTS, "parent of the runs' folders")
    add_load_flags(record)
    for name, text in (("show", "print one"), ("set", "make one the judge of its host and workload")):
        actions.add_parser(name, help=text).add_argument("name")
    actions.add_parser("list", help="name all")
    for action in actions.choices.values():
        _store_flag(action)
    options = parser.parse_args(argv)
    store = BaselineStore(options.store)
    try:
        match options.action:
            case "list":
                sys.stdout.write("".join(_line(store, name) for name in store.names()))
            case "show":
                entry = store.get(options.name)
                hidden = {"runs": {"__all__": {"samples"}}} if isinstance(entry, Baseline) else None
                sys.stdout.write(entry.model_dump_json(indent=1, exclude=hidden) + "\n")
            case "set":
                store.set_current(options.name)
                sys.stdout.write(f"{options.name} is now the judge of its host and workload\n")
            case _:
                return _record(options, store)
    except ValidationError as error:
        return complain(*explain_invalid(error))
    except (
        ValueError,
        LoadTestRefused,
    ) as error:  # BaselineError, BadTrace and unreadable results are ValueErrors
        return complain(str(error))
    return 0


def _line(store: BaselineStore, name: str) -> str:
    try:
        entry = store.get(name)
    except BaselineError as error:
        return f"! {name}: {error}\n"
    if isinstance(entry, Reference):
        return f"  {name}: unverified reference, never the judge\n"
    load = f"{entry.workload.model} at {entry.workload.target_qps:g} QPS on {entry.host.hostname}, {len(entry.runs)} runs"
    return f"{'*' if store.is_current(name) else ' '} {name}: {load}, {entry.recorded_at}\n"


def _record(options: argparse.Namespace, store: BaselineStore) -> int:
    if options.files:
        results = [_read(path) for path in options.files]
    else:
        spec = spec_from(options)
        if options.runs < MIN_RUNS:
            return complain(f"runs = {options.runs}: a baseline needs at least {MIN_RUNS}")
        results = []
        for number in range(options.runs):
            # Each run has its own seed: the spread between runs is what the baseline is for.
            name = f"{options.name} run {number + 1}"
            folder = run_folder(options.report, name)
            run_spec = spec.model_copy(update={"seed": spec.seed + number, "name": name})
            result = run_event_loop(_run(run_spec, folder))
            sys.stderr.write((folder / TEXT_NAME).read_text().splitlines()[0] + "\n")
            if result.verdict is not RunVerdict.PASSED:
                complain(
                    f"run {number + 1} of {options.runs} is {result.verdict.value}: no baseline is recorded; see {folder}"
                )
                return result.exit_code
            results.append(result)
    baseline = make_baseline(options.name, results)
    path = store.save(baseline, replace=options.replace)
    sys.stdout.write(f"recorded {baseline.name} from {len(baseline.runs)} runs in {path}\n")
    return 0


def compare_command(argv: list[str]) -> int:
    """Run `compare A B`. Return 0 when A is as good, 1 when it regressed, 3 when the comparison is inconclusive or refused."""
    parser = argparse.ArgumentParser(prog="loadtest compare")
    parser.add_argument("candidate", type=Path, metavar="A", help="a run: its load_test.json or folder")
    parser.add_argument("baseline", metavar="B", help="a baseline's name, or another run's file or folder")
    parser.add_argument("--tolerance-percent", type=float, default=TOLERANCE_PERCENT)
    parser.add_argument("--json", action="store_true")
    _store_flag(parser)
    options = parser.parse_args(argv)
    name, path = options.baseline, Path(options.baseline)
    try:
        candidate = _read(options.candidate)
        baseline = run_set(name, _read(path)) if path.exists() else BaselineStore(options.store).get(name)
    except ValueError as error:  # BaselineError too
        return complain(str(error))
    comparison = compare(candidate, baseline, tolerance_percent=options.tolerance_percent)
    sys.stdout.write(
        comparison.model_dump_json(indent=1) + "\n" if options.json else comparison_text(comparison)
    )
    return comparison.exit_code


def orchestrate_command(argv: list[str]) -> int:
    """Run `orchestrate SECONDS QPS NAME`, the runbook's restore test. Return the exit code."""
    parser = argparse.ArgumentParser(prog="loadtest orchestrate")
    parser.add_argument("seconds", type=float)
    parser.add_argument("qps", type=float)
    parser.add_argument("run_name", metavar="name")
    _folder_flag(parser, "--report", DEFAULT_REPORTS, "parent of the run's own folder")
    _store_flag(parser)
    add_load_flags(parser)
    options = parser.parse_args(argv)
    options.duration_s, options.target_qps, options.name = options.seconds, options.qps, options.run_name
    try:
        run = orchestrate(
            spec_from(options), options.report, baselines=BaselineStore(options.store), runner=_run
        )
        done = run_event_loop(run)
    except ValidationError as error:
        return complain(*explain_invalid(error))
    except (LoadTestRefused, BadTrace, BaselineError, OSError) as error:
        return complain(str(error))
    sys.stdout.write(f"{done.text}files: {done.folder}\n")
    return done.exit_code


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "baseline": baseline_command,
    "compare": compare_command,
    "orchestrate": orchestrate_command,
}
