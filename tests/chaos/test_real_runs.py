"""kill -9 of the worker at every step of a real fallback and a real restore, under traffic.

All are heavy: a run starts a dozen workers. `test_kill_nine` plays the same kills on toys, and
`test_saturated_kills` one on a real host.

Afterwards: one terminal state, the weights that it names, no step repeated whose row says that it is done, no leftover process.
"""

import asyncio
from pathlib import Path

import pytest

from bot.store.records import RunRecord, RunStatus
from tests.bot.toys import ONCALL
from tests.chaos.real_host import RealHost, real_host
from tests.gpu_actions.site import Site

QUICK = {
    "fallback": {"validate_load": {"duration_s": 1, "target_qps": 10}},
    "restore": {
        "stages_percent": [50, 100],
        "hold_s": 0.7,
        "keep_fallback_warm_s": 0,
        "load": {"duration_s": 1, "target_qps": 10},
    },
}
MODES = [("inside", 2), ("before-row", 2), ("after-row", 1)]


def check_repeats(run: RunRecord, mode: str, times: int, died: int) -> None:
    """A step whose row was written runs once, an interrupted one twice. Some steps end before the kill comes."""
    counts = {step.step_id: step.executions for step in run.steps if not step.compensating}
    if mode == "inside":
        assert set(counts.values()) <= {1, 2, 3}, (
            counts
        )  # a kill meant for a short step falls into the next one
        assert sum(count > 1 for count in counts.values()) >= len(counts) // 2, counts
        assert died >= len(counts) // 2
    else:
        assert {name: count for name, count in counts.items() if count != times} == {}
        assert died == len(counts)


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="every step of a real fallback: inside, before its row, after its row",
    after="succeeded; the fallback serves; no request lost or refused; a step with a row runs once",
)
@pytest.mark.heavy
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("mode", "times"), MODES)
async def test_a_planned_fallback_survives_a_kill_at_every_step_without_losing_a_request(
    tmp_path: Path, mode: str, times: int
) -> None:
    async with real_host(tmp_path, **QUICK) as it:
        await it.ready(it.worker(mode))
        async with it.site.traffic() as seen:
            run = await it.start("fallback")
            run, died = await it.ended_among_kills(run.id, mode)
        assert run.status is RunStatus.SUCCEEDED, run
        check_repeats(run, mode, times, died)
        assert (seen.lost, seen.refused) == ([], 0)
        await it.site.check_serving("fallback")
        it.end_workers()
        assert await it.strays() == []


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="during every step of a real fallback from a hung tier",
    after="succeeded; lost are only hung requests whose answer had begun, and their count is right",
)
@pytest.mark.heavy
@pytest.mark.timeout(240)
async def test_a_fallback_from_a_hung_tier_survives_kills_and_loses_only_begun_answers(
    tmp_path: Path,
) -> None:
    async with real_host(tmp_path, **QUICK) as it:
        await it.ready(it.worker("inside"))
        async with it.site.traffic(clients=3, timeout_s=150) as seen:
            await asyncio.sleep(0.5)
            await it.site.freeze_rank()
            run = await it.start("fallback", skip_validation="yes")
            run, died = await it.ended_among_kills(run.id, "inside")
        assert run.status is RunStatus.SUCCEEDED, run
        assert died >= len(run.steps) // 2
        drain = next(step for step in run.steps if step.step_id == "drain")
        assert drain.data["cut"] + drain.data["resent"] == 3, drain
        assert len(seen.lost) == drain.data["cut"], "lost are only those whose answer had begun"
        await it.site.check_serving("fallback")
        it.end_workers()
        assert await it.strays() == []


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="every step of a real restore and its approval, which is given while the worker is down",
    after="succeeded; tp serves; no request lost",
)
@pytest.mark.heavy
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("mode", "times"), [("inside", 2), ("after-row", 1)])
async def test_a_restore_survives_a_kill_at_every_step_and_during_the_approval(
    tmp_path: Path, mode: str, times: int
) -> None:
    async with real_host(tmp_path, **QUICK) as it:
        await on_the_fallback(it)
        worker = it.worker(mode)
        await it.ready(worker)
        async with it.site.traffic() as seen:
            run = await it.start("restore", accept_no_baseline="yes")
            await it.until(run.id, lambda run: run.status is RunStatus.WAITING)
            worker.kill()
            worker.wait()
            await it.approve(run.id)  # while no worker runs
            it.worker(mode)
            run, died = await it.ended_among_kills(run.id, mode, timeout_s=200)
        assert run.status is RunStatus.SUCCEEDED, run
        check_repeats(run, mode, times, died)
        assert seen.lost == []
        await it.site.check_serving("tp")
        it.end_workers()
        assert await it.strays() == []


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="during every step of a real fallback and of its cleanup after a stop",
    after="cancelled; fallback_serving",
)
@pytest.mark.heavy
@pytest.mark.timeout(200)
async def test_a_stop_among_kills_leaves_one_defined_state(tmp_path: Path) -> None:
    """The stop comes after the tier was stopped. The compensation is killed at each step too, and ends in fallback_serving."""
    async with real_host(tmp_path, **QUICK) as it:
        await it.ready(it.worker("inside"))
        run = await it.start("fallback")
        while True:
            current, _ = it.store.get(run.id), await asyncio.sleep(0.05)
            assert current is not None
            if any(step.step_id == "validate" for step in current.steps):
                break
            if it.workers[-1].poll() is not None:
                it.worker("inside")
        await it.bot_process.stop(run.id, by=ONCALL)
        run, _ = await it.ended_among_kills(run.id, "inside")
        assert run.status is RunStatus.CANCELLED
        assert "fallback_serving" in run.outcome or any(
            "fallback_serving" in step.summary for step in run.steps
        )
        await it.site.check_serving("fallback")
        it.end_workers()
        assert await it.strays() == []


