"""Finished load tests and baselines, for people to list, to show, to put in force and to compare.

Results stay in their runs' folders and baselines in `state_dir/baselines`; the actions of `gpu_actions.loadtest` write both.
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
from gpu_actions.loadtest.result import LoadTestResult
from gpu_actions.loadtest.run import read_result


class RunsToRead(Protocol):
    """What is needed of `bot.runs.runs.Runs`."""

    def get(self, run_id: str) -> RunRecord | None: ...

    def list(self, *, action: str | None = None, host: str | None = None) -> Sequence[RunRecord]: ...


@dataclass(frozen=True)
class KnownBaseline:
    """One entry of the store: what it is, and whether it judges its workload now. `problem` where it cannot be read."""

    name: str
    entry: Baseline | Reference | None
    in_force: bool = False
    problem: str = ""


class LoadResults:
    """Reads runs and baselines. Every method works on files in a thread and raises UserError in words."""

    def __init__(self, runs: RunsToRead, baselines_dir: Path) -> None:
        self._runs = runs
        self._store = BaselineStore(baselines_dir)

    async def baselines(self) -> list[KnownBaseline]:
        """All baselines, the shipped reference last; a damaged one with its problem instead of an error."""
        return await asyncio.to_thread(lambda: [self._known(name) for name in self._store.names()])

    async def baseline(self, name: str) -> KnownBaseline:
        """One baseline by name."""
        known = await asyncio.to_thread(self._known, name)
        if known.entry is None:
            raise UserError(known.problem)
        return known

    async def put_in_force(self, name: str) -> KnownBaseline:
        """Make a baseline the judge of its workload on its host, read back."""
        try:
            await asyncio.to_thread(self._store.set_current, name)
        except BaselineError as error:
            raise UserError(str(error)) from error
        return await self.baseline(name)

    async def compare(self, candidate: str | None, yardstick: str | None, *, host: str) -> Comparison:
        """Compare a run (the newest finished one of the host where None) with a baseline or another run.

        Where `yardstick` is None it is the baseline in force for the run's workload.
        """
        run = self._run(candidate) if candidate is not None else self._newest(host)
        return await asyncio.to_thread(self._compare, run, yardstick)

    def _compare(self, run: RunRecord, yardstick: str | None) -> Comparison:
        result = _result_of(run)
        return compare(result, self._yardstick(run, result, yardstick))

    def _yardstick(
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
            if run.status is RunStatus.SUCCEEDED:
                return run
        raise UserError(f"No load test of {host} has finished yet; there is nothing to compare.")


def _result_of(run: RunRecord) -> LoadTestResult:
    """The result of a run's only load step. Raises UserError where there is none (other action, three runs, swept away)."""
    folders = [str(step.data["folder"]) for step in run.steps if step.data.get("folder")]
    if run.action != "loadtest" or not folders:
        raise UserError(f"{run.id} is no finished load test; its status is {run.status.value}.")
    try:
        return read_result(Path(folders[-1]) / JSON_NAME)
    except ValueError as error:
        raise UserError(
            f"The figures of {run.id} cannot be read: {error}. Run the load test again."
        ) from error
