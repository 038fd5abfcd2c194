"""kill -9 of the worker at the steps of a fallback and of a restore, under 60 streams: more than the fallback can take."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from bot.store.records import RunRecord, RunStatus
from demo.traffic.account import Ending
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from tests.bot.toys import ONCALL
from tests.chaos.real_host import RealHost, real_host
from tests.scenarios.saturated import (
    BUSY,
    PROFILE,
    SLACK_S,
    busy_clients,
    check_refusals,
    check_shares,
    lost_text,
    servers_of,
    watched_weights,
)

RESTORE_STAGES = (25, 100)
RESTORE = {
    "stages_percent": RESTORE_STAGES,
    "hold_s": 2,
    "keep_fallback_warm_s": 0,
    "load": {"duration_s": 1, "target_qps": 10},
}
HOST = {
    **BUSY,
    "restore": RESTORE,
    "fallback": {**BUSY["fallback"], "validate_load": {"duration_s": 1, "target_qps": 10}},
}


def check_repeats(run: RunRecord, mode: str, died: int) -> None:
    """A step whose row was written runs once, an interrupted one twice. Some steps end before the kill comes."""
    counts = {step.step_id: step.executions for step in run.steps if not step.compensating}
    if mode == "inside":
        # A kill meant for a short step falls into the next one.
        assert set(counts.values()) <= {1, 2, 3}, counts
        assert sum(count > 1 for count in counts.values()) >= len(counts) // 2, counts
        assert died >= len(counts) // 2
    elif ":" not in mode:
        times = 1 if mode == "after-row" else 2
        assert {name: count for name, count in counts.items() if count != times} == {}
        assert died == len(counts)


async def on_the_fallback(it: RealHost) -> None:
    """Move the host to its fallback without a bot."""
    end = await it.site.run(await it.site.plan(skip_validation=True))
    assert end.ended.status == "succeeded", end


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="every step of a real fallback under 60 streams",
    after="succeeded; the fallback serves; no request is lost, and what it cannot take is refused fast",
)
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("inside:route", id="route"),
        pytest.param("inside", marks=pytest.mark.heavy),
        pytest.param("before-row", marks=pytest.mark.heavy),
        pytest.param("after-row", marks=pytest.mark.heavy),
    ],
)
async def test_a_fallback_among_kills_loses_no_request(tmp_path: Path, mode: str) -> None:
    async with real_host(tmp_path, **HOST) as it:
        await it.ready(it.worker(mode))
        async with watched_weights(it.site) as weights, busy_clients(it.site) as account:
            run = await it.start("fallback", skip_validation="yes")
            run, died = await it.ended_among_kills(run.id, mode, timeout_s=300)
            await asyncio.sleep(1)
        print(f"{died} kills", account.describe(), servers_of(list(account.answers)), sep="\n")
        assert run.status is RunStatus.SUCCEEDED, run
        assert died >= 1
        check_repeats(run, mode, died)
        assert account.lost == [], lost_text(account)
        for shares, server in (((100, 0), "tp"), ((0, 100), "fallback")):
            start, end = weights.span(shares)
            served = set(servers_of(account.sent_between(start + 0.1, end - 0.1)))
            assert served - {"refused", "hung up"} == {server}, (shares, served)
        await it.check_end("fallback")


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="every step of a real fallback from a hung tier under 60 streams",
    after="succeeded; the fallback serves; lost are only answers that had begun before the hang, and their count is right",
)
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("inside:drain", id="drain", marks=pytest.mark.heavy),
        pytest.param("inside", marks=pytest.mark.heavy),
        pytest.param("before-row", marks=pytest.mark.heavy),
        pytest.param("after-row", marks=pytest.mark.heavy),
    ],
)
async def test_a_fallback_from_a_hung_tier_among_kills_loses_only_begun_answers(
    tmp_path: Path, mode: str
) -> None:
    async with real_host(tmp_path, **HOST) as it:
        await it.ready(it.worker(mode))
        # Killed at each step, a run takes longer than a client usually waits; these do not give up.
        async with it.site.real_traffic(PROFILE.model_copy(update={"patience_s": 240})) as account:
            await asyncio.sleep(2.5)
            assert account.open >= 40
            await it.site.freeze_rank()
            frozen = time.monotonic()
            run = await it.start("fallback", skip_validation="yes")
            run, died = await it.ended_among_kills(run.id, mode, timeout_s=300)
            await asyncio.sleep(1)
        silence_s = account.longest_silence_s(frozen)
        print(f"{died} kills, {silence_s:.1f} s without a token", account.describe(), sep="\n")
        assert run.status is RunStatus.SUCCEEDED, run
        assert died >= (1 if ":" in mode else len(run.steps) // 2)
        for answer in account.lost:
            assert answer.ending is Ending.ABORTED, answer
            assert (answer.first_byte_at or frozen + 1) <= frozen + 0.3, f"{answer} had not begun on tp"
        drain = next(step for step in run.steps if step.step_id == "drain")
        assert drain.ended_at is not None
        # What the hung tier held is asked of the fallback when the drain ends it.
        check_refusals(account, since=drain.ended_at - time.time() + time.monotonic())
        assert drain.data["cut"] == len(account.lost), (drain.data, lost_text(account))
        await it.check_end("fallback")


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="every step of a real restore under 60 streams, and its approval, which is given while the worker is down",
    after="succeeded; tp serves; no request is lost; each stage has its share",
)
@pytest.mark.heavy
@pytest.mark.timeout(500)
@pytest.mark.parametrize("mode", ["inside", "after-row"])
async def test_a_restore_among_kills_loses_no_request(tmp_path: Path, mode: str) -> None:
    async with real_host(tmp_path, **HOST) as it:
        await on_the_fallback(it)
        worker = it.worker(mode)
        await it.ready(worker)
        async with watched_weights(it.site) as weights, busy_clients(it.site) as account:
            run = await it.start("restore", accept_no_baseline="yes")
            await it.until(run.id, lambda run: run.status is RunStatus.WAITING)
            worker.kill()
            worker.wait()
            await it.approve(run.id)  # while no worker runs
            it.worker(mode)
            run, died = await it.ended_among_kills(run.id, mode, timeout_s=400)
            await asyncio.sleep(1)
        print(f"{died} kills", account.describe(), servers_of(list(account.answers)), sep="\n")
        assert run.status is RunStatus.SUCCEEDED, run
        check_repeats(run, mode, died)
        assert account.lost == [], lost_text(account)
        check_shares(account, weights, RESTORE_STAGES)
        await it.check_end("tp")


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="while new requests are held for the plan of a fallback",
    after="the hold ends by itself; the next worker plans again, and the fallback serves",
)
@pytest.mark.heavy
@pytest.mark.timeout(200)
async def test_a_worker_killed_while_it_holds_requests_leaves_no_hold(tmp_path: Path) -> None:
    router = {**BUSY["router"], "hold": {"wait_s": 3}}
    async with real_host(tmp_path, **{**HOST, "router": router, "fallback": {"drain_stall_s": 2}}) as it:
        worker = it.worker("none")
        await it.ready(worker)
        front = it.site.host.router
        assert isinstance(front, ManagedRouter)
        async with it.site.real_traffic(PROFILE) as account:
            await asyncio.sleep(1)
            for pid in (await it.site.host.tp.unit.state()).pids:
                os.kill(pid, signal.SIGSTOP)
            run = await it.start("fallback", skip_validation="yes")
            async with asyncio.timeout(60):
                while not await front.held():
                    await asyncio.sleep(0.02)
            worker.kill()
            killed = time.monotonic()
            async with asyncio.timeout(60):
                while await front.held():
                    await asyncio.sleep(0.05)
            assert time.monotonic() - killed < 10, "the hold of 3 s ended by itself"
            await it.ready(it.worker("none"))
            async with asyncio.timeout(60):
                while not await front.held():
                    await asyncio.sleep(0.02)
            again = time.monotonic()
            run, _ = await it.ended_among_kills(run.id, "none", timeout_s=150)
        print(account.describe())
        assert run.status is RunStatus.SUCCEEDED, run
        late = [answer for answer in account.lost if answer.sent_at > again + SLACK_S]
        assert late == [], "lost are only those that nobody held, between the two workers"
        await it.site.check_serving("fallback")


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="during every step of a real fallback under 60 streams, and of its cleanup after a stop",
    after="cancelled; fallback_serving; no request is lost",
)
@pytest.mark.heavy
@pytest.mark.timeout(300)
async def test_a_stop_among_kills_leaves_one_defined_state(tmp_path: Path) -> None:
    """The stop comes after the tier was stopped. The compensation is killed at each step too, and ends in fallback_serving."""
    async with real_host(tmp_path, **HOST) as it:
        await it.ready(it.worker("inside"))
        async with busy_clients(it.site) as account:
            run = await it.start("fallback")
            while True:
                current, _ = it.store.get(run.id), await asyncio.sleep(0.05)
                assert current is not None
                assert not current.status.final, current
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
        assert account.lost == [], lost_text(account)
        await it.check_end("fallback")
