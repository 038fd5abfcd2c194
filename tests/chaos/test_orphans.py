"""A killed bot leaves no child or grandchild behind, and does not touch processes that it had released."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.bot.runs.test_runs import family
from tests.chaos.test_kill_nine import Bots, kill

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bots(tmp_path: Path) -> Iterator[Bots]:
    made = Bots(tmp_path / "state")
    yield made
    made.close()


def within(seconds: float, what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.chaos(
    fault="kill -9 of the bot",
    at="a step with a child and a grandchild",
    after="both are gone within 5 s, outside systemd too",
)
def test_a_killed_bot_leaves_no_children_or_grandchildren(bots: Bots) -> None:
    first = bots.launch("--start", "toy?script=tree:a")
    bots.until(lambda: len(family(bots.state_dir)) == 2)
    left = family(bots.state_dir)
    kill(first)
    try:
        assert within(5, lambda: family(bots.state_dir) == [])
    finally:
        for pid in left:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


HOLDS_AND_LETS_GO = """
import subprocess, sys, time
from gpu_actions.system.leash import LEASH
def sleeper():
    return subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, start_new_session=True)
kept, let_go, replaced = sleeper(), sleeper(), sleeper()
with LEASH.holding(let_go.pid):
    pass
with LEASH.holding(kept.pid):
    LEASH._keeper.kill()
    LEASH._keeper.wait()
    with LEASH.holding(replaced.pid):
        print(kept.pid, replaced.pid, let_go.pid, LEASH._keeper.pid, flush=True)
        time.sleep(600)
"""


def test_only_held_processes_are_killed_even_if_the_keeper_was_replaced() -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS_AND_LETS_GO], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    kept, replaced, let_go, keeper = map(int, holder.stdout.readline().split())
    try:
        assert psutil.Process(keeper).memory_info().rss < 4e6
        holder.kill()
        holder.wait()
        holder.stdout.close()
        assert within(5, lambda: not any(map(lives, (kept, replaced, keeper))))
        assert lives(let_go)
    finally:
        for pid in (kept, replaced, let_go):
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
