"""A tier whose ranks are numbered by a flag or by torchrun, split over containers: each is found, and none is called dead."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from gpu_actions.snapshot.collectors.ranks import RanksReading, collect_ranks
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.system.proc import process_table
from tests.gpu_actions.snapshot.test_tier_elsewhere import judged, launcher, source_of


@contextlib.contextmanager
def numbered(*ranks: int, job: str, torchrun: bool, namespace: bool = False) -> Iterator[list[int]]:
    """Run ranks of a job, each in a pid namespace of its own if asked, numbered by a flag or by torchrun. Yield their pids."""
    inside = ["unshare", "--pid", "--fork", "--kill-child"] if namespace else []
    started = []
    for rank in ranks:
        flags = [] if torchrun else ["--rank", str(rank), "--job", job]
        variables = {"RANK": str(rank), "WORLD_SIZE": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": job}
        argv = [*inside, sys.executable, "-c", "import time; print(flush=True); time.sleep(300)", *flags]
        started.append(
            subprocess.Popen(
                argv,
                start_new_session=True,
                stdout=subprocess.PIPE,
                env=os.environ | (variables if torchrun else {}),
            )
        )
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    try:
        yield [psutil.Process(one.pid).children()[0].pid if namespace else one.pid for one in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace needs root")
@pytest.mark.parametrize("torchrun", [False, True], ids=["by a flag", "by torchrun"])
async def test_numbered_ranks_of_a_tier_that_is_split_over_containers_are_not_called_dead(
    torchrun: bool,
) -> None:
    async def read(root: int, ranks: int) -> RanksReading:
        target = TriageTarget(pids=(root,), ranks=ranks)
        return await collect_ranks(source_of(target, window_s=0.05))

    with numbered(0, job="7001", torchrun=torchrun, namespace=True) as (first,):
        alone = await read(first, 3)
        assert "rank 1 is gone and 1 more" in judged(alone, ranks=3)["collective.hang"]
        with numbered(1, 2, job="7001", torchrun=torchrun, namespace=True) as (second, third):
            whole = await read(first, 3)
            assert [(row.rank, row.pid, row.found_by) for row in whole.processes] == [
                (0, first, "unit"),
                (1, second, "job"),
                (2, third, "job"),
            ]
            assert [row.container_pid for row in whole.processes] == [1, 1, 1]
            assert not judged(whole, ranks=3).keys() & {
                "collective.hang",
                "collective.rank_dead",
                "collective.ranks_unseen",
            }
            os.kill(third, signal.SIGKILL)
            async with asyncio.timeout(20):
                while (row := process_table().get(third)) is not None and not row.zombie:
                    await asyncio.sleep(0.02)
            assert judged(await read(first, 3), ranks=3)["collective.hang"].startswith("rank 2 is gone")
        with numbered(1, job="7002", torchrun=torchrun), numbered(0, 1, 2, job="7001", torchrun=torchrun):
            strangers = await read(first, 3)
            assert [row.pid for row in strangers.processes] == [first], (
                "another job's, and one that looks the same"
            )
    front = launcher()
    try:
        with numbered(0, 1, 2, job="7003", torchrun=torchrun):
            found = await read(front.pid, 3)
            assert [(row.pid, row.rank) for row in found.processes] == [(front.pid, None)], (
                "without a number of its own nothing ties a job of the same size to the tier"
            )
    finally:
        front.kill()
        front.wait()
