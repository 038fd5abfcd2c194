"""kill -9 of the bot at exact points: the run continues, and every effect happens as often as it should."""

import asyncio
import base64
import json
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bot.runs.approvals import Approvals
from bot.store.records import RunRecord, RunStatus
from bot.store.store import Store
from tests.bot.toys import LEAD, effects, effects_dir, store_of

ROOT = Path(__file__).parents[2]


class Bots:
    """Bot processes on one state folder."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.store: Store = store_of(state_dir)
        self._processes: list[subprocess.Popen[str]] = []

    def spawn(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.bot_process", str(self.state_dir), *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def launch(self, *words: str) -> subprocess.Popen[str]:
        process = self.spawn(*words)
        assert fact(process) == {"launched": True}
        return process

    def run_until(self, what: Callable[[RunRecord], bool], timeout_s: float = 30) -> RunRecord:
        """Poll the newest run until a condition is true of it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            runs = self.store.list(limit=1)
            if runs and what(runs[0]):
                return runs[0]
            time.sleep(0.02)
        raise AssertionError(f"not within {timeout_s} s; the run is {runs}")

    def until(self, what: Callable[[], object], timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < deadline, "not in time"
            time.sleep(0.01)

    def ended(self) -> RunRecord:
        return self.run_until(lambda run: run.status.final)

    def release(self) -> None:
        (effects_dir(self.state_dir) / "release").touch()

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self.store.close()


def fact(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the next line that a bot prints, parsed."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait()
        assert process.stderr is not None
        raise AssertionError(f"the bot ended with {process.returncode}: {process.stderr.read()[-2000:]}")
    told: dict[str, Any] = json.loads(line)
    return told


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


@pytest.fixture
def bots(tmp_path: Path) -> Iterator[Bots]:
    made = Bots(tmp_path / "state")
    yield made
    made.close()


@pytest.mark.chaos(
    fault="kill -9 of the bot",
    at="between two steps",
    after="continues with the next step; nothing is repeated",
)
def test_a_kill_between_two_steps_repeats_neither(bots: Bots) -> None:
    """The kill comes between the step's own row and the workflow engine's record: the narrowest window."""
    first = bots.spawn("--start", "toy?script=count:a count:b count:c", "--die", "after-row:b")
    assert first.wait(30) == -signal.SIGKILL
    assert bots.store.list()[0].status is RunStatus.RUNNING
    bots.launch()
    run = bots.ended()
    assert run.status is RunStatus.SUCCEEDED
    assert {name: len(effects(bots.state_dir, name)) for name in "abc"} == {"a": 1, "b": 1, "c": 1}
    assert [(step.step_id, step.executions) for step in run.steps] == [("a", 1), ("b", 1), ("c", 1)]


@pytest.mark.chaos(
    fault="kill -9 of the bot",
    at="during a step",
    after="repeats only that step; same run, same message",
)
def test_a_kill_during_a_step_repeats_only_that_step(bots: Bots) -> None:
    first = bots.launch("--start", "toy?script=count:a hold:b count:c")
    bots.until(lambda: effects(bots.state_dir, "b"))
    before = bots.store.list()[0]
    bots.store.set_message_ts(before.id, "1700.1")
    kill(first)
    bots.launch()
    bots.until(lambda: len(effects(bots.state_dir, "b")) == 2)
    bots.release()
    run = bots.ended()
    assert run.status is RunStatus.SUCCEEDED
    assert (run.id, run.message_ts, run.created_at) == (before.id, "1700.1", before.created_at)
    assert [(step.step_id, step.executions) for step in run.steps] == [("a", 1), ("b", 2), ("c", 1)]
    assert len(effects(bots.state_dir, "b.done")) == 1
    assert len(effects(bots.state_dir, "a")) == len(effects(bots.state_dir, "c")) == 1


@pytest.mark.chaos(
    fault="kill -9 of the bot",
    at="after a step's effect, before its row",
    after="repeats the step, which probes before it acts",
)
def test_a_kill_after_an_effect_and_before_its_row_repeats_the_step(bots: Bots) -> None:
    first = bots.spawn("--start", "toy?script=count:a count:b", "--die", "before-row:a")
    assert first.wait(30) == -signal.SIGKILL
    bots.launch()
    run = bots.ended()
    assert [(step.step_id, step.executions) for step in run.steps] == [("a", 2), ("b", 1)]
    assert len(effects(bots.state_dir, "a")) == 2  # why every step probes before it acts


@pytest.mark.chaos(
    fault="kill -9 of the bot",
    at="while a run waits for approval",
    after="continues to wait, with the same deadline",
)
def test_a_kill_during_the_wait_for_approval_keeps_the_deadline(bots: Bots) -> None:
    first = bots.launch("--start", "gated?script=count:a", "--expires-s", "6")
    waiting = bots.run_until(lambda run: run.status is RunStatus.WAITING)
    kill(first)
    bots.launch("--expires-s", "600")
    back_at = time.time()
    run = bots.ended()
    assert run.status is RunStatus.EXPIRED
    assert run.gate_expires_at == waiting.gate_expires_at
    assert run.ended_at is not None
    assert waiting.gate_expires_at is not None
    # On a busy machine the second bot may only start after the deadline.
    assert waiting.gate_expires_at <= run.ended_at < max(waiting.gate_expires_at, back_at) + 3
    assert effects(bots.state_dir, "a") == []


@pytest.mark.chaos(
    fault="approval while the bot is down", at="the wait for approval", after="counts at the next start"
)
def test_an_approval_while_the_bot_is_down_counts(bots: Bots) -> None:
    first = bots.launch("--start", "gated?script=count:a")
    waiting = bots.run_until(lambda run: run.status is RunStatus.WAITING)
    kill(first)
    answer = asyncio.run(
        Approvals(bots.store).decide(
            run_id=waiting.id, user=LEAD, decision="approve", plan_hash=waiting.plan_hash
        )
    )
    assert answer.accepted
    bots.launch()
    assert bots.ended().status is RunStatus.SUCCEEDED
    assert len(effects(bots.state_dir, "a")) == 1


@pytest.mark.chaos(
    fault="kill -9 of the bot",
    at="between a run's row and its workflow",
    after="the run is started at the next launch",
)
def test_a_run_killed_before_its_workflow_started_is_started_at_the_next_launch(bots: Bots) -> None:
    first = bots.spawn("--start", "toy?script=count:a", "--die", "after-insert")
    assert first.wait(30) == -signal.SIGKILL
    assert bots.store.list()[0].status is RunStatus.PLANNING
    bots.launch()
    assert bots.ended().status is RunStatus.SUCCEEDED
    assert len(effects(bots.state_dir, "a")) == 1


@pytest.mark.chaos(fault="kill -9 of the bot", at="during the cleanup", after="continues the cleanup")
def test_a_kill_during_the_cleanup_after_a_stop_continues_the_cleanup(bots: Bots) -> None:
    first = bots.launch("--start", "toy?script=fail:a count:b&settle=count:y hold:z")
    bots.until(lambda: effects(bots.state_dir, "z"))
    kill(first)
    bots.release()
    bots.launch()
    run = bots.ended()
    assert run.status is RunStatus.FAILED
    assert [(s.step_id, s.executions, s.compensating) for s in run.steps] == [
        ("a", 1, False),
        ("y", 1, True),
        ("z", 2, True),
    ]
    assert effects(bots.state_dir, "b") == []


def test_a_kill_after_a_stop_request_leads_to_the_compensation(bots: Bots) -> None:
    first = bots.launch("--start", "toy?script=count:a hold:b count:c&settle=count:z")
    bots.until(lambda: effects(bots.state_dir, "b"))
    kill(first)
    bots.store.update_run(bots.store.list()[0].id, stop_requested=LEAD.model_dump())
    bots.launch()
    run = bots.ended()
    assert run.status is RunStatus.CANCELLED
    assert run.outcome == "Stopped by lead. counted z"
    assert [(s.step_id, s.status.value) for s in run.steps] == [
        ("a", "done"),
        ("b", "cancelled"),
        ("z", "done"),
    ]
    assert effects(bots.state_dir, "c") == []


def test_a_run_that_was_recovered_hundreds_of_times_is_recovered_again(bots: Bots) -> None:
    """DBOS gives up after 100 recoveries by default, which would end a waiting run in a crash loop."""
    first = bots.launch("--start", "toy?script=hold:a")
    bots.until(lambda: effects(bots.state_dir, "a"))
    kill(first)
    with sqlite3.connect(bots.state_dir / "dbos.sqlite") as database:
        assert database.execute("UPDATE workflow_status SET recovery_attempts = 500").rowcount == 2
    database.close()
    bots.release()
    bots.launch()
    run = bots.ended()
    assert run.status is RunStatus.SUCCEEDED
    assert bots.store.row(run.id).workflow_id == run.id


@pytest.mark.chaos(
    fault="kill -9 of the bot",
    at="after a request that Slack delivers again",
    after="no second run",
)
def test_a_request_delivered_again_after_a_kill_starts_no_second_run(bots: Bots) -> None:
    first = bots.launch("--start", "look?script=count:a", "--key", "envelope-1")
    run_id = fact(first)["run"]
    bots.ended()
    kill(first)
    second = bots.launch("--start", "look?script=count:a", "--key", "envelope-1")
    assert fact(second)["run"] == run_id
    assert len(bots.store.list()) == 1
    assert len(effects(bots.state_dir, "a")) == 1


@pytest.mark.chaos(
    fault="SIGTERM to the bot",
    at="during a step",
    after="ends with exit code 0, the run continues later",
)
def test_sigterm_in_the_middle_of_a_step_leaves_the_run_resumable(bots: Bots) -> None:
    first = bots.launch("--start", "toy?script=count:a hold:b")
    bots.until(lambda: effects(bots.state_dir, "b"))
    first.terminate()
    assert first.wait(20) == 0
    assert bots.store.list()[0].status is RunStatus.RUNNING
    bots.release()
    bots.launch()
    run = bots.ended()
    assert run.status is RunStatus.SUCCEEDED
    assert [(step.step_id, step.executions) for step in run.steps] == [("a", 1), ("b", 2)]


def test_changed_code_finds_its_waiting_runs_again(bots: Bots) -> None:
    """The default version of DBOS is a hash of the workflow sources, which would silently strand this run."""
    first = bots.launch("--start", "toy?script=count:a hold:b")
    bots.until(lambda: effects(bots.state_dir, "b"))
    kill(first)
    bots.release()
    bots.launch("--changed-code")
    run = bots.ended()
    assert run.status is RunStatus.SUCCEEDED
    assert (
        bots.store.row(run.id).workflow_id == run.id
    )  # DBOS recovered it, so the watchdog had nothing to do


def test_the_watchdog_finds_a_run_of_another_engine_version_and_continues_it_from_its_rows(
    bots: Bots,
) -> None:
    first = bots.launch("--start", "toy?script=count:a hold:b", "--engine-version", "old")
    bots.until(lambda: effects(bots.state_dir, "b"))
    kill(first)
    bots.release()
    bots.launch()
    run = bots.ended()
    assert run.status is RunStatus.SUCCEEDED
    assert [(step.step_id, step.executions) for step in run.steps] == [("a", 1), ("b", 2)]
    assert bots.store.row(run.id).workflow_id == f"{run.id}.r2"


@pytest.mark.chaos(
    fault="a second bot on the same state folder", at="its start", after="refused, naming the first"
)
def test_a_second_bot_on_the_same_folder_refuses_to_start_and_names_the_first(bots: Bots) -> None:
    first = bots.launch()
    second = bots.spawn()
    assert second.wait(30) == 2
    assert second.stderr is not None
    message = second.stderr.read()
    assert f"pid {first.pid}" in message
    assert "run the same steps twice" in message
    kill(first)
    bots.launch()  # the kernel released the lock when its holder died


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_a_row_marked_as_pickle_is_refused_and_its_run_continues_from_its_own_rows(
    bots: Bots, tmp_path: Path
) -> None:
    first = bots.launch("--start", "toy?script=count:a hold:b")
    bots.until(lambda: effects(bots.state_dir, "b"))
    kill(first)
    bomb = tmp_path / "exploded"
    payload = base64.b64encode(pickle.dumps({"args": (Bomb(bomb),), "kwargs": {}})).decode()
    with sqlite3.connect(bots.state_dir / "dbos.sqlite") as database:
        marked = database.execute("UPDATE workflow_status SET serialization = 'py_pickle'")
        planted = database.execute("UPDATE workflow_input SET inputs = ?", (payload,))
        assert marked.rowcount == planted.rowcount == 2
    database.close()
    bots.release()
    bots.store.update_run(bots.store.list()[0].id, created_at=time.time() - 60)  # old enough for the watchdog
    bots.launch("--watch-s", "0.3")
    assert bots.ended().status is RunStatus.SUCCEEDED
    assert not bomb.exists()
    assert len(effects(bots.state_dir, "a")) == 1
