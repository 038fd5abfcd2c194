"""Control groups: which container, pod or service a process belongs to, and groups that vanish while they are read."""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_actions.system import cgroups
from gpu_actions.system.cgroups import (
    Membership,
    cgroup_of,
    cgroup_pids,
    is_frozen_by_cgroup,
    membership_of,
    read_membership,
)
from gpu_actions.system.proc import read_process

A, B = "0123456789abcdef" * 4, "fedcba9876543210" * 4
UID = "5f2c8a1e-9b3d-4c7e-8f10-0a1b2c3d4e5f"
UNDER = UID.replace("-", "_")
KUBE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDER}.slice"
ROOTLESS = "/user.slice/user-1000.slice/user@1000.service/user.slice"

PATHS = {
    "nothing": ("0::/", Membership()),
    "a kernel thread of v1": ("3:cpuset:/\n1:name=systemd:/", Membership()),
    "a systemd service": ("0::/system.slice/vllm-tp.service", Membership("service", service="vllm-tp.service")),
    "a group that a service made below itself": (
        "0::/system.slice/vllm-tp.service/workers", Membership("service", service="vllm-tp.service"),
    ),
    "a login": (
        "0::/user.slice/user-0.slice/session-3.scope", Membership("service", service="session-3.scope"),
    ),
    "a service, v1": (
        "4:memory:/system.slice/vllm.service\n1:name=systemd:/system.slice/vllm.service\n0::/system.slice/vllm.service",
        Membership("service", service="vllm.service"),
    ),
    "docker, v2, systemd": (f"0::/system.slice/docker-{A}.scope", Membership("docker", A)),
    "docker, v2, cgroupfs": (f"0::/docker/{A}", Membership("docker", A)),
    "docker, v1": (f"5:pids:/docker/{A}\n1:name=systemd:/docker/{A}", Membership("docker", A)),
    "docker, both versions, the daemon's own group in v2": (
        f"9:memory:/docker/{A}\n1:name=systemd:/docker/{A}\n0::/system.slice/containerd.service", Membership("docker", A),
    ),
    "docker, rootless": (f"0::{ROOTLESS}/docker-{A}.scope", Membership("docker", A)),
    "docker with a cgroup parent": (f"0::/gpu.slice/{A}", Membership("container", A)),
    "docker in docker": (f"0::/docker/{A}/docker/{B}", Membership("docker", B)),
    "a service of systemd in a container": (
        f"0::/system.slice/docker-{A}.scope/system.slice/vllm.service", Membership("docker", A),
    ),
    "podman, v2, systemd": (f"0::/machine.slice/libpod-{A}.scope/container", Membership("podman", A)),
    "podman, v1, cgroupfs": (
        f"8:pids:/libpod_parent/libpod-{A}\n4:memory:/libpod_parent/libpod-{A}\n1:name=systemd:/", Membership("podman", A),
    ),
    "podman, rootless": (f"0::{ROOTLESS}/libpod-{A}.scope/container", Membership("podman", A)),
    "podman, a pod": (
        f"0::/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope", Membership("podman", A, B),
    ),
    "podman from a unit file (Quadlet)": (
        f"0::/system.slice/vllm.service/libpod-payload-{A}", Membership("podman", A),
    ),
    "podman's monitor is no container": (
        f"0::/machine.slice/libpod-conmon-{A}.scope", Membership("service", service=f"libpod-conmon-{A}.scope"),
    ),
    "kubernetes, containerd, systemd": (f"0::{KUBE}/cri-containerd-{A}.scope", Membership("containerd", A, UID)),
    "kubernetes, cri-o": (f"0::{KUBE}/crio-{A}.scope/container", Membership("cri-o", A, UID)),
    "kubernetes, docker": (f"0::{KUBE}/docker-{A}.scope", Membership("docker", A, UID)),
    "kubernetes, guaranteed": (
        f"0::/kubepods.slice/kubepods-pod{UNDER}.slice/cri-containerd-{A}.scope", Membership("containerd", A, UID),
    ),
    "kubernetes, cgroupfs, v1": (
        f"7:cpu,cpuacct:/kubepods/besteffort/pod{UID}/{A}\n1:name=systemd:/kubepods/besteffort/pod{UID}/{A}",
        Membership("container", A, UID),
    ),
    "kubernetes, a static pod": (
        f"0::/kubepods/burstable/pod{UID.replace('-', '')}/{A}", Membership("container", A, UID.replace("-", "")),
    ),
    "kubernetes, containerd with cgroupfs under a kubelet with systemd": (
        f"0::/system.slice/containerd.service/kubepods-burstable-pod{UNDER}.slice:cri-containerd:{A}",
        Membership("containerd", A, UID),
    ),
    "kind": (
        f"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UNDER}.slice/cri-containerd-{A}.scope",
        Membership("containerd", A, UID),
    ),
    "kind, as its host sees it": (
        f"0::/system.slice/docker-{B}.scope/kubelet.slice/kubelet-kubepods-pod{UNDER}.slice/cri-containerd-{A}.scope",
        Membership("containerd", A, UID),
    ),
    "nerdctl": (f"0::/system.slice/nerdctl-{A}.scope", Membership("containerd", A)),
    "outside of our control group namespace": (f"0::/../../docker/{A}", Membership()),
    "a name that looks like an id": ("0::/docker/0123456789ab", Membership()),
    "no control groups at all": ("", Membership()),
}  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_runtime_container_and_pod_are_told_by_the_control_group(name: str) -> None:
    text, expected = PATHS[name]
    assert membership_of(text + "\n") == expected


