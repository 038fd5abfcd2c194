"""The container unit with real containers: Podman and runc, a root file system of busybox, no image and no registry."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from gpu_actions.serving.interfaces import UnitError, UnitState
from gpu_actions.serving.units.base import runs_although_frozen
from gpu_actions.serving.units.container import (
    SCOPE_LABEL,
    Container,
    ContainerUnit,
    judge_container,
)
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.system.cgroups import cgroup_of, cgroup_pids, is_frozen_by_cgroup
from gpu_actions.system.files import write_json
from gpu_actions.system.proc import namespace_pid
from gpu_actions.triage.judge import judge
from tests.gpu_actions.serving.units.test_container_facts import shown
from tests.ports import free_port

BUSYBOX = shutil.which("busybox")
needs_podman = pytest.mark.skipif(
    not (shutil.which("podman") and shutil.which("runc") and BUSYBOX and os.geteuid() == 0),
    reason="needs root, podman, runc and busybox-static (deploy/packages.sh podman runc busybox)",
)
ENGINE = "trap 'exit 0' TERM; echo the engine is up; sleep 600 & sleep 600 & wait"
STUBBORN = "trap '' TERM; while true; do sleep 1; done"

MakeContainer = Callable[..., Container]


@pytest.fixture
def make_container(tmp_path: Path) -> Iterator[MakeContainer]:
    """Build units around a container; it is removed after the test."""
    rootfs = tmp_path / "rootfs"
    for folder in ("bin", "proc", "dev", "sys", "tmp"):
        (rootfs / folder).mkdir(parents=True)
    assert BUSYBOX is not None
    shutil.copy(BUSYBOX, rootfs / "bin" / "busybox")
    for name in ("sh", "sleep", "env"):
        (rootfs / "bin" / name).symlink_to("busybox")
    short = Path(tempfile.mkdtemp(prefix="gpo-"))  # Podman wants a short path here
    options = (
        "--runtime", "runc", "--root", f"{tmp_path}/storage", "--runroot", f"{short}/run",
        "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs",
    )  # fmt: skip

    def make(script: str = ENGINE, *, create: bool = True, more: tuple[str, ...] = ()) -> Container:
        arguments = (
            "--network", "host", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", *more,
            "--rootfs", str(rootfs), "/bin/sh", "-c", script,
        )  # fmt: skip
        config = ContainerUnit(
            container="gpo-test",
            program="podman",
            options=options,
            create=arguments if create else (),
            stop_grace_s=20,
        )
        return Container("tp", config, state_dir=tmp_path / "units")

    yield make
    subprocess.run(
        ["podman", *options, "rm", "-f", "-t", "0", "gpo-test"], capture_output=True, timeout=60, check=False
    )
    shutil.rmtree(short, ignore_errors=True)


@needs_podman
async def test_a_container_starts_is_seen_from_outside_and_stops_gracefully(
    make_container: MakeContainer,
) -> None:
    unit = make_container()
    assert (await unit.state()).active is False
    await unit.start()
    await unit.start()  # a second start finds it running
    async with asyncio.timeout(20):
        while len((state := await unit.state()).pids) < 3:
            await asyncio.sleep(0.05)
    assert state.active and state.main_pid is not None and state.main_pid in state.pids
    assert namespace_pid(state.main_pid) == 1, (
        "it has its own pid namespace, and is seen with the pid of this machine"
    )
    group = cgroup_of(state.main_pid)
    assert group is not None and set(cgroup_pids(group) or ()) == set(state.pids)
    assert state.started_at_s is not None and abs(state.started_at_s - time.time()) < 60
    assert "the engine is up" in await unit.log_tail()
    report = await unit.stop()
    assert report.was_active and not report.killed
    assert set(report.pids) == set(state.pids)
    assert not any(psutil.pid_exists(pid) for pid in state.pids)
    assert (await unit.stop()).was_active is False


@needs_podman
async def test_a_container_that_ignores_sigterm_is_killed_after_the_grace(
    make_container: MakeContainer,
) -> None:
    unit = make_container(STUBBORN)
    await unit.start()
    report = await unit.stop(grace_s=1)
    assert report.killed and (await unit.state()).active is False


@needs_podman
async def test_a_paused_container_is_stopped_and_started_again(make_container: MakeContainer) -> None:
    unit = make_container()
    await unit.start()
    await unit._expect("pause", "gpo-test")
    state = await unit.state()
    assert state.active and state.paused and state.resume.endswith("unpause gpo-test")
    assert state.main_pid is not None and is_frozen_by_cgroup(state.main_pid)
    target = TriageTarget(pids=(state.main_pid,), members=state.pids)
    snapshot = await collect(target, window_s=0.1, only=frozenset({"ranks"}))
    assert snapshot.ranks is not None and {row.pid for row in snapshot.ranks.processes} == set(state.pids)
    for row in snapshot.ranks.processes:
        assert row.paused and row.container.startswith("container ") and row.container_pid is not None
    snapshot = await collect(target, window_s=0.1, only=frozenset({"ranks", "engine", "completion"}))
    assert judge(snapshot).cause == "engine_paused"
    await unit.start()
    assert not (await unit.state()).paused
    facts = await unit.inspect()
    assert facts is not None and not facts.paused
    await unit._expect("pause", "gpo-test")
    assert (await unit.stop()).was_active


@needs_podman
async def test_a_frozen_container_is_not_started_until_it_is_unfrozen(make_container: MakeContainer) -> None:
    unit = make_container()
    await unit.start()
    await unit.freeze("fb-7k2m falls back")
    assert (await unit.state()).active, "a freeze does not stop it"
    await unit.stop()
    with pytest.raises(UnitError, match=r"frozen \(fb-7k2m falls back"):
        await unit.start()
    await unit.unfreeze()
    await unit.start()
    assert (await unit.state()).active


@needs_podman
async def test_a_restart_policy_that_cannot_be_taken_away_is_said_by_freeze_and_doctor(
    make_container: MakeContainer,
) -> None:
    unit = make_container(more=("--restart=always",))
    await unit.start()
    facts = await unit.inspect()
    assert facts is not None and facts.restart_policy == "always"
    (_, warned, *_) = judge_container("h.tp", unit.config, facts)
    assert warned.status == "warning" and "restart policy" in warned.detail
    version = (await unit._run("--version")).stdout.split()[-1]
    if tuple(int(part) for part in version.split(".")[:2]) < (5, 1):  # later versions can change it
        with pytest.raises(UnitError, match="keeps its restart policy 'always'"):
            await unit.freeze("a reason")
    with pytest.raises(UnitError, match="frozen"):
        await unit.stop()
        await unit.start()


@needs_podman
async def test_a_start_by_somebody_else_is_not_prevented_by_a_freeze_but_seen(
    make_container: MakeContainer,
) -> None:
    unit = make_container()
    await unit.start()
    await unit.freeze("fb-7k2m falls back")
    await unit.stop()
    url = f"http://127.0.0.1:{free_port()}"
    assert await runs_although_frozen(await unit.state(), url) == ""
    await unit._expect("start", "gpo-test")
    assert (await runs_although_frozen(await unit.state(), url)).startswith("process ")


@needs_podman
async def test_the_lines_of_both_streams_stay_in_order_and_the_end_is_kept(
    make_container: MakeContainer,
) -> None:
    unit = make_container("for i in 1 2 3 4; do echo out $i; echo err $i >&2; sleep 0.05; done; sleep 600")
    await unit.start()
    lines = [f"{stream} {number}" for number in range(1, 5) for stream in ("out", "err")]
    async with asyncio.timeout(20):
        while (await unit.log_tail()).split("\n")[:-1] != lines:
            await asyncio.sleep(0.05)
    assert await unit.log_tail(12) == "out 4\nerr 4\n"


@pytest.mark.heavy
@needs_podman
async def test_an_unfreeze_after_the_container_was_removed_lifts_the_freeze(
    make_container: MakeContainer,
) -> None:
    unit = make_container()
    await unit.freeze("fb-7k2m falls back")
    write_json(unit.folder / "restart-policy.json", {"policy": "always"})  # it was there when it was frozen
    await unit.unfreeze()
    assert not (await unit.state()).frozen
    assert await unit.log_tail() == "", "a container that does not exist has no log"
    await unit.start()
    assert (await unit.state()).active


@pytest.mark.heavy
@needs_podman
async def test_a_policy_that_cannot_be_given_back_is_said_once_and_does_not_hold_up_a_restore(
    make_container: MakeContainer,
) -> None:
    unit = make_container()
    await unit.start()
    await unit.freeze("fb-7k2m falls back")
    write_json(unit.folder / "restart-policy.json", {"policy": "no-such-policy"})
    with pytest.raises(
        UnitError, match=r"starts are allowed again, but .* update --restart=no-such-policy gpo-test"
    ):
        await unit.unfreeze()
    assert not (await unit.state()).frozen
    await unit.unfreeze()


@needs_podman
async def test_the_exit_code_of_a_container_that_ended_is_kept(make_container: MakeContainer) -> None:
    unit = make_container("sleep 0.3; exit 3")
    assert (await unit.state()).exit_code is None
    await unit.start()
    async with asyncio.timeout(20):
        while (state := await unit.state()).active:
            assert state.exit_code is None
            await asyncio.sleep(0.05)
    assert (state.exit_code, state.oom_killed) == (3, False)


FAKE = """#!/bin/sh
echo "$@" >> {folder}/calls
[ "$1" = inspect ] && cat {folder}/inspect.json
exit 0
"""


async def test_docker_is_told_the_whole_restart_policy_and_a_grace_that_is_not_cut_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's daemon does not run here, so a program in its place keeps what it is asked."""
    program = tmp_path / "docker"
    program.write_text(FAKE.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    answer = shown(host={"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 5}}, state={"Pid": 0})
    (tmp_path / "inspect.json").write_text(json.dumps([answer]))
    unit = Container("tp", ContainerUnit(container="vllm"), state_dir=tmp_path / "units")
    await unit.freeze("a reason")
    await unit.unfreeze()
    with pytest.raises(UnitError, match="runs again after its stop"):  # this one never changes its answer
        await unit.stop(grace_s=0.5)
    calls = [line for line in (tmp_path / "calls").read_text().splitlines() if "inspect" not in line]
    assert calls == ["update --restart=no vllm", "update --restart=on-failure:5 vllm", "stop --time 1 vllm"]


@pytest.mark.heavy
@needs_podman
async def test_a_scope_creates_the_container_anew_with_the_variables_and_back(
    make_container: MakeContainer,
) -> None:
    unit = make_container("env; trap 'exit 0' TERM; sleep 600 & wait")
    await unit.start()
    before = await unit.inspect()
    await unit.stop()
    await unit.set_scope({"NCCL_DEBUG": "INFO"}, unset=("CUDA_VISIBLE_DEVICES",))
    assert await unit.scope() == {"NCCL_DEBUG": "INFO"}
    await unit.start()
    async with asyncio.timeout(20):
        while "NCCL_DEBUG=INFO" not in await unit.log_tail():
            await asyncio.sleep(0.05)
    assert "CUDA_VISIBLE_DEVICES=\n" in await unit.log_tail()
    changed = await unit.inspect()
    assert before is not None and changed is not None
    assert before.labels[SCOPE_LABEL] != changed.labels[SCOPE_LABEL]
    await unit.stop()
    await unit.set_scope({})
    await unit.start()
    assert "NCCL_DEBUG" not in await unit.log_tail()


@needs_podman
async def test_what_cannot_work_is_said_by_name(make_container: MakeContainer) -> None:
    unit = make_container(create=False)
    with pytest.raises(UnitError, match="there is no container gpo-test"):
        await unit.start()
    with pytest.raises(UnitError, match=r"set unit\.create"):
        await unit.set_scope({"A": "1"})
    (check,) = await unit.config.setup_checks("h.tp", group_stop_hazard="")
    assert (check.status, "no container gpo-test" in check.detail) == ("failed", True)
    ending = make_container("echo out of luck; exit 3")
    with pytest.raises(UnitError, match="exit code 3; its log ends: out of luck"):
        await ending.start()


@needs_podman
async def test_a_killed_container_is_inactive_and_can_be_started(make_container: MakeContainer) -> None:
    unit = make_container()
    await unit.start()
    state = await unit.state()
    assert state.main_pid is not None
    os.kill(state.main_pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while (await unit.state()).active:
            await asyncio.sleep(0.05)
    await unit.start()
    assert (await unit.state()).active


async def test_what_serves_on_a_published_port_without_a_listener_here_is_seen_although_the_tier_is_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A published port may be forwarded by the kernel alone, so that no process of this machine listens on it."""
    monkeypatch.setattr("gpu_actions.serving.units.base.listener_of", lambda _port: None)
    frozen = UnitState(active=False, frozen=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert await runs_although_frozen(frozen, url) == f"something accepts connections at {url}"
    assert await runs_although_frozen(frozen, url) == ""
