"""The comparison with the baseline: a real load test, then every result of the step."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_actions.action import Signal
from gpu_actions.loadtest.baseline import BaselineStore, make_baseline
from gpu_actions.loadtest.result import LoadTestResult, read_result
from gpu_actions.plan import Plan, Step
from gpu_actions.restore.action import SPEC as RESTORE
from gpu_actions.restore.loadcheck import FOLDER, likely_baseline
from gpu_actions.restore.plan_steps import Way, restore_steps
from gpu_actions.tier.preflight import gather_facts
from gpu_actions.walk import WalkEnd
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import Site, data_of, statuses, summary_of


def steady(result: LoadTestResult) -> LoadTestResult:
    """Return the result with equal samples: how far a busy machine spreads them is not what is tested."""
    samples = {
        field: (statistics.median(values),) * len(values)
        if (values := getattr(result.samples, field))
        else ()
        for field in type(result.samples).model_fields
    }
    return result.model_copy(update={"samples": result.samples.model_copy(update=samples)})


def baseline_from(result: LoadTestResult, folder: Path, name: str, *, times_faster: float = 1.0) -> None:
    """Record a baseline made from three copies of a run."""
    samples = {
        field: tuple(value / times_faster for value in getattr(result.samples, field))
        for field in type(result.samples).model_fields
    }
    run = result.model_copy(update={"samples": result.samples.model_copy(update=samples)})
    runs = [
        run.model_copy(
            update={"times": run.times.model_copy(update={"started_at": f"2026-01-0{day}T00:00:00Z"})}
        )
        for day in (1, 2, 3)
    ]
    store = BaselineStore(folder)
    store.save(make_baseline(name, runs))
    store.set_current(name)


async def steps_of(site: Site, **options: Any) -> dict[str, Step]:
    wanted = {
        "override_reason": "",
        "accept_no_baseline": False,
        "baseline": None,
        "baselines_dir": str(site.folder / "baselines"),
        **options,
    }
    return restore_steps(site.host, await gather_facts(site.host), Way.BESIDE, options=wanted)


async def run_one(site: Site, step: Step, *, told: Sequence[Signal] = ()) -> WalkEnd:
    """Run one step; the signals come after it has asked its question."""
    readings = 0

    async def signals() -> Sequence[Signal]:
        nonlocal readings
        readings += 1
        return told if readings > 1 else ()

    plan = Plan(action="restore", host="test", title="one step", steps=(step,))
    return await site.run(plan, run_id="rs-1", signals=signals)


async def test_the_comparison_passes_fails_or_asks(site_with: MakeSite) -> None:
    site = await site_with(restore={"inconclusive_wait_s": 1.5, "load": {"duration_s": 2, "target_qps": 20}})
    steps = await steps_of(site)
    tested = await run_one(site, steps["loadtest"])
    assert statuses(tested) == [("loadtest", "done")]
    assert "ok" in summary_of(tested, "loadtest")
    assert {a.name for a in tested.steps[0].artifacts} >= {"load_test.json", "report.html", "report.png"}

    asked = await run_one(site, steps["compare"])
    assert asked.ended.status == "failed"
    assert "accept_no_baseline=yes" in asked.steps[0].outcome.next_action
    accepted = await run_one(site, (await steps_of(site, accept_no_baseline=True))["compare"])
    assert statuses(accepted) == [("compare", "warning")]
    by_person = await run_one(site, steps["compare"].model_copy(update={"id": "compare-2"}), told=("next",))
    assert "accepted by a person" in summary_of(by_person, "compare-2")

    path = site.folder / "runs" / "rs-1" / FOLDER / "load_test.json"
    result = steady(read_result(path))
    path.write_text(result.model_dump_json())
    assert likely_baseline(site.host, site.folder / "baselines") is None
    baseline_from(result, site.folder / "baselines", "good-day")
    assert likely_baseline(site.host, site.folder / "baselines") == "good-day"
    matched = await run_one(site, steps["compare"])
    assert statuses(matched) == [("compare", "done")], summary_of(matched, "compare")
    assert "against good-day" in data_of(matched, "compare")["thread_text"]

    baseline_from(result, site.folder / "baselines", "faster-day", times_faster=3)
    worse = await run_one(site, steps["compare"])
    assert worse.ended.status == "failed"
    assert "regressed against faster-day" in summary_of(worse, "compare")


async def test_the_plan_says_that_there_is_no_baseline_and_how_to_accept_it(site_with: MakeSite) -> None:
    site = await site_with()
    await site.host.tp.unit.stop()
    plan = await site.plan(RESTORE)
    assert any("accept_no_baseline=yes" in warning for warning in plan.warnings)
    accepted = await site.plan(RESTORE, accept_no_baseline=True)
    assert not any("baseline" in warning for warning in accepted.warnings)
    assert plan.hash != accepted.hash
