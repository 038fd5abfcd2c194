"""The container unit with real containers: Podman and runc, a root file system of busybox, no image and no registry."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpu_actions.serving.interfaces import UnitError
from gpu_actions.serving.units.container import (
    SCOPE_LABEL,
    Container,
    ContainerUnit,
    facts_of,
    judge_container,
)
from gpu_actions.system.cgroups import cgroup_of, cgroup_pids
from gpu_actions.system.proc import namespace_pid

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
    facts = await unit.inspect()
    assert facts is not None and facts.paused and (await unit.state()).active
    await unit.start()
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
    if (await unit._run("--version")).stdout.split()[-1] < "5.1":  # later versions can change it
        with pytest.raises(UnitError, match="keeps its restart policy 'always'"):
            await unit.freeze("a reason")
    with pytest.raises(UnitError, match="frozen"):
        await unit.stop()
        await unit.start()


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


def shown(**changes: Any) -> dict[str, Any]:
    """Return what `docker inspect` 28 prints of a container, as far as it is read."""
    state = {
        "Status": "running", "Running": True, "Paused": False, "Restarting": False, "OOMKilled": False, "Dead": False,
        "Pid": 4711, "ExitCode": 0, "StartedAt": "2026-11-26T03:04:05.123456789Z", "FinishedAt": "0001-01-01T00:00:00Z",
    }  # fmt: skip
    host = {
        "RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0},
        "ShmSize": 67108864,
        "IpcMode": "private",
    }
    return {
        "RestartCount": 4,
        "State": state | changes.get("state", {}),
        "HostConfig": host | changes.get("host", {}),
        "Config": {"Labels": {"a": "b"}},
    }


@pytest.mark.parametrize(
    ("state", "running", "paused", "pid"),
    [
        ({}, True, False, 4711),
        ({"Status": "paused", "Paused": True}, True, True, 4711),
        ({"Status": "restarting", "Restarting": True}, False, False, 4711),
        (
            {"Status": "exited", "Running": False, "Pid": 0, "ExitCode": 137, "OOMKilled": True},
            False,
            False,
            None,
        ),
        (
            {"Status": "created", "Running": False, "Pid": 0, "StartedAt": "0001-01-01T00:00:00Z"},
            False,
            False,
            None,
        ),
    ],
)
def test_the_state_of_a_docker_container(
    state: dict[str, Any], running: bool, paused: bool, pid: int | None
) -> None:
    facts = facts_of(json.loads(json.dumps(shown(state=state))))
    assert (facts.running, facts.paused, facts.pid, facts.restarts) == (running, paused, pid, 4)
    assert facts.restart_policy == "unless-stopped"
    assert facts.started_at_s is None or abs(facts.started_at_s - 1795662245.123) < 0.01


def test_too_little_shared_memory_is_a_warning_unless_it_is_shared_with_the_host() -> None:
    config = ContainerUnit(container="vllm")
    assert [check.name for check in judge_container("h.tp", config, facts_of(shown()))] == [
        "h.tp",
        "h.tp.shm",
    ]
    for host in ({"IpcMode": "host"}, {"ShmSize": 17179869184}):
        assert [check.name for check in judge_container("h.tp", config, facts_of(shown(host=host)))] == [
            "h.tp"
        ]


def test_a_name_cannot_be_an_option() -> None:
    with pytest.raises(ValueError, match="container"):
        ContainerUnit(container="--privileged")
