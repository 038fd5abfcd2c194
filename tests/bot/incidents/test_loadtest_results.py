"""Comparing finished load tests from Slack: which results are compared, and the answers when they cannot be."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from bot.incidents.loadtest_results import LoadTestResults
from bot.presenter.loadtests import baseline_message, baselines_message, comparison_message
from bot.presenter.render_context import RenderContext
from bot.store.records import Person, Place, RunRecord, RunStatus, StepRecord, StepStatus, UserError
from gpu_actions.loadtest.baseline import PUBLISHED, BaselineStore, make_baseline
from gpu_actions.loadtest.comparison import Change
from tests.gpu_actions.loadtest.test_baseline import a_result

CONTEXT = RenderContext(now=0)


class Finished:
    """Runs whose results are in folders, newest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, RunRecord] = {}

    def add(self, run_id: str, **result: object) -> None:
        folder = self.folder / run_id
        folder.mkdir()
        (folder / "load_test.json").write_text(a_result(**result).model_dump_json())  # type: ignore[arg-type]
        step = StepRecord(step_id="load", title="load", status=StepStatus.DONE, data={"folder": str(folder)})
        self.records[run_id] = RunRecord(
            id=run_id, action="loadtest", host="demo", status=RunStatus.SUCCEEDED, requester=Person(id="U1"),
            place=Place(channel="C1"), created_at=len(self.records), steps=(step,),
        )  # fmt: skip

    def get(self, run_id: str) -> RunRecord | None:
        return self.records.get(run_id)

    def list(self, *, action: str | None = None, host: str | None = None) -> Sequence[RunRecord]:
        found = [run for run in self.records.values() if (run.action, run.host) == (action, host)]
        return sorted(found, key=lambda run: -run.created_at)


@pytest.fixture
def runs(tmp_path: Path) -> Finished:
    return Finished(tmp_path)


@pytest.fixture
def results(runs: Finished, tmp_path: Path) -> LoadTestResults:
    return LoadTestResults(runs, tmp_path / "baselines")


def record(tmp_path: Path, name: str) -> None:
    BaselineStore(tmp_path / "baselines").save(make_baseline(name, [a_result(seed) for seed in (1, 2, 3)]))


async def test_the_newest_run_is_compared_with_the_current_baseline(
    runs: Finished, results: LoadTestResults, tmp_path: Path
) -> None:
    record(tmp_path, "good-day")
    runs.add("lt-old1", seed=10)
    runs.add("lt-new1", seed=11, ttft_ms=150)
    comparison = await results.compare(None, None, host="demo")
    assert (comparison.verdict, comparison.baseline_name) == (Change.REGRESSED, "good-day")
    message = comparison_message("lt-new1", comparison)
    assert message.text == "REGRESSED: lt-new1 against good-day"
    (table,) = [block for block in message.blocks if block["type"] == "table"]
    assert len(table["rows"]) == 4
    assert table["rows"][1][2]["text"] == "regressed", "the worst comes first"
    assert (await results.compare("lt-old1", "good-day", host="demo")).verdict is not Change.REGRESSED


async def test_comparing_two_runs_warns_that_one_run_shows_no_spread(
    runs: Finished, results: LoadTestResults
) -> None:
    runs.add("lt-aaaa", seed=4, n=1000)
    runs.add("lt-bbbb", seed=5, n=1000)
    comparison = await results.compare("lt-bbbb", "lt-aaaa", host="demo")
    assert comparison.verdict is Change.MATCHES
    assert "lt-aaaa is a single run" in comparison.reasons[-1]


async def test_a_different_workload_is_refused_and_the_field_named(
    runs: Finished, results: LoadTestResults
) -> None:
    runs.add("lt-aaaa", seed=4)
    runs.add("lt-bbbb", seed=5, max_new_tokens=64)
    comparison = await results.compare("lt-bbbb", "lt-aaaa", host="demo")
    assert comparison.verdict is Change.REFUSED
    assert "max_new_tokens: 64 against" in comparison.reasons[0]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ((None, None), "No baseline is in force"),
        (("lt-zzzz", None), "no run 'lt-zzzz'"),
        (("lt-aaaa", "nothing"), "no baseline and no run 'nothing'"),
        (("lt-aaaa", "lt-aaaa"), "is the run itself"),
        (("lt-gone", "lt-aaaa"), "cannot be read"),
    ],
)
async def test_an_impossible_comparison_is_explained(
    runs: Finished, results: LoadTestResults, names: tuple[str | None, str | None], says: str
) -> None:
    runs.add("lt-gone")
    (runs.folder / "lt-gone" / "load_test.json").unlink()
    runs.add("lt-aaaa")
    with pytest.raises(UserError, match=says):
        await results.compare(*names, host="demo")


async def test_a_void_run_is_not_a_reference(runs: Finished, results: LoadTestResults) -> None:
    runs.add("lt-part", partial=True)
    runs.add("lt-aaaa")
    with pytest.raises(UserError, match="lt-part is partial"):
        await results.compare("lt-aaaa", "lt-part", host="demo")


async def test_baselines_are_listed_and_another_one_becomes_current(
    results: LoadTestResults, tmp_path: Path
) -> None:
    assert "No baseline is recorded yet" in baselines_message(await results.baselines(), CONTEXT).text
    record(tmp_path, "monday")
    record(tmp_path, "tuesday")
    assert [(one.name, one.in_force) for one in await results.baselines()] == [
        ("monday", True),
        ("tuesday", False),
        (PUBLISHED, False),
    ]
    assert (await results.put_in_force("tuesday")).in_force
    assert not (await results.baseline("monday")).in_force
    assert "baseline set monday" in baseline_message(await results.baseline("monday"), CONTEXT).text
    with pytest.raises(UserError, match="never the judge"):
        await results.put_in_force(PUBLISHED)


async def test_a_damaged_baseline_is_listed_with_its_problem_beside_the_others(
    results: LoadTestResults, tmp_path: Path
) -> None:
    record(tmp_path, "monday")
    (tmp_path / "baselines" / "broken.json").write_text('{"baseline_version": 1}')
    known = {one.name: one for one in await results.baselines()}
    assert known["monday"].in_force
    assert "broken.json" in known["broken"].problem
    assert "broken" in str(baselines_message(list(known.values()), CONTEXT).blocks)
