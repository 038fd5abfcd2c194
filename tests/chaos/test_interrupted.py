"""Interruptions other than kills: SIGTERM, a clock that is set during an approval, two simultaneous requests."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

import bot.runs.approval_wait
from bot.runs.approvals import Approvals
from bot.runs.runs import Runs
from bot.store.records import RunStatus, UserError
from tests.bot.toys import LEAD, effects, ended, launched, start
from tests.chaos.real_host import real_host
from tests.scenarios.saturated import BUSY, busy_clients, lost_text

HOUR_S = 3600.0
HOST = {**BUSY, "fallback": {**BUSY["fallback"], "validate_load": {"duration_s": 1, "target_qps": 10}}}


@pytest.mark.chaos(
    fault="SIGTERM to the bot",
    at="during a step of a fallback",
    after="it ends within 10 s with exit code 0; started again, the run succeeds and no request is lost",
)
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, marks=() if step == "warm" else pytest.mark.heavy)
        for step in ("capture", "launch", "warm", "route", "drain", "stop", "validate")
    ],
)
async def test_sigterm_ends_the_worker_soon_and_the_run_continues_later(tmp_path: Path, step: str) -> None:
    async with real_host(tmp_path, **HOST) as it:
        worker = it.worker("none")
        await it.ready(worker)
        async with busy_clients(it.site) as account:
            options = {} if step == "validate" else {"skip_validation": "yes"}
            run = await it.start("fallback", **options)
            await it.until(run.id, lambda run: any(s.step_id == step for s in run.steps))
            worker.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(worker.wait, 10)
            cut = it.store.get(run.id)
            assert (code, cut is not None and cut.status) == (0, RunStatus.RUNNING)
            assert await it.strays() == []
            it.worker("none")
            run, _ = await it.ended_among_kills(run.id, "none")
        assert run.status is RunStatus.SUCCEEDED, run
        assert {s.step_id: s.executions for s in run.steps if s.executions > 2} == {}
        assert account.lost == [], lost_text(account)
        await it.site.check_serving("fallback")


@pytest.mark.chaos(
    fault="two people press at once",
    at="Start fallback, on a real host",
    after="one run; the other person is told which run holds the host",
)
async def test_the_second_of_two_simultaneous_starts_is_refused_and_names_the_first(tmp_path: Path) -> None:
    async with real_host(tmp_path, **HOST) as it:
        await it.ready(it.worker("none"))
        answers = await asyncio.gather(
            *(it.start("fallback", skip_validation="yes") for _ in range(4)), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, UserError)]
        (run,) = [answer for answer in answers if not isinstance(answer, BaseException)]
        assert len(refused) == 3
        assert all(run.id in str(answer) for answer in refused)
        run, _ = await it.ended_among_kills(run.id, "none")
        assert run.status is RunStatus.SUCCEEDED
        assert len(it.store.list()) == 1
        await it.site.check_serving("fallback")


def set_clock(runs: Runs, by_s: float) -> None:
    """Set the clock of the store."""
    runs._store.clock = lambda: time.time() + by_s  # type: ignore[method-assign]


async def decide(runs: Runs, run_id: str) -> tuple[bool, str]:
    run = runs.get(run_id)
    assert run is not None
    answer = await Approvals(runs._store).decide(
        run_id=run_id, user=LEAD, decision="approve", plan_hash=run.plan_hash
    )
    return answer.accepted, answer.message


async def waiting(runs: Runs) -> str:
    run = await start(runs, "gated", script="count:a")
    await runs.wait(run.id, until=lambda run: run.status is RunStatus.WAITING)
    return run.id


@pytest.mark.chaos(
    fault="the wall clock is set by an hour, forwards or backwards",
    at="a run that waits for approval",
    after="forwards past its deadline: expired, reported, host free; backwards: it continues to wait and can be approved",
)
async def test_a_wait_whose_deadline_the_clock_jumped_over_expires_and_nobody_can_approve_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot.runs.approval_wait, "RECHECK_S", 0.1)
    async with launched(tmp_path / "state", expires_s=600) as runs:
        run_id = await waiting(runs)
        set_clock(runs, HOUR_S)
        assert (await ended(runs, run_id)).status is RunStatus.EXPIRED
        accepted, message = await decide(runs, run_id)
        assert not accepted
        assert "time to decide" in message
        assert effects(tmp_path / "state", "a") == []
        second = await start(runs, script="count:b")
        assert (await ended(runs, second.id)).status is RunStatus.SUCCEEDED


@pytest.mark.chaos(
    fault="the wall clock is set by an hour, forwards or backwards",
    at="a run that waits for approval",
    after="forwards past its deadline: expired, reported, host free; backwards: it continues to wait and can be approved",
)
@pytest.mark.parametrize("by_s", [-HOUR_S, HOUR_S / 12])
async def test_a_wait_within_its_deadline_continues_whatever_the_clock_is_set_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_s: float
) -> None:
    monkeypatch.setattr(bot.runs.approval_wait, "RECHECK_S", 0.1)
    async with launched(tmp_path / "state", expires_s=600) as runs:
        run_id = await waiting(runs)
        set_clock(runs, by_s)
        await asyncio.sleep(0.5)
        run = runs.get(run_id)
        assert run is not None
        assert run.status is RunStatus.WAITING
        assert (await decide(runs, run_id))[0]
        assert (await ended(runs, run_id)).status is RunStatus.SUCCEEDED
        assert effects(tmp_path / "state", "a") == [""]
