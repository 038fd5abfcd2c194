"""The runbook's orchestrated restore test as one command: SECONDS QPS NAME.

It checks the disk, runs the load test in a new folder, and compares the result with the baseline in force, if there is one.
A rerun never overwrites or shows the figures of an older run.
"""

import asyncio
import datetime
import os
import re
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_actions.loadtest.baseline import BaselineStore
from gpu_actions.loadtest.comparison import Comparison, compare_with_current, comparison_text
from gpu_actions.loadtest.report import TEXT_NAME, summary_text
from gpu_actions.loadtest.result import LoadTestResult, RunVerdict
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import LoadTestRefused
from gpu_actions.system.files import write_atomically

MIN_FREE_BYTES = 200 * 1024 * 1024
"""A report of 5 million requests is under 1 MB; the rest is room for whatever else writes to this disk."""
Runner = Callable[[LoadSpec, Path], Coroutine[Any, Any, LoadTestResult]]


def run_folder(parent: Path, name: str) -> Path:
    """Create a new folder for a run, NAME-DATE, with a number appended when that is taken."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-") or "run"
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    for number in range(1000):
        folder = parent / (f"{safe}-{stamp}" + (f"-{number}" if number else ""))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise LoadTestRefused(f"report = {parent}: it has a thousand runs of this second; choose another folder")


def check_disk(parent: Path) -> None:
    """Raise LoadTestRefused when the folder's disk is nearly full or the folder cannot be written."""
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < MIN_FREE_BYTES:
        raise LoadTestRefused(
            f"report = {parent}: only {free // 2**20} MiB free; at least {MIN_FREE_BYTES // 2**20} are needed"
        )
    if not os.access(parent, os.W_OK):
        raise LoadTestRefused(f"report = {parent}: cannot be written; choose another folder with --report")


@dataclass(frozen=True, slots=True)
class Orchestrated:
    """A finished orchestrated test. `comparison` is None where no baseline is in force."""

    folder: Path
    result: LoadTestResult
    comparison: Comparison | None

    @property
    def text(self) -> str:
        """The summary of the run, then the comparison with the baseline."""
        if self.comparison is None:
            hint = "no baseline for this host and workload: record one with `loadtest baseline record`\n"
            return summary_text(self.result) + hint
        return summary_text(self.result) + comparison_text(self.comparison)

    @property
    def exit_code(self) -> int:
        """The run's own code. A passed run that regressed against the baseline is 1, one that cannot be judged 3."""
        if self.result.verdict is not RunVerdict.PASSED or self.comparison is None:
            return self.result.exit_code
        return self.comparison.exit_code


async def orchestrate(
    spec: LoadSpec, parent: Path, *, baselines: BaselineStore, runner: Runner
) -> Orchestrated:
    """Run in a new folder under `parent` and compare with the baseline in force.

    Raises LoadTestRefused before anything is sent when the preflight finds a problem.
    """
    await asyncio.to_thread(check_disk, parent)
    folder = run_folder(parent, spec.name)
    try:
        result = await runner(spec, folder)
    except LoadTestRefused:
        folder.rmdir()  # empty: nothing ran
        raise
    comparison = compare_with_current(result, baselines, folder)
    done = Orchestrated(folder, result, comparison)
    write_atomically(folder / TEXT_NAME, done.text)
    return done
