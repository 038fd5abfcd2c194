"""Triage from a shell: read this host, or a recorded snapshot, and print a verdict.

Exit 0 healthy, 1 watch, 3 fall back, 4 unknown, 2 wrong usage or unreadable input. The first line is the verdict and its
cause, the second what to do.
"""

import argparse
import asyncio
import re
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import TRIAGE_EXIT_CODES
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.model import Snapshot, SnapshotUnreadable, load_snapshot, save_snapshot
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.triage.baselines import TriageBaseline, load_baseline
from gpu_actions.triage.judge import judge
from gpu_actions.triage.registry import RULES
from gpu_actions.triage.report import render_text

USAGE_ERROR = 2
UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


class UsageError(Exception):
    """Raised if the command line, or a file that it names, cannot be used. The message is one line for people."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def parse_duration(text: str) -> timedelta:
    """Parse a duration such as `90`, `90s`, `15m`, `2h` or `1d`. Raises ValueError with the allowed forms."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h|d)?\s*", text)
    if match is None or not 0 < float(match.group(1)) * UNITS_S[match.group(2) or "s"] <= 31 * 86_400:
        raise ValueError(f"{text!r} is not a duration: use for example 90s, 15m, 2h or 1d (31d at most)")
    return timedelta(seconds=float(match.group(1)) * UNITS_S[match.group(2) or "s"])


