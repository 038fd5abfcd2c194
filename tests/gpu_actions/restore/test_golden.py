"""Restores of a tier that answers wrongly: real processes, a real HAProxy, and no traffic for that tier."""

from pathlib import Path
from typing import Any

import pytest

from gpu_actions.fallback.cleanup import Found, ServingState
from gpu_actions.restore.plan_steps import Way, order_of
from gpu_actions.restore.stepback import decide_back
from gpu_actions.serving.golden.record import golden_path, load_golden, save_golden
from gpu_actions.serving.golden.recording import record_golden
from gpu_actions.walk import WalkEnd
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.restore.test_restore import on_fallback, restore_plan
from tests.gpu_actions.site import Site, data_of, statuses, summary_of

SHORT = ("loadtest", "compare", "environment")


async def recorded_fallback(make: MakeSite) -> tuple[Site, Path]:
    """Return a host whose golden prompts were recorded while tp served, and that is on its fallback now."""

    async def make_recorded(**changes: Any) -> Site:
        site = await make(**changes)
        record = await record_golden(site.host.tp.engine, host="test", tier="tp", repeats=1, concurrency=0)
        save_golden(record, golden_path(site.folder / "baselines", host="test", tier="tp"))
        return site

    site = await on_fallback(make_recorded)
    return site, golden_path(site.folder / "baselines", host="test", tier="tp")


def status_of(end: WalkEnd, step_id: str) -> str:
    return dict(statuses(end))[step_id]


async def requests_of_tp(site: Site) -> int:
    return (await site.host.router.server(site.host.tp.config.server)).requests_total


async def test_a_tier_that_answers_as_recorded_gets_its_traffic(site_with: MakeSite) -> None:
    site, _ = await recorded_fallback(site_with)
    async with site.traffic() as seen:
        end = await site.run(await restore_plan(site, without=SHORT))
    assert end.ended.status == "succeeded", end.steps[-2].outcome.summary
    assert status_of(end, "golden") == "done"
    assert "4 of 4 golden prompts match, 4 with equal tokens" in summary_of(end, "golden")
    assert seen.lost == []
    await site.check_serving("tp")


async def test_a_tier_that_answers_wrongly_gets_no_request_and_the_fallback_goes_on(
    site_with: MakeSite,
) -> None:
    site, _ = await recorded_fallback(site_with)
    before = await requests_of_tp(site)
    (site.folder / "wrong_tp").touch()
    async with site.traffic() as seen:
        end = await site.run(await restore_plan(site, without=SHORT))
    assert end.ended.failed_step == "golden"
    assert "golden prompt 1, token 1" in summary_of(end, "golden")
    assert "moved by 5.90 nats" in summary_of(end, "golden")
    assert data_of(end, "golden")["outcome"] == "differs"
    assert (
        "override_reason" in next(s for s in end.steps if s.outcome.step_id == "golden").outcome.next_action
    )
    assert await requests_of_tp(site) == before
    assert (seen.lost, seen.refused) == ([], 0)
    await site.check_serving("fallback")


async def test_a_cut_over_to_a_tier_that_answers_wrongly_starts_the_fallback_again(
    site_with: MakeSite,
) -> None:
    site, _ = await recorded_fallback(site_with)
    before = await requests_of_tp(site)
    (site.folder / "wrong_tp").touch()
    end = await site.run(await restore_plan(site, without=SHORT, cut_over=True))
    assert end.ended.failed_step == "golden"
    assert data_of(end, "stepback")["state"] == "fallback_serving"
    assert await requests_of_tp(site) == before
    await site.check_serving("fallback")


async def test_an_override_lets_a_difference_pass_as_a_warning(site_with: MakeSite) -> None:
    site, _ = await recorded_fallback(site_with)
    (site.folder / "wrong_tp").touch()
    plan = await restore_plan(site, without=SHORT, override_reason="new weights")
    last = [step.id for step in plan.steps].index("golden") + 1
    end = await site.run(plan.model_copy(update={"steps": plan.steps[:last]}))
    assert status_of(end, "golden") == "warning"
    assert "overridden: new weights" in summary_of(end, "golden")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param("nothing recorded", "no golden prompts are recorded", id="not recorded"),
        pytest.param("other model", "the model is m, recorded with other", id="other model"),
        pytest.param("damaged", "is not JSON", id="damaged"),
    ],
)
async def test_what_cannot_be_compared_is_a_warning_that_says_what_to_do(
    site_with: MakeSite, change: str, words: str
) -> None:
    site, path = await recorded_fallback(site_with)
    record = load_golden(path)
    assert record is not None
    if change == "nothing recorded":
        path.unlink()
    elif change == "other model":
        save_golden(record.model_copy(update={"model": "other"}), path)
    else:
        path.write_text("{")
    plan = await restore_plan(site, without=SHORT)
    last = [step.id for step in plan.steps].index("golden") + 1
    end = await site.run(plan.model_copy(update={"steps": plan.steps[:last]}))
    assert status_of(end, "golden") == "warning"
    assert words in summary_of(end, "golden")
    assert "gpu-oncall golden record" in summary_of(end, "golden")
    golden = plan.steps[last - 1]
    assert ("none are recorded" in golden.details[0]) == (change == "nothing recorded")


def test_the_check_comes_before_the_first_traffic_in_both_ways() -> None:
    for way in Way:
        order = order_of(way, (5, 100))
        first = min(order.index(step) for step in order if step.startswith("shift-"))
        assert order.index("start") < order.index("golden") < first


def test_a_tier_that_answers_wrongly_is_not_one_to_settle_on() -> None:
    found = Found(
        tp_active=True,
        tp_generates=False,
        fallback_active=False,
        fallback_generates=False,
        tp_served_before=False,
    )
    back = decide_back(found, stages_passed=False)
    assert (back.state, back.start_fallback) == (ServingState.FALLBACK, True)
