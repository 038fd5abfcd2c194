"""The runbook's orchestrated restore test as one command: SECONDS QPS NAME, its own folder a run, and a verdict that is read.

Preflight (disk, service, model, one completion), the load with power sampling, comparison with the host's current baseline
where there is one, summary and verdict. A rerun never overwrites or shows an older run's numbers.
"""

import asyncio
import datetime
import os
import re
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from gpu_actions.loadtest.baseline import BaselineStore
from gpu_actions.loadtest.comparison import Comparison, compare, comparison_text
from gpu_actions.loadtest.report import summary_text
from gpu_actions.loadtest.result import LoadTestResult, RunVerdict
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import LoadTestRefused
from gpu_actions.system.files import write_atomically

MIN_FREE_BYTES = 200 * 1024 * 1024
"""A report of 5 million requests is under 1 MB; the rest is room for whatever else writes to this disk meanwhile."""
Runner = Callable[[LoadSpec, Path], Coroutine[Any, Any, LoadTestResult]]


def run_folder(parent: Path, name: str, *, now: datetime.datetime | None = None) -> Path:
    """Create a new folder for a run: NAME-DATE, with a number behind it when that is taken."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-") or "run"
    stamp = (now or datetime.datetime.now(datetime.UTC)).strftime("%Y%m%dT%H%M%SZ")
    for number in range(1000):
        folder = parent / (f"{safe}-{stamp}" + (f"-{number}" if number else ""))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise LoadTestRefused(f"report = {parent}: holds a thousand runs of this second; choose another folder")


def check_disk(parent: Path) -> None:
    """Raises LoadTestRefused when the folder's disk is nearly full or the folder cannot be written."""
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < MIN_FREE_BYTES:
        raise LoadTestRefused(
            f"report = {parent}: only {free // 2**20} MiB free; {MIN_FREE_BYTES // 2**20} are wanted"
        )
    if not os.access(parent, os.W_OK):
        raise LoadTestRefused(f"report = {parent}: cannot be written; choose another folder with --report")


async def orchestrate(
    spec: LoadSpec, parent: Path, *, baselines: BaselineStore | None, runner: Runner
) -> tuple[Path, LoadTestResult, Comparison | None]:
    """Run in a new folder under `parent`; gives the folder, the result, and the comparison where there is a baseline.

    Raises LoadTestRefused before anything is sent when the preflight finds a problem.
    """
    await asyncio.to_thread(check_disk, parent)
    folder = run_folder(parent, spec.name)
    try:
        result = await runner(spec, folder)
    except LoadTestRefused:
        folder.rmdir()  # empty: nothing ran
        raise
    baseline = baselines.current_for(result) if baselines is not None else None
    comparison = None
    if baseline is not None:
        comparison = compare(result, baseline)
        write_atomically(folder / "comparison.json", comparison.model_dump_json(indent=1))
    write_atomically(folder / "summary.txt", orchestrated_text(result, comparison))
    return folder, result, comparison


def orchestrated_text(result: LoadTestResult, comparison: Comparison | None) -> str:
    """The five lines, then what the baseline says."""
    text = summary_text(result)
    if comparison is None:
        return text + "no baseline for this host and workload: record one with `loadtest baseline record`\n"
    return text + comparison_text(comparison)


def orchestrated_exit_code(result: LoadTestResult, comparison: Comparison | None) -> int:
    """The run's own code; a passed run that regressed against the baseline is 1, one that cannot be judged 3."""
    if result.verdict is not RunVerdict.PASSED or comparison is None:
        return result.exit_code
    return comparison.exit_code
