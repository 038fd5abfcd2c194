"""The systemd unit against a real systemd 2xx, as process 1 of private namespaces.

The manager sees a read-only root, empty folders of its own for /run, /tmp, /var and unit files, no network and none of the
distribution's units, so that nothing of this machine is touched. Needs root, unshare and a cgroup v2 hierarchy.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_actions.serving.units.systemd_scenario import NASTY

SYSTEMD = Path("/lib/systemd/systemd")
REPOSITORY = Path(__file__).parents[4]

BOOT = f"""
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
for folder in /run /tmp /var /etc/systemd/system; do mount -t tmpfs tmpfs $folder; done
mount -o remount,bind,ro /
while mountpoint -q /sys/fs/cgroup; do umount -R /sys/fs/cgroup; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/systemd/system /run/none /var/log /var/units
for target in sysinit basic shutdown multi-user; do
    printf '[Unit]\\nDefaultDependencies=no\\n' > /etc/systemd/system/$target.target
done
exec env -i container=private PATH=/usr/bin:/bin:/usr/sbin:/sbin \
    SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/systemd/system:/var/units \
    SYSTEMD_GENERATOR_PATH=/run/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/none \
    {SYSTEMD} --system --unit=multi-user.target --log-target=console --show-status=no
"""


def cgroup2_root() -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mounted_at, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(mounted_at, os.W_OK):
            return Path(mounted_at)
    return None


pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        os.geteuid() != 0
        or not SYSTEMD.exists()
        or not (shutil.which("unshare") and shutil.which("nsenter"))
        or cgroup2_root() is None,
        reason="a private systemd needs root, unshare, nsenter, systemd and a writable cgroup v2 hierarchy",
    ),
]


@pytest.fixture
def private_systemd() -> Iterator[int]:
    """Start a systemd in its own namespaces and return its process id on this machine."""
    root = cgroup2_root()
    assert root is not None
    group = root / f"gpu-oncall-test-{os.getpid()}"
    group.mkdir()
    enter = f"echo $$ > {group}/cgroup.procs; exec unshare --mount --pid --ipc --uts --net --cgroup --fork --kill-child "
    outer = subprocess.Popen(
        ["sh", "-c", enter + 'sh -c "$BOOT"'],
        env={"BOOT": BOOT, "PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        deadline = time.monotonic() + 15
        while True:
            if outer.poll() is not None:
                pytest.skip("this machine does not allow the private namespaces")
            pid = int((children.read_text().split() or ["0"])[0])
            if pid and Path(f"/proc/{pid}/root/run/systemd/private").exists():
                break
            assert time.monotonic() < deadline, "the private systemd did not come up"
            time.sleep(0.05)
        yield pid
    finally:
        outer.kill()  # unshare --kill-child ends process 1, and with it all of its namespace
        outer.wait()
        deadline = time.monotonic() + 5
        while (group / "cgroup.procs").exists() and time.monotonic() < deadline:
            for folder in sorted(group.rglob("*/"), reverse=True):
                if folder.is_dir():
                    remove_quietly(folder)
            remove_quietly(group)
            time.sleep(0.02)
        assert not group.exists()


def remove_quietly(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # still busy: tried again


@pytest.fixture
def seen(private_systemd: int) -> dict[str, Any]:
    """Run the scenario inside and return its observations."""
    done = subprocess.run(
        [
            *("nsenter", f"--target={private_systemd}", "--mount", "--pid", "--net", f"--wdns={REPOSITORY}"),
            *(sys.executable, "-B", "-m", "tests.gpu_actions.serving.units.systemd_scenario"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def test_a_tier_goes_through_its_whole_life_under_a_real_systemd(seen: dict[str, Any]) -> None:
    assert seen["started"]["active"]
    assert len(seen["started"]["pids"]) >= 2
    assert seen["started"]["main_pid"] in seen["started"]["pids"]
    assert 0 <= seen["age_s"] < 20
    assert seen["second_start_same"]
    assert set(seen["started"]["pids"]) <= set(seen["stopped"]["pids"])
    assert not seen["stopped"]["killed"]

    # The scope wins over Environment= and over EnvironmentFile= of the unit, and every character arrives.
    assert seen["before_scope"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert {name: seen["after_scope"][name] for name in NASTY} == NASTY
    assert "NCCL_P2P_DISABLE" in seen["before_scope"]
    assert "NCCL_P2P_DISABLE" not in seen["after_scope"]
    assert seen["after_scope"]["KEPT"] == "1"
    assert seen["after_unfreeze"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert seen["after_unfreeze"]["NCCL_P2P_DISABLE"] == "1"

    # A freeze holds against the supervisor, against us and against a colleague's systemctl start.
    assert seen["restarts"] == 1
    assert seen["frozen_running"] == [True, True, "NVLink 3 is down"]
    assert not seen["restarted_while_frozen"]
    assert "NVLink 3 is down" in seen["refused"]
    assert seen["raw_start_while_frozen"] != 0
    assert seen["raw_start_of_stopped_frozen"] != 0
    assert seen["vendor_mask"] == "masked"
    assert seen["vendor_raw_start"] != 0
    assert seen["vendor_started"]

    assert seen["stubborn"]["killed"]
    assert seen["stubborn"]["seconds"] < 8
    assert seen["stubborn_left"] == []

    assert seen["crash_result"] in {"start-limit-hit", "exit-code"}
    assert seen["started_after_crashes"]