async def on_the_fallback(it: RealHost) -> None:
    """Move the host to its fallback without a bot."""
    site: Site = it.site
    end = await site.run(await site.plan(skip_validation=True))
    assert end.ended.status == "succeeded", end


LADDER = {"ladder": {"big": {"max_concurrent": 64}, "small": {"max_concurrent": 32}}}


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="during every step of a real fallback whose highest rung does not generate",
    after="succeeded; the next rung below serves; no other rung is left; no request lost",
)
@pytest.mark.heavy
@pytest.mark.timeout(240)
async def test_a_step_down_survives_a_kill_at_every_step_and_one_rung_is_left(tmp_path: Path) -> None:
    failing = tmp_path / "fails"
    failing.write_text("99")
    ladder = {"big": {"flags": ["--fail-starts", str(failing)]}, "small": {"max_concurrent": 32}}
    async with real_host(tmp_path, **QUICK, ladder=ladder) as it:
        await it.ready(it.worker("inside"))
        async with it.site.traffic() as seen:
            run = await it.start("fallback", skip_validation="yes")
            run, died = await it.ended_among_kills(run.id, "inside")
        assert (run.status, it.site.host.rung) == (RunStatus.SUCCEEDED, "small"), run
        assert died >= 4
        assert seen.lost == []
        await it.site.check_serving("fallback")
        it.end_workers()
        assert await it.strays() == []


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="every step of a step up from a smaller rung to a bigger one",
    after="succeeded; the bigger rung serves; the smaller one is stopped; no request lost",
)
@pytest.mark.heavy
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["inside", "after-row"])
async def test_a_step_up_survives_a_kill_at_every_step(tmp_path: Path, mode: str) -> None:
    async with real_host(tmp_path, **QUICK, **LADDER) as it:
        end = await it.site.run(await it.site.plan(skip_validation=True, rung="small"))
        assert end.ended.status == "succeeded", end
        await it.ready(it.worker(mode))
        async with it.site.traffic() as seen:
            run = await it.start("restore", rung="big")
            await it.approve(run.id)
            run, died = await it.ended_among_kills(run.id, mode, timeout_s=200)
        assert (run.status, it.site.host.rung) == (RunStatus.SUCCEEDED, "big"), run
        assert died >= 6
        assert seen.lost == []
        await it.site.check_serving("fallback")
        it.end_workers()
        assert await it.strays() == []
