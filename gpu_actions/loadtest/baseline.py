"""Baselines: at least three passed runs of one workload on one host, kept as JSON files in a folder.

A baseline is recorded by our own load test on a known-good day. The runbook's published figures ship as an unverified
reference, which can be shown beside a result but never judges one.
"""

import datetime
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from gpu_actions.loadtest.result import EngineFacts, HostFacts, LoadTestResult, RunVerdict, Samples, Workload
from gpu_actions.models import Frozen
from gpu_actions.system.files import write_atomically

MIN_RUNS = 3
BASELINE_VERSION: Literal[1] = 1
PUBLISHED = "published-8xb200"
_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")


class BaselineError(ValueError):
    """A baseline cannot be recorded, found or read. The message says why and what to do."""


class BaselineRun(Frozen):
    """The figures of one run that a comparison needs."""

    started_at: str
    measured_s: float
    sent: int
    ok: int
    achieved_qps: float
    offered_qps: float
    output_tokens_per_s: float
    tokens_per_joule: float | None = None
    ttft_p99_ms: float | None
    e2e_p99_ms: float | None
    samples: Samples


class Baseline(Frozen):
    """Measured figures of a healthy host, with the fingerprint of their workload."""

    baseline_version: Literal[1] = BASELINE_VERSION
    kind: Literal["measured"] = "measured"
    name: str
    recorded_at: str
    workload: Workload
    host: HostFacts
    engine: EngineFacts
    runs: tuple[BaselineRun, ...] = Field(min_length=MIN_RUNS)


class RunSet(Frozen):
    """Finished runs to compare with where there is no baseline. It judges only when a person names it."""

    name: str
    workload: Workload
    host: HostFacts
    runs: tuple[BaselineRun, ...] = Field(min_length=1)


class ReferenceFigure(Frozen):
    """One published line."""

    label: str
    target_qps: float | None = None
    minutes: float | None = None
    achieved_qps: float | None = None
    output_tokens_per_s: float | None = None
    p99_ms: float | None = None
    tokens_per_joule: float | None = None
    finding: str = ""


class Reference(Frozen):
    """Published figures. `verified` is False for all that ship here; they never judge."""

    baseline_version: Literal[1] = BASELINE_VERSION
    kind: Literal["reference"] = "reference"
    name: str
    verified: bool
    source: str
    note: str
    figures: tuple[ReferenceFigure, ...]


def baseline_run(result: LoadTestResult) -> BaselineRun:
    """Reduce a result to the figures that comparisons use."""
    return BaselineRun(
        started_at=result.times.started_at,
        measured_s=result.times.measured_s,
        sent=result.requests.sent,
        ok=result.requests.ok,
        achieved_qps=result.rates.achieved_qps,
        offered_qps=result.rates.offered_qps,
        output_tokens_per_s=result.rates.output_tokens_per_s,
        tokens_per_joule=result.energy.tokens_per_joule,
        ttft_p99_ms=result.latency.ttft.p99.value_ms,
        e2e_p99_ms=result.latency.e2e.p99.value_ms,
        samples=result.samples,
    )


def unusable_state(result: LoadTestResult) -> str:
    """Return the state and reasons of a run that cannot be compared (void or partial); empty for a usable one."""
    if result.verdict is not RunVerdict.VOID and not result.partial:
        return ""
    return f"{'partial' if result.partial else 'void'}: {'; '.join(result.reasons)}"


def run_set(name: str, result: LoadTestResult) -> RunSet:
    """Return one run as something to compare another with. Raises BaselineError for a void or partial one."""
    if state := unusable_state(result):
        raise BaselineError(f"{name} is {state}; compare with another run")
    return RunSet(name=name, workload=result.workload, host=result.host, runs=(baseline_run(result),))


def differing_fields(left: Workload, right: Workload) -> list[str]:
    """Name each field in which two workloads differ, with both values. Empty when they agree."""

    def shown(value: object) -> str:
        return "not stated" if value is None else str(value)

    pairs = {name: (getattr(left, name), getattr(right, name)) for name in Workload.model_fields}
    return [
        f"{name}: {shown(ours)} against {shown(theirs)}"
        for name, (ours, theirs) in pairs.items()
        if name != "fingerprint" and ours != theirs
    ]


