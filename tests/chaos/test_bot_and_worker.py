"""The bot and the worker as two processes on one state folder. Either may die."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

import bot.cli.local
from bot.cli.local import run_local
from bot.runs.approvals import Approvals
from bot.runs.runs import Runs
from bot.store.records import NOT_YET, RunStatus, UserError
from tests.bot.runs.test_runs import family
from tests.bot.toys import (
    LEAD,
    ONCALL,
    effects,
    effects_dir,
    ended,
    launched,
    start,
    store_of,
    toy_actions,
    toy_settings,
)
from tests.chaos.test_kill_nine import Bots, fact


@pytest.fixture
async def bot_process(tmp_path: Path) -> AsyncIterator[Runs]:
    async with launched(tmp_path / "state", role="bot") as runs:
        yield runs


@pytest.fixture
def bots(tmp_path: Path) -> Iterator[Bots]:
    made = Bots(tmp_path / "state")
    yield made
    made.close()


async def worker(bots: Bots) -> "psutil.Process":
    process = bots.spawn("--role", "worker", "--watch-s", "1")
    assert await asyncio.to_thread(fact, process) == {"launched": True}
    return psutil.Process(process.pid)


async def test_the_worker_carries_what_the_bot_was_asked_for_and_the_bot_sees_each_change(
    bot_process: Runs, bots: Bots
) -> None:
    await worker(bots)
    stream = bot_process.changes()
    run = await start(bot_process, script="count:a count:b")
    done = await ended(bot_process, run.id)
    assert done.status is RunStatus.SUCCEEDED
    assert (done.started_at or 0) - done.created_at < 2
    assert effects(bots.state_dir, "a") == [""]
    assert await anext(stream) == run.id


async def test_without_a_worker_nothing_starts_and_the_answer_says_what_to_do(
    bot_process: Runs,
) -> None:
    with pytest.raises(UserError, match="The worker of this host is not running"):
        await start(bot_process, script="count:a")
    assert bot_process.list() == []


async def test_a_stop_reaches_the_workers_process_tree(bot_process: Runs, bots: Bots) -> None:
    await worker(bots)
    run = await start(bot_process, script="tree:t", settle="count:s")
    while len(family(bots.state_dir)) < 2:
        await asyncio.sleep(0.02)
    await bot_process.stop(run.id, by=ONCALL)
    done = await ended(bot_process, run.id)
    assert done.status is RunStatus.CANCELLED
    assert effects(bots.state_dir, "s") == [""]
    assert family(bots.state_dir) == []


async def test_an_approval_given_at_the_bot_lets_the_worker_go_on(bot_process: Runs, bots: Bots) -> None:
    await worker(bots)
    run = await start(bot_process, "gated", script="count:a")
    waiting = await bot_process.wait(run.id, until=lambda run: run.status is RunStatus.WAITING)
    approvals = Approvals(store_of(bots.state_dir))
    answer = await approvals.decide(
        run_id=run.id, user=LEAD, decision="approve", plan_hash=waiting.plan_hash, reason=""
    )
    assert answer.accepted
    assert (await ended(bot_process, run.id)).status is RunStatus.SUCCEEDED


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="during a step, while the bot lives",
    after="the run continues; meanwhile the bot answers that no worker is running",
)
async def test_a_killed_worker_continues_its_run_and_the_bot_is_not_affected(
    bot_process: Runs, bots: Bots
) -> None:
    first = await worker(bots)
    run = await start(bot_process, script="count:a hold:b count:c")
    while not effects(bots.state_dir, "b"):
        await asyncio.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(10)
    with pytest.raises(UserError, match="worker"):
        await start(bot_process, "look", script="count:d")
    await worker(bots)
    while len(effects(bots.state_dir, "b")) < 2:
        await asyncio.sleep(0.02)
    (effects_dir(bots.state_dir) / "release").touch()
    done = await ended(bot_process, run.id)
    assert done.status is RunStatus.SUCCEEDED
    assert [(step.step_id, step.executions) for step in done.steps] == [("a", 1), ("b", 2), ("c", 1)]


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="before it reads a request",
    after="the run starts at the next start of the worker",
)
async def test_a_run_requested_while_the_worker_died_starts_at_its_next_start(
    bot_process: Runs, bots: Bots
) -> None:
    """The worker is frozen, so it holds its lock and reads nothing; then it is killed before it has read the request."""
    first = await worker(bots)
    first.suspend()
    run = await start(bot_process, script="count:a")
    first.kill()
    first.wait(10)
    await worker(bots)
    assert (await ended(bot_process, run.id)).status is RunStatus.SUCCEEDED
    assert effects(bots.state_dir, "a") == [""]


async def test_a_shell_hands_its_run_to_the_running_worker_and_prints_its_steps(
    bots: Bots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await worker(bots)
    monkeypatch.setattr(bot.cli.local, "actions", toy_actions)
    settings = toy_settings(bots.state_dir)
    asked = {"verb": "start", "host": None, "local": True, "as_json": False}
    code = await run_local(settings, action="toy", options=["script=count:a count:b"], **asked)  # type: ignore[arg-type]
    said = capsys.readouterr()
    assert code == 0, said
    assert "the running worker carries it" in said.out and "done  b: counted b" in said.out
    assert effects(bots.state_dir, "a") == effects(bots.state_dir, "b") == [""]
    (run,) = store_of(bots.state_dir).list(action="toy")
    assert run.place == NOT_YET and run.requester.id == "shell"
    assert await run_local(settings, action="gated", options=[], **asked) == 2  # type: ignore[arg-type]
    assert "needs approvals" in capsys.readouterr().err