def parser() -> argparse.ArgumentParser:
    """Return the parser of `gpu-oncall triage`."""
    shown = _Parser(prog="gpu-oncall triage", description=__doc__)
    add = shown.add_argument
    add(
        "--deep",
        action="store_true",
        help="also run all-reduce, copies and GEMM on all GPUs (seconds, needs free memory)",
    )
    add("--json", action="store_true", help="print the verdict as JSON and nothing else")
    add("--record", type=Path, metavar="FILE", help="save the snapshot, to judge it again")
    add("--snapshot", type=Path, metavar="FILE", help="judge a recorded snapshot instead of this host")
    add("--kernel-log", type=Path, metavar="FILE", help="read this file instead of the kernel's own log")
    add("--engine-url", metavar="URL", help="base URL of the tier's engine, not of the router")
    add(
        "--replica-url",
        action="append",
        default=[],
        metavar="URL",
        help="a replica of the tier with a port of its own (repeatable); --engine-url is one of them or a router before them",
    )
    add(
        "--model",
        metavar="NAME",
        help="model of the synthetic completion (default: the first the engine lists)",
    )
    add("--no-completion", action="store_true", help="send no synthetic completion")
    add("--router-socket", metavar="PATH", help="admin socket of the router")
    add("--router-backend", default="serve", metavar="NAME")
    add("--ras", metavar="HOST:PORT", help="NCCL RAS, usually 127.0.0.1:28028")
    add(
        "--pid",
        type=int,
        action="append",
        default=[],
        metavar="PID",
        help="main process of the tier (repeatable)",
    )
    add("--pid-file", type=Path, metavar="FILE")
    add("--ranks", type=int, metavar="N", help="processes in the tier's collectives")
    add("--tier", default="tp", choices=("tp", "fallback"), help="which tier this is; only tp can fall back")
    add("--expect-gpus", type=int, metavar="N", help="GPUs that this host should have; 0 = a CPU host")
    add("--expect-links", type=int, metavar="N", help="NVLinks that each GPU should have")
    add(
        "--since",
        metavar="DURATION",
        help="how far back kernel messages count, for example 15m (a whole file by default)",
    )
    add("--window-s", type=float, metavar="S", help="seconds between the two readings (default 3)")
    add(
        "--accept-unknown",
        action="append",
        default=[],
        metavar="RULE[:FIELD]",
        help="missing evidence that this host accepts",
    )
    add("--baseline", type=Path, metavar="FILE", help="known-good figures of this host, as JSON")
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run triage. Return the exit code; print one line on stderr for wrong usage."""
    try:
        options = parser().parse_args(argv)
        thresholds = _thresholds(options)
        snapshot = _snapshot(options, thresholds)
        verdict = judge(snapshot, thresholds, _baseline(options.baseline))
    except (UsageError, SnapshotUnreadable) as error:
        print(f"triage: {error}", file=sys.stderr)  # noqa: T201
        return USAGE_ERROR
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else USAGE_ERROR
    text = verdict.model_dump_json(indent=2) if options.json else render_text(verdict, snapshot)
    print(text)  # noqa: T201
    return TRIAGE_EXIT_CODES[verdict.verdict]


def _thresholds(options: argparse.Namespace) -> TriageThresholds:
    for rule_id in options.accept_unknown:
        if rule_id.partition(":")[0] not in RULES:
            raise UsageError(
                f"--accept-unknown: {rule_id!r} is not a rule; the rules are in docs/triage-rules.md"
            )
    changes = {"accept_unknown": tuple(options.accept_unknown)}
    if options.window_s is not None:
        changes["window_s"] = options.window_s
    try:
        return TriageThresholds.model_validate(changes)
    except ValidationError as error:
        raise UsageError(_first_problem(error)) from None


def _snapshot(options: argparse.Namespace, thresholds: TriageThresholds) -> Snapshot:
    if options.snapshot is not None:
        return load_snapshot(options.snapshot)
    target = _target(options, datetime.now(UTC))
    quiet = options.json or not sys.stderr.isatty()
    report = None if quiet else lambda line: print(f"  {line}", file=sys.stderr)  # noqa: T201
    snapshot = asyncio.run(
        collect(
            target, thresholds, deep=options.deep, report=report, whole_window=options.window_s is not None
        )
    )
    if options.record is not None:
        try:
            save_snapshot(snapshot, options.record)
        except OSError as error:
            raise UsageError(
                f"--record: {options.record} cannot be written: {error.strerror or error}"
            ) from None
    return snapshot


def _target(options: argparse.Namespace, now: datetime) -> TriageTarget:
    if options.kernel_log is not None and not options.kernel_log.is_file():
        raise UsageError(f"--kernel-log: {options.kernel_log}: no such file")
    if options.ras is not None and not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}", options.ras):
        raise UsageError(f"--ras: {options.ras!r} is not HOST:PORT, for example 127.0.0.1:28028")
    for flag, urls in (("--engine-url", [options.engine_url]), ("--replica-url", options.replica_url)):
        for url in urls:
            if url is not None and not url.startswith(("http://", "https://")):
                raise UsageError(f"{flag}: {url!r} must start with http:// or https://")
    try:
        since = None if options.since is None else now - parse_duration(options.since)
    except ValueError as error:
        raise UsageError(f"--since: {error}") from None
    try:
        return TriageTarget(
            host=socket.gethostname(),
            tier=options.tier,
            expect_gpus=options.expect_gpus,
            expect_links=options.expect_links,
            engine_url=options.engine_url or next(iter(options.replica_url), None),
            replica_urls=tuple(options.replica_url),
            model=options.model,
            completion=not options.no_completion,
            pids=tuple(options.pid),
            pid_file=options.pid_file,
            ranks=options.ranks,
            router_address=options.router_socket,
            router_backend=options.router_backend,
            ras=options.ras,
            kernel_log=options.kernel_log,
            since=since,
        )
    except ValidationError as error:
        raise UsageError(_first_problem(error)) from None


def _baseline(path: Path | None) -> TriageBaseline:
    if path is not None and not path.is_file():
        raise UsageError(f"--baseline: {path}: no such file")
    try:
        return load_baseline(None if path is None else str(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"--baseline: {error}") from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    flag = ".".join(str(part) for part in first["loc"]).replace("_", "-")
    return f"--{flag}: {first['msg']} (given: {first['input']!r:.60})"