def test_a_membership_reads_as_a_person_would_say_it() -> None:
    assert Membership("containerd", A, UID).text == f"container 0123456789ab (containerd, pod {UID})"
    assert Membership("container", A).text == "container 0123456789ab"
    assert Membership("service", service="vllm.service").text == "service vllm.service"
    assert Membership().text == ""


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "CGROUP_ROOTS", (tmp_path / "v2", tmp_path / "v1"))
    monkeypatch.setattr(cgroups, "CGROUP_V1_ROOTS", ())
    return tmp_path


def make_group(path: Path, pids: str) -> None:
    path.mkdir(parents=True)
    (path / "cgroup.procs").write_text(pids)


def test_a_control_group_is_read_with_the_groups_below_it(roots: Path) -> None:
    make_group(roots / "v1/a.slice/b.service", "7\n")
    make_group(roots / "v1/a.slice/b.service/worker", "9\n8\n0\n")
    (roots / "v1/cgroup.procs").write_text("1\n")
    (roots / "cgroup.procs").write_text("1\n")
    assert cgroup_pids("/a.slice/b.service") == (7, 8, 9), "0 is a process of another pid namespace"
    for group in ("/gone.service", "/", "", "/..", "/../v1/a.slice"):
        assert cgroup_pids(group) is None


def test_groups_that_come_and_go_while_they_are_read_cost_nothing(roots: Path) -> None:
    make_group(roots / "v2/docker", "7\n")
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            for number in range(4):
                with contextlib.suppress(OSError):
                    make_group(roots / f"v2/docker/{number}/deep/er", "8\n")
            for number in range(4):
                for folder in (f"{number}/deep/er", f"{number}/deep", f"{number}"):
                    with contextlib.suppress(OSError):
                        (roots / "v2/docker" / folder / "cgroup.procs").unlink(missing_ok=True)
                        (roots / "v2/docker" / folder).rmdir()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        seen = {cgroup_pids("/docker") for _ in range(2000)}
    finally:
        over.set()
        thread.join()
    assert seen <= {(7,), (7, 8)}


FREEZER = Path("/sys/fs/cgroup/freezer")
needs_freezer = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access(FREEZER / "cgroup.procs", os.W_OK),
    reason="needs root and a freezer of cgroup v1",
)


@pytest.fixture
def real_group() -> Iterator[Path]:
    """Make a real group of the kernel's freezer, named as a container's."""
    folder = FREEZER / "gpo-test" / A
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        deadline = time.monotonic() + 20
        while folder.exists():
            with contextlib.suppress(OSError):
                folder.rmdir()
                folder.parent.rmdir()
            assert time.monotonic() < deadline, "the group is still in use"
            time.sleep(0.01)


@needs_freezer
def test_a_process_in_a_real_group_of_the_kernel_is_seen_frozen_and_thawed(real_group: Path) -> None:
    process = subprocess.Popen(["sleep", "300"])
    try:
        assert read_membership(process.pid).container == ""
        (real_group / "cgroup.procs").write_text(str(process.pid))
        assert read_membership(process.pid).container == A
        assert cgroup_of(process.pid) == f"/gpo-test/{A}"
        assert not is_frozen_by_cgroup(process.pid)
        (real_group / "freezer.state").write_text("FROZEN")
        assert is_frozen_by_cgroup(process.pid)
        row = read_process(process.pid)
        assert row is not None and row.state == "D", (
            "for the kernel's state alone it looks blocked in the kernel"
        )
    finally:
        (real_group / "freezer.state").write_text("THAWED")
        process.kill()
        process.wait()
