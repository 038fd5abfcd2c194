"""An interrupted step runs again: every step function is interrupted, then run to its end, then run once more."""

import asyncio
from typing import Any

import pytest

from gpu_actions.action import StepContext
from gpu_actions.plan import Plan
from gpu_actions.restore.action import SPEC as RESTORE
from gpu_actions.tier import run_notes
from gpu_actions.walk import Ended, Outcome, RunStep, next_move, outputs_of, run_step
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import Site


async def walk_with_repeats(site: Site, plan: Plan, *, run_id: str, cut_after_s: float) -> list[Outcome]:
    """Walk a plan as if the bot were killed in every step: interrupt it, run it again to its end, and once more."""
    workdir = site.folder / "runs" / run_id
    workdir.mkdir(parents=True)
    outcomes: list[Outcome] = []
    while not isinstance(move := next_move(plan, outcomes), Ended):
        context = StepContext(
            run_id=run_id, host=site.host, step=move.step, outputs=outputs_of(outcomes), workdir=workdir
        )
        await _cut(move, context, cut_after_s)
        await run_step(move, context)
        outcomes.append((await run_step(move, context)).outcome)
    assert move.status == "succeeded", [(o.step_id, o.summary) for o in outcomes]
    return outcomes


async def _cut(move: RunStep, context: StepContext, after_s: float) -> None:
    task = asyncio.create_task(run_step(move, context))
    await asyncio.wait({task}, timeout=after_s)
    task.cancel()
    await asyncio.wait({task})


def of(outcomes: list[Outcome], step_id: str) -> dict[str, Any]:
    return next(outcome.data for outcome in outcomes if outcome.step_id == step_id)


@pytest.mark.chaos(
    fault="every step is interrupted, run again and run once more",
    at="a fallback",
    after="as if it ran once; no request lost",
)
@pytest.mark.parametrize("cut_after_s", [pytest.param(0.01, marks=pytest.mark.heavy), 0.12])
async def test_a_fallback_with_every_step_interrupted_and_repeated_ends_as_if_it_ran_once(
    site_with: MakeSite, cut_after_s: float
) -> None:
    site = await site_with()
    async with site.traffic() as seen:
        plan = await site.plan(skip_validation=True)
        outcomes = await walk_with_repeats(site, plan, run_id="fb-1", cut_after_s=cut_after_s)
    assert (seen.lost, seen.refused) == ([], 0)
    assert of(outcomes, "launch")["restarts"] == 0
    assert len(of(outcomes, "stop")["pids"]) == 2
    await site.check_serving("fallback")


@pytest.mark.chaos(
    fault="every step is interrupted, run again and run once more",
    at="a fallback from a hung tier",
    after="the ended requests are counted once and none is lost",
)
async def test_aborted_requests_are_counted_once_however_often_the_drain_runs(
    site_with: MakeSite,
) -> None:
    site = await site_with()
    async with site.traffic(clients=3) as seen:
        await site.freeze_rank()
        plan = await site.plan(skip_validation=True)
        outcomes = await walk_with_repeats(site, plan, run_id="fb-1", cut_after_s=0.05)
    assert seen.lost == [], "none had a byte of its answer yet, so the router sent them to the fallback"
    assert (of(outcomes, "drain")["cut"], of(outcomes, "drain")["resent"]) == (0, 3)
    await site.check_serving("fallback")


@pytest.mark.parametrize("already_ended", [0, 2])
async def test_a_kill_while_requests_are_aborted_neither_loses_nor_doubles_any_in_the_count(
    site_with: MakeSite, already_ended: int
) -> None:
    """The killed execution was about to end 3 + already_ended sessions and had ended the latter; 3 are still open."""
    site = await site_with()
    async with site.traffic(clients=3) as seen:
        await site.freeze_rank()
        plan = await site.plan(skip_validation=True)
        workdir = site.folder / "runs" / "fb-1"
        workdir.mkdir(parents=True)
        run_notes.keep(workdir, "cut_tp", {"cut": 0, "pending": 3 + already_ended})
        end = await site.run(plan, run_id="fb-1")
    assert end.ended.status == "succeeded"
    assert seen.lost == []
    drain = next(one.outcome for one in end.steps if one.outcome.step_id == "drain")
    assert (drain.data["cut"], drain.data["resent"]) == (already_ended, 3)


@pytest.mark.chaos(
    fault="every step is interrupted, run again and run once more",
    at="a restore",
    after="as if it ran once; no request lost",
)
async def test_a_restore_with_every_step_interrupted_and_repeated_ends_as_if_it_ran_once(
    site_with: MakeSite,
) -> None:
    site = await site_with(restore={"stages_percent": [50, 100], "hold_s": 0.7, "keep_fallback_warm_s": 0})
    await site.run(await site.plan(skip_validation=True))
    plan = await site.plan(RESTORE, accept_no_baseline=True)
    plan = plan.model_copy(
        update={"steps": tuple(s for s in plan.steps if s.id not in ("loadtest", "compare"))}
    )
    async with site.traffic() as seen:
        outcomes = await walk_with_repeats(site, plan, run_id="rs-1", cut_after_s=0.1)
    assert seen.lost == []
    assert of(outcomes, "start")["restarts"] == 0
    await site.check_serving("tp")
