"""The systemd units of a fleet, judged by systemd itself, offline."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[3] / "deploy"
UNITS = ("gpu-oncall.service", "gpu-oncall-bot.service", "gpu-oncall-worker.service")
READS_EVIDENCE = {
    "PrivateDevices": "the GPUs are devices",
    "ProtectClock": "its DeviceAllow= shuts out the GPUs",
    "ProtectKernelModules": "nvidia-modprobe loads the driver's modules",
    "UMask": "tiers read files that the worker writes",
    "ProtectProc": "stacks and memory are read in /proc",
    "ProtectKernelLogs": "Xid lines are in the kernel's log",
    "PrivateTmp": "tiers have sockets and files in /tmp",
    "ProtectControlGroups": "a tier is a unit of its own",
    "MemoryDenyWriteExecute": "CUDA maps such memory",
    "SystemCallFilter": "debuggers need ptrace and process_vm_readv",
    "CapabilityBoundingSet": "ptrace of others' processes and signals to them",
    "User": "as above",
}
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_systemd_knows_every_line(name: str, tmp_path: Path) -> None:
    text = (DEPLOY / name).read_text()
    unit = tmp_path / name  # `verify` also looks for the program, which is not installed here
    unit.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", text))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=30
    )
    ours = [line for line in checked.stderr.splitlines() if name in line]
    assert ours == []


@needs_systemd
def test_the_bot_is_well_confined() -> None:
    unit = str(DEPLOY / "gpu-oncall-bot.service")
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", unit],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert judged.returncode == 0, judged.stdout[-2000:]


def test_the_worker_keeps_what_evidence_needs() -> None:
    text = (DEPLOY / "gpu-oncall-worker.service").read_text()
    set_here = set(re.findall(r"(?m)^([A-Za-z]+)=", text))
    assert {name: why for name, why in READS_EVIDENCE.items() if name in set_here} == {}
    assert {"WatchdogSec", "Type", "LockPersonality"} <= set_here
