"""Finished load tests and baselines: list, show, compare, and choose the current baseline.

Results are in the folders of their runs and baselines in `state_dir/baselines`; `gpu_actions.loadtest` writes both.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bot.store.records import RunRecord, RunStatus, UserError
from gpu_actions.loadtest.baseline import Baseline, BaselineError, BaselineStore, Reference, RunSet, run_set
from gpu_actions.loadtest.comparison import Comparison, compare
from gpu_actions.loadtest.report import JSON_NAME
from gpu_actions.loadtest.result import LoadTestResult, read_result


class RunsToRead(Protocol):
    """The part of `bot.runs.runs.Runs` that is needed here."""

    def get(self, run_id: str) -> RunRecord | None: ...

    def list(self, *, action: str | None = None, host: str | None = None) -> Sequence[RunRecord]: ...


@dataclass(frozen=True)
class KnownBaseline:
    """A stored baseline. `in_force` is True if it judges its workload now; `problem` says why it cannot be read."""

    name: str
    entry: Baseline | Reference | None
    in_force: bool = False
    problem: str = ""


class LoadTestResults:
    """Reads results and baselines, in a thread. Raises UserError."""

    def __init__(self, runs: RunsToRead, baselines_dir: Path) -> None:
        self._runs = runs
        self._store = BaselineStore(baselines_dir)

    async def baselines(self) -> list[KnownBaseline]:
        """Return all baselines, the shipped reference last. A damaged one is listed with its problem."""
        return await asyncio.to_thread(lambda: [self._known(name) for name in self._store.names()])

    async def baseline(self, name: str) -> KnownBaseline:
        """Return a baseline by name."""
        known = await asyncio.to_thread(self._known, name)
        if known.entry is None:
            raise UserError(known.problem)
        return known

    async def put_in_force(self, name: str) -> KnownBaseline:
        """Make a baseline the current one of its workload and host. Return it as stored."""
        try:
            await asyncio.to_thread(self._store.set_current, name)
        except BaselineError as error:
            raise UserError(str(error)) from error
        return await self.baseline(name)

    async def compare(self, candidate: str | None, reference: str | None, *, host: str) -> Comparison:
        """Compare a run (default: the newest finished one of the host) with a baseline or another run.

        The default reference is the current baseline of the run's workload.
        """
        run = self._run(candidate) if candidate is not None else self._newest(host)

        def compared() -> Comparison:
            result = _result_of(run)
            return compare(result, self._reference(run, result, reference))

        return await asyncio.to_thread(compared)

    def _reference(
        self, run: RunRecord, result: LoadTestResult, name: str | None
    ) -> Baseline | RunSet | Reference:
        try:
            if name is None:
                current = self._store.current_for(result)
                if current is None:
                    raise UserError(
                        f"No baseline is in force for the workload of {run.id}. Record one with "
                        f"baseline record NAME, or name what to compare with: compare {run.id} RUN."
                    )
                return current
            if (other := self._runs.get(name)) is None and name in self._store.names():
                return self._store.get(name)
            if other is not None:
                if other.id == run.id:
                    raise UserError(f"{run.id} is the run itself; name another one.")
                return run_set(other.id, _result_of(other))
        except BaselineError as error:
            raise UserError(str(error)) from error
        raise UserError(
            f"I know no baseline and no run {name!r}; baselines: {', '.join(self._store.names())}."
        )

    def _known(self, name: str) -> KnownBaseline:
        try:
            return KnownBaseline(name, self._store.get(name), self._store.is_current(name))
        except BaselineError as error:
            return KnownBaseline(name, None, problem=str(error))

    def _run(self, run_id: str) -> RunRecord:
        run = self._runs.get(run_id)
        if run is None:
            raise UserError(f"I know no run {run_id!r}; /loadtest status names the latest.")
        return run

    def _newest(self, host: str) -> RunRecord:
        for run in self._runs.list(action="loadtest", host=host):
            if run.status is RunStatus.SUCCEEDED and _folders(
                run
            ):  # a search for the knee has no single result
                return run
        raise UserError(f"No load test of {host} has finished yet; there is nothing to compare.")


def _folders(run: RunRecord) -> list[str]:
    return [str(step.data["folder"]) for step in run.steps if step.data.get("folder")]


def _result_of(run: RunRecord) -> LoadTestResult:
    """Return the result of a load test run. Raise UserError if it has none (another action, not finished, removed)."""
    folders = _folders(run)
    if run.action != "loadtest" or not folders:
        raise UserError(f"{run.id} is not a finished load test; its status is {run.status.value}.")
    try:
        return read_result(Path(folders[-1]) / JSON_NAME)
    except ValueError as error:
        raise UserError(
            f"The figures of {run.id} cannot be read: {error}. Run the load test again."
        ) from error