def make_baseline(name: str, results: Sequence[LoadTestResult]) -> Baseline:
    """Make a baseline of finished runs.

    Raises BaselineError for fewer than 3 runs, the same run twice, one that is partial or did not pass, and for runs of
    different workloads or hosts.
    """
    if not _NAME.match(name) or name == PUBLISHED:
        raise BaselineError(
            f"name = {name!r}: use lower-case letters, digits, dots, dashes; for example healthy-tp8"
        )
    if len(results) < MIN_RUNS:
        raise BaselineError(
            f"a baseline needs at least {MIN_RUNS} runs, got {len(results)}; run the load test again"
        )
    if len({result.times.started_at for result in results}) < len(results):
        raise BaselineError("the same run is named twice; a baseline needs different runs")
    first = results[0]
    for number, result in enumerate(results, start=1):
        if result.verdict is not RunVerdict.PASSED or result.partial:
            state = "partial" if result.partial else result.verdict.value
            raise BaselineError(
                f"run {number} is {state} ({'; '.join(result.reasons)}); a baseline takes passed runs only"
            )
        if differences := differing_fields(first.workload, result.workload):
            raise BaselineError(f"run {number} has another workload than run 1: {'; '.join(differences)}")
        if result.host.hostname != first.host.hostname:
            raise BaselineError(
                f"run {number} was made on {result.host.hostname}, run 1 on {first.host.hostname}"
            )
    return Baseline(
        name=name,
        recorded_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        workload=first.workload,
        host=first.host,
        engine=first.engine,
        runs=tuple(baseline_run(result) for result in results),
    )


def published() -> Reference:
    """Return the runbook's published 8xB200 figures."""
    file = resources.files("gpu_actions.loadtest").joinpath("data", f"{PUBLISHED}.json")
    return Reference.model_validate_json(file.read_text(encoding="utf-8"))


class BaselineStore:
    """A folder of baselines: a NAME.json each, and current.json with the one in force for each workload of a host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Return the names of the stored baselines, and the shipped reference last. Other files of the folder are ignored."""
        stored = sorted(
            path.stem for path in self.folder.glob("*.json") if '"baseline_version"' in path.read_text()
        )
        return [*stored, PUBLISHED]

    def get(self, name: str) -> Baseline | Reference:
        """Read a baseline. Raises BaselineError when there is none of that name or its file cannot be read."""
        if name == PUBLISHED:
            return published()
        path = self.folder / f"{name}.json"
        if not _NAME.match(name) or not path.is_file():
            raise BaselineError(f"there is no baseline {name!r}; there are: {', '.join(self.names())}")
        try:
            return Baseline.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise BaselineError(
                f"{path}: is not a baseline of this version ({error}); record it again"
            ) from error

    def save(self, baseline: Baseline, *, replace: bool = False) -> Path:
        """Store a baseline. The first of its workload and host is put in force.

        Raises BaselineError when the name is taken and `replace` is not set.
        """
        path = self.folder / f"{baseline.name}.json"
        if path.exists() and not replace:
            raise BaselineError(
                f"there is a baseline {baseline.name!r} already; choose another name, or use --replace"
            )
        write_atomically(path, baseline.model_dump_json(indent=1))
        if _key(baseline.host.hostname, baseline.workload) not in self._current():
            self.set_current(baseline.name)
        return path

    def remove(self, name: str) -> None:
        """Remove a baseline, so that it judges nothing any more. Does nothing if there is none of that name."""
        current = {key: other for key, other in self._current().items() if other != name}
        write_atomically(
            self.folder / "current.json", _CurrentFile(current=current).model_dump_json(indent=1)
        )
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def set_current(self, name: str) -> None:
        """Put a measured baseline in force for its workload and host. Raises BaselineError for a reference."""
        baseline = self.get(name)
        if isinstance(baseline, Reference):
            raise BaselineError(
                f"{name} is an unverified reference and never the judge; record a baseline of this host"
            )
        current = self._current()
        current[_key(baseline.host.hostname, baseline.workload)] = name
        write_atomically(
            self.folder / "current.json", _CurrentFile(current=current).model_dump_json(indent=1)
        )

    def current_for(self, result: LoadTestResult) -> Baseline | None:
        """Return the baseline in force for a result's host and workload, or None."""
        name = self._current().get(_key(result.host.hostname, result.workload))
        found = None if name is None else self.get(name)
        return found if isinstance(found, Baseline) else None

    def is_current(self, name: str) -> bool:
        """Return True if a baseline is in force for any workload."""
        return name in self._current().values()

    def _current(self) -> dict[str, str]:
        path = self.folder / "current.json"
        if not path.exists():
            return {}
        try:
            return dict(_CurrentFile.model_validate_json(path.read_bytes()).current)
        except (OSError, ValidationError) as error:
            raise BaselineError(
                f"{path}: is damaged ({error}); remove it and set the baselines again"
            ) from error


class _CurrentFile(Frozen):
    current: dict[str, str]


def _key(hostname: str, workload: Workload) -> str:
    return f"{hostname}/{workload.fingerprint}"
