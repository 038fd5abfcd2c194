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
    RunSet,
    make_baseline,
    run_set,
)
from gpu_actions.loadtest.cli import (
    add_load_flags,
    complain,
    progress_lines,
    run_event_loop,
    run_with_signals,
    spec_from,
)
from gpu_actions.loadtest.comparison import compare, comparison_text
from gpu_actions.loadtest.orchestrate import (
    orchestrate,
    orchestrated_exit_code,
    orchestrated_text,
    run_folder,
)
from gpu_actions.loadtest.result import LoadTestResult, RunVerdict
from gpu_actions.loadtest.schedule import BadTrace
from gpu_actions.loadtest.spec import LoadSpec, explain_invalid
from gpu_actions.loadtest.target import LoadTestRefused

DEFAULT_STORE = Path("var/baselines")
DEFAULT_REPORTS = Path("var/loadtests")


def _store_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        type=Path,
        default=DEFAULT_STORE,
        metavar="DIR",
        help="folder of the baselines (default var/baselines)",
    )


def _read(path: Path) -> LoadTestResult:
    from gpu_actions.loadtest.run import read_result

    return read_result(path / "load_test.json" if path.is_dir() else path)


def baseline_command(argv: list[str]) -> int:
    """`baseline record|list|show|set`. Gives the exit code."""
    parser = argparse.ArgumentParser(prog="loadtest baseline")
    actions = parser.add_subparsers(dest="action", required=True)
    record = actions.add_parser("record", help="make a baseline of at least 3 runs")
    record.add_argument("name")
    record.add_argument(
        "--from",
        dest="files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="finished runs; else made now",
    )
    record.add_argument("--runs", type=int, default=MIN_RUNS, help="how many runs to make (default 3)")
    record.add_argument("--replace", action="store_true", help="replace a baseline of this name")
    record.add_argument(
        "--report", type=Path, default=DEFAULT_REPORTS, metavar="DIR", help="where the runs' folders go"
    )
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
                sys.stdout.write(_show(store.get(options.name)))
            case "set":
                store.set_current(options.name)
                sys.stdout.write(f"{options.name} is now the judge of its host and workload\n")
            case _:
                return _record(options, store)
    except BaselineError as error:
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


def _show(entry: Baseline | Reference) -> str:
    hidden = {"runs": {"__all__": {"samples"}}} if isinstance(entry, Baseline) else None
    return entry.model_dump_json(indent=1, exclude=hidden) + "\n"


def _record(options: argparse.Namespace, store: BaselineStore) -> int:
    if options.files:
        try:
            results = [_read(path) for path in options.files]
        except ValueError as error:
            return complain(str(error))
    else:
        try:
            spec = spec_from(options)
        except ValidationError as error:
            return complain(*explain_invalid(error))
        if options.runs < MIN_RUNS:
            return complain(f"runs = {options.runs}: a baseline needs at least {MIN_RUNS}")
        results = []
        for number in range(options.runs):
            # another seed a run: the spread between runs is what the baseline is for
            run_spec = spec.model_copy(
                update={"seed": spec.seed + number, "name": f"{options.name} run {number + 1}"}
            )
            folder = run_folder(options.report, run_spec.name)
            try:
                result = run_event_loop(run_with_signals(run_spec, folder, progress_lines))
            except (LoadTestRefused, BadTrace) as error:
                return complain(str(error))
            sys.stderr.write((folder / "summary.txt").read_text().splitlines()[0] + "\n")
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
    """`compare A B`: run A (file or folder) against B, a baseline's name or a run. Exit 0, 1 regressed, 3 open or refused."""
    parser = argparse.ArgumentParser(prog="loadtest compare")
    parser.add_argument("candidate", type=Path, metavar="A", help="a run: its load_test.json or folder")
    parser.add_argument("baseline", metavar="B", help="a baseline's name, or another run's file or folder")
    parser.add_argument("--tolerance-percent", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    _store_flag(parser)
    options = parser.parse_args(argv)
    try:
        candidate = _read(options.candidate)
        baseline = _yardstick(BaselineStore(options.store), options.baseline)
    except ValueError as error:  # BaselineError too
        return complain(str(error))
    comparison = compare(candidate, baseline, tolerance_percent=options.tolerance_percent)
    sys.stdout.write(
        comparison.model_dump_json(indent=1) + "\n" if options.json else comparison_text(comparison)
    )
    return comparison.exit_code


def _yardstick(store: BaselineStore, name: str) -> Baseline | RunSet | Reference:
    """A baseline of the store; else the run of that file or folder."""
    return run_set(name, _read(Path(name))) if Path(name).exists() else store.get(name)


def orchestrate_command(argv: list[str]) -> int:
    """`orchestrate SECONDS QPS NAME`: the runbook's restore test. Gives the exit code."""
    parser = argparse.ArgumentParser(prog="loadtest orchestrate")
    parser.add_argument("seconds", type=float)
    parser.add_argument("qps", type=float)
    parser.add_argument("run_name", metavar="name")
    parser.add_argument(
        "--report", type=Path, default=DEFAULT_REPORTS, metavar="DIR", help="parent of the run's own folder"
    )
    _store_flag(parser)
    add_load_flags(parser)
    options = parser.parse_args(argv)
    options.duration_s, options.target_qps, options.name = options.seconds, options.qps, options.run_name
    try:
        spec = spec_from(options)
    except ValidationError as error:
        return complain(*explain_invalid(error))

    async def runner(load: LoadSpec, folder: Path) -> LoadTestResult:
        return await run_with_signals(load, folder, progress_lines)

    try:
        folder, result, comparison = run_event_loop(
            orchestrate(spec, options.report, baselines=BaselineStore(options.store), runner=runner)
        )
    except (LoadTestRefused, BadTrace, BaselineError, OSError) as error:
        return complain(str(error))
    sys.stdout.write(orchestrated_text(result, comparison) + f"files: {folder}\n")
    return orchestrated_exit_code(result, comparison)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "baseline": baseline_command,
    "compare": compare_command,
    "orchestrate": orchestrate_command,
}
