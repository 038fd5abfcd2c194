"""The load test as an action on a real router and a real tier: planned, run, stopped, compared and recorded."""

import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from gpu_actions.action import PlanRefused, Signal
from gpu_actions.loadtest.action import SPEC
from gpu_actions.loadtest.baseline import Baseline, BaselineStore
from tests.gpu_actions.site import Site, data_of, make_site, statuses, summary_of


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = make_site(tmp_path)
    await made.up()
    yield made
    await made.down()


async def test_a_load_test_through_the_router_returns_figures_a_picture_and_a_hint_about_baselines(
    site: Site,
) -> None:
    end = await site.run(await site.plan(SPEC, qps=10, duration=2))
    assert statuses(end) == [("load", "done"), ("compare", "done")]
    assert summary_of(end, "load").startswith("PASSED")
    assert data_of(end, "load")["thread_text"].count("\n") == 5
    artifacts = {artifact.name: artifact for artifact in end.steps[0].artifacts}
    assert set(artifacts) == {"report.png", "report.html", "load_test.json", "summary.txt"}
    assert artifacts["report.png"].inline
    assert "records one" in summary_of(end, "compare")


@pytest.mark.heavy
async def test_a_recorded_baseline_judges_the_next_run_of_its_workload(site: Site) -> None:
    end = await site.run(await site.plan(SPEC, qps=20, duration=1.5, arrival="constant", baseline="good-day"))
    assert statuses(end) == [("load1", "done"), ("load2", "done"), ("load3", "done"), ("record", "done")]
    recorded = BaselineStore(site.folder / "baselines").get("good-day")
    assert isinstance(recorded, Baseline)
    assert len(recorded.runs) == 3
    after = await site.run(await site.plan(SPEC, qps=20, duration=1.5, arrival="constant"))
    assert "against good-day" in summary_of(after, "compare")
    other = await site.run(await site.plan(SPEC, qps=25, duration=1.5, arrival="constant"))
    assert "no baseline" in summary_of(other, "compare")


async def test_a_stop_drains_and_keeps_the_partial_figures(site: Site) -> None:
    stopped_at = time.monotonic() + 5

    async def stop_when_some_are_served() -> Sequence[Signal]:
        return ("stop",) if time.monotonic() > stopped_at else ()

    end = await site.run(await site.plan(SPEC, qps=10, duration=60), signals=stop_when_some_are_served)
    assert "PARTIAL" in summary_of(end, "load")
    assert "stopped by request" in summary_of(end, "load")


async def test_contradictory_options_are_refused_at_planning(site: Site) -> None:
    with pytest.raises(PlanRefused, match="prompt_len_min = 90"):
        await site.plan(SPEC, prompt_len_min=90)


async def test_a_search_for_the_knee_is_planned_up_to_the_cap_of_the_host_and_stops_on_request(
    site: Site,
) -> None:
    plan = await site.plan(SPEC, find="knee", slo_ttft_ms=700)
    (step,) = plan.steps
    assert step.args["max_qps"] == 500
    assert "TTFT p99 700 ms" in step.title
    assert any("overloads the service" in line for line in step.details)
    stopped_at = time.monotonic() + 8

    async def stop_soon() -> Sequence[Signal]:
        return ("stop",) if time.monotonic() > stopped_at else ()

    end = await site.run(plan, signals=stop_soon)
    assert "VOID" in summary_of(end, "knee")
    assert "stopped by request" in data_of(end, "knee")["thread_text"]
    assert [artifact.name for artifact in end.steps[0].artifacts] == ["knee.png", "knee.json", "summary.txt"]


async def test_a_knee_and_a_baseline_are_not_asked_for_at_once(site: Site) -> None:
    with pytest.raises(PlanRefused, match="two different tests"):
        await site.plan(SPEC, find="knee", baseline="good-day")


async def test_a_tier_that_does_not_answer_is_refused_at_planning(site: Site) -> None:
    with pytest.raises(PlanRefused, match="fallback does not answer"):
        await site.plan(SPEC, target="fallback")
