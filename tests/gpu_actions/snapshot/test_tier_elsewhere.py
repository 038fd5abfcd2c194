"""A tier is what serves, not what is a child: workers in other trees and pid namespaces, a tier without a known process."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gpu_actions.config.host import EngineConfig, HostConfig, TierConfig
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.host import Host, build_host
from gpu_actions.serving.interfaces import UnitState
from gpu_actions.serving.routers.haproxy import HaproxyConfig
from gpu_actions.serving.units.commands import CommandsUnit
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.collector import CollectorFailed, CollectorSkipped, Source
from gpu_actions.snapshot.collectors.nvml import GpuProcess
from gpu_actions.snapshot.collectors.ranks import RanksReading, collect_ranks
from gpu_actions.snapshot.collectors.stacks import collect_stacks, processes_to_dump
from gpu_actions.snapshot.target import TriageTarget, target_of_host
from gpu_actions.system.proc import process_table, read_command
from gpu_actions.triage.judge import judge
from gpu_actions.triage.suspicions import is_frozen
from tests.gpu_actions.fakes import FakeEngine
from tests.gpu_actions.triage import builders as make
from tests.gpu_actions.triage.cases_serving import FLAT, HUNG
from tests.ports import free_port

VLLM_WITH_TWO = Path(__file__).parents[2] / "data" / "engines" / "vllm-dp.json"


def source_of(target: TriageTarget, *, window_s: float) -> Source:
    return Source(
        target=target, limits=TriageThresholds(), window_s=window_s, readings={}, is_stuck=lambda: False
    )


def judged(reading: RanksReading, *, ranks: int) -> dict[str, str]:
    """Return the findings, id and summary, of a tier that is stuck and has these processes."""
    snapshot = make.healthy(engine=FLAT, completion=HUNG, ranks=reading, ras=None, expected={"ranks": ranks})
    return {finding.id: finding.summary for finding in judge(snapshot).findings}


@contextlib.contextmanager
def titled(
    *titles: str, namespace: bool = False, program: str = "sleep 300", env: dict[str, str] | None = None
) -> Iterator[list[int]]:
    """Run processes with these titles outside our trees, each in its own pid namespace if asked. Yield their pids."""
    with one_at_a_time():
        yield from _titled(*titles, namespace=namespace, program=program, env=env)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold a lock of the machine: titles are looked for among all of its processes, those of tests beside this one too."""
    with (Path(tempfile.gettempdir()) / f"gpu-oncall-titles-{os.getuid()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _titled(*titles: str, namespace: bool, program: str, env: dict[str, str] | None) -> Iterator[list[int]]:
    started, pids = [], []
    for title in titles:
        script = f"exec -a '{title}' {program}"
        unshare = ["unshare", "--pid", "--fork", "--kill-child"] if namespace else []
        started.append(subprocess.Popen([*unshare, "bash", "-c", script], start_new_session=True, env=env))
    try:
        deadline = time.monotonic() + 20
        while len(pids) < len(titles):
            assert time.monotonic() < deadline, "the processes did not start"
            time.sleep(0.02)
            found = {read_command(pid)[0]: pid for pid in process_table() if read_command(pid)}
            pids = [found[title] for title in titles if title in found]
        yield pids
    finally:
        for process in started:
            process.kill()
            process.wait()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def spawn(script: str, port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", script, str(port)], start_new_session=True)


def launcher() -> subprocess.Popen[bytes]:
    """Start a main process without children, as the front end of an engine whose workers run elsewhere."""
    return subprocess.Popen(["sleep", "300"], start_new_session=True)


def make_host(tmp_path: Path, port: int) -> Host:
    """Build a host whose tiers are started by commands, so that their drivers know no process."""
    unit = CommandsUnit(start=("true",), stop=("true",), is_active=("true",))
    tier = TierConfig(engine=EngineConfig(url=f"http://127.0.0.1:{port}", model="m"), unit=unit, server="tp")
    config = HostConfig(
        name="h",
        router=HaproxyConfig(),
        tiers={"tp": tier, "fallback": tier.model_copy(update={"server": "fallback"})},
    )
    return build_host(config, state_dir=tmp_path)


@pytest.mark.parametrize("namespace", [False, True])
async def test_workers_outside_the_unit_are_found_by_their_titles(namespace: bool) -> None:
    if namespace and os.geteuid() != 0:
        pytest.skip("a pid namespace needs root")
    front = launcher()
    titles = ("VLLM::Worker_TP0", "VLLM::Worker_TP1")
    try:
        with titled(*titles, namespace=namespace) as pids:
            reading = await collect_ranks(source_of(TriageTarget(pids=(front.pid,), ranks=2), window_s=0.05))
            workers = {process.rank: process for process in reading.processes if process.rank is not None}
            assert {rank: workers[rank].pid for rank in workers} == dict(enumerate(pids))
            assert {process.found_by for process in workers.values()} == {"title"}
            assert all((process.container_pid == 1) is namespace for process in workers.values())
            os.kill(pids[1], signal.SIGSTOP)
            async with asyncio.timeout(20):
                while True:
                    again = await collect_ranks(
                        source_of(TriageTarget(pids=(front.pid,), ranks=2), window_s=0.05)
                    )
                    if [p.rank for p in again.processes if is_frozen(p)] == [1]:
                        break
    finally:
        front.kill()
        front.wait()


async def test_workers_of_which_not_all_are_there_are_not_taken_for_the_tier_and_nobody_is_called_dead() -> (
    None
):
    front = launcher()
    try:
        with titled("VLLM::Worker_TP0"):
            reading = await collect_ranks(source_of(TriageTarget(pids=(front.pid,), ranks=2), window_s=0.05))
            assert [process.rank for process in reading.processes] == [None]
        findings = judged(reading, ranks=2)
        assert "collective.ranks_unseen" in findings
        assert not findings.keys() & {"collective.hang", "collective.rank_dead"}
    finally:
        front.kill()
        front.wait()


async def test_a_tier_split_over_two_trees_has_all_its_ranks_and_a_rank_elsewhere_is_not_called_dead() -> (
    None
):
    with titled("VLLM::Worker_TP0", "VLLM::Worker_TP1") as (first, second):
        target = TriageTarget(pids=(first,), ranks=2)
        whole = await collect_ranks(source_of(target, window_s=0.05))
        assert [(row.rank, row.pid, row.found_by) for row in whole.processes] == [
            (0, first, "unit"),
            (1, second, "title"),
        ]
        partly = await collect_ranks(source_of(target.model_copy(update={"ranks": 3}), window_s=0.05))
        assert [row.pid for row in partly.processes] == [first], "it may be another tier's"
        assert partly.unclaimed == 1
    findings = judged(partly, ranks=3)
    assert "2 of the 3 ranks were not found; 1 process elsewhere" in findings["collective.ranks_unseen"]
    assert not findings.keys() & {"collective.hang", "collective.rank_dead"}
    alone = partly.model_copy(update={"unclaimed": 0})
    assert "rank 1" in judged(alone, ranks=3)["collective.hang"], "without another process they are gone"


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace needs root")
async def test_stacks_are_read_of_ranks_in_another_pid_namespace_that_only_their_titles_tell() -> None:
    program = f"{os.path.realpath(sys.executable)} -c 'import time; stay = lambda: time.sleep(300); stay()'"
    front = launcher()
    try:
        with titled(
            "VLLM::Worker_TP0",
            "VLLM::Worker_TP1",
            namespace=True,
            program=program,
            env={**os.environ, "PYTHONHOME": sys.base_prefix},
        ):
            source = source_of(TriageTarget(pids=(front.pid,), ranks=2), window_s=0.05)
            ranks = await collect_ranks(source)
            stuck = replace(source, readings={"ranks": ranks}, is_stuck=lambda: True)
            async with asyncio.timeout(20):
                while True:  # the interpreters may still start
                    with contextlib.suppress(CollectorFailed):
                        stacks = (await collect_stacks(stuck)).stacks
                        if all("<lambda>" in "".join(row.frames) for row in stacks):
                            break
    finally:
        front.kill()
        front.wait()
    assert sorted((row.rank, row.outcome) for row in stacks) == [(0, "ok"), (1, "ok")]


def page_of(lines: list[str], replicas: int) -> list[str]:
    """Return the page of an engine with so many replicas: the second one of the record is the last, the others are like the
    first."""
    found = []
    for line in lines:
        if 'engine="0"' in line:
            found += [line.replace('engine="0"', f'engine="{number}"') for number in range(replicas - 1)]
        else:
            found.append(line.replace('engine="1"', f'engine="{replicas - 1}"'))
    return found


@pytest.mark.parametrize("replicas", [2, 8])
async def test_the_hung_replica_is_named_from_the_page_of_the_engine_and_its_process_with_it(
    replicas: int,
) -> None:
    record = json.loads(VLLM_WITH_TWO.read_text(encoding="utf-8"))
    busy, stuck = (page_of(record["metrics"][name], replicas) for name in ("busy", "hung"))
    pages = [busy] + [stuck] * 9
    titles = [f"VLLM::EngineCore_DP{number}" for number in range(replicas)]
    assert set(record["titles"]) <= set(titles)
    last = replicas - 1

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(text="\n".join(pages.pop(0)) + "\n")

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    server = TestServer(application)
    await server.start_server()
    front = launcher()
    try:
        with titled(*titles) as (*_, hung):
            os.kill(hung, signal.SIGSTOP)
            target = TriageTarget(pids=(front.pid,), ranks=replicas, engine_url=str(server.make_url("")))
            snapshot = await collect(target, window_s=0.5, only=frozenset({"engine", "ranks"}))
    finally:
        front.kill()
        front.wait()
        await server.close()
    verdict = judge(snapshot)
    assert verdict.verdict == "watch", "the other replicas serve better than one GPU"
    found = next(row for row in verdict.findings if row.id == "serving.replica_flat")
    assert found.summary.startswith(f"replica {last} of {replicas} generates no token: requests wait")
    assert found.subject == f"replica {last}" and f"; rank {last} DP{last}" in found.summary
    assert found.action.endswith(
        f"restart that replica: the others still serve. kill -CONT {hung} lets it go on."
    )
    assert f"rank {last} DP{last} (pid {hung}) is stopped (T)" in verdict.summary
    alone = judge(snapshot.model_copy(update={"ranks": None}))
    assert (alone.verdict, alone.cause) == ("watch", "engine_stalled")


async def test_ranks_that_only_their_gpus_tell_are_found_with_their_gpu_and_strangers_are_not_taken() -> None:
    front = launcher()
    try:
        with titled("python3 worker a", "python3 worker b", "bash stranger") as (one, two, stranger):
            target = TriageTarget(pids=(front.pid,), ranks=2)

            async def read(**pids: int) -> RanksReading:
                gpus = tuple(
                    make.gpu(int(name[1:]), processes=(GpuProcess(pid=pid),)) for name, pid in pids.items()
                )
                over = asyncio.Event()
                over.set()
                source = source_of(target, window_s=0.05)
                readings = {"nvml": make.nvml(gpus=gpus)}
                return await collect_ranks(replace(source, finished={"nvml": over}, readings=readings))

            found = await read(g4=one, g5=two, g6=stranger)
            assert [(row.pid, row.gpu, row.found_by) for row in found.processes] == [
                (front.pid, None, "unit"),
                (one, 4, "gpu"),
                (two, 5, "gpu"),
            ]
            assert not judged(found, ranks=2).keys() & {"collective.rank_dead", "collective.ranks_unseen"}
            assert [row.pid for row in processes_to_dump(found)] == [one, two], "their stacks are taken"
            os.kill(two, signal.SIGSTOP)
            assert [row.pid for row in (await read(g4=one, g5=two)).processes if is_frozen(row)] == [two]
            target = target.model_copy(update={"other_pids": (two,)})
            other = await read(g4=one, g5=two)
            assert ([row.pid for row in other.processes], other.unclaimed) == ([front.pid], 1)
    finally:
        front.kill()
        front.wait()


async def test_a_monitors_check_reads_nvml_for_missing_ranks_only_once_requests_are_stuck(
    start_engine: Callable[..., Awaitable[FakeEngine]], fake_nvml: Callable[..., Path]
) -> None:
    front = launcher()
    only = frozenset({"engine", "ranks"})
    try:
        with titled("python3 worker a", "python3 worker b") as (one, two):
            fake_nvml("gpus=2", f"gpu.0.process={one}", f"gpu.1.process={two}", "gpu.*.utilisation=0")
            os.kill(two, signal.SIGSTOP)
            for tokens_per_s, found in ((300.0, {}), (0.0, {one: 0, two: 1})):
                engine = await start_engine(running=1, tokens_per_s=tokens_per_s)
                target = TriageTarget(pids=(front.pid,), ranks=2, expect_gpus=2, engine_url=engine.url)
                snapshot = await collect(target, window_s=0.5, only=only)
                assert snapshot.ranks is not None
                assert {
                    row.pid: row.gpu for row in snapshot.ranks.processes if row.found_by == "gpu"
                } == found
            verdict = judge(snapshot)
            assert (verdict.verdict, verdict.cause) == ("fall_back", "nccl_hang")
            assert f"kill -CONT {two}" in verdict.action
    finally:
        front.kill()
        front.wait()


async def test_a_tier_without_a_known_process_is_found_as_the_listener_on_its_port(tmp_path: Path) -> None:
    script = (
        "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(300)"
    )
    port = free_port()
    engine = spawn(script, port)
    host = make_host(tmp_path, port)
    try:
        async with asyncio.timeout(20):
            while (target := await target_of_host(host, tier="tp")).listener is None:
                await asyncio.sleep(0.05)
        reading = await collect_ranks(source_of(target, window_s=0.05))
        assert [(process.pid, process.found_by) for process in reading.processes] == [
            (engine.pid, "listener")
        ]
    finally:
        engine.kill()
        engine.wait()
    with pytest.raises(CollectorSkipped):
        await collect_ranks(source_of(await target_of_host(host, tier="tp"), window_s=0.05))


async def test_a_driver_that_fails_in_any_way_costs_its_unit_and_not_the_triage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_host(tmp_path, free_port())

    async def state() -> UnitState:
        raise FileNotFoundError(2, "No such file or directory", "/sys/fs/cgroup/docker/gone")

    monkeypatch.setattr(host.tiers["tp"].unit, "state", state)
    target = await target_of_host(host, tier="tp")
    assert "/sys/fs/cgroup/docker/gone" in target.unit_error and target.unit_active is None
