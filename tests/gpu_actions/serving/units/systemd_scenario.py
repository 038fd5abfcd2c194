"""The scenario that `test_systemd_real.py` runs inside the private systemd. It prints one JSON object."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_actions.serving.interfaces import UnitError
from gpu_actions.serving.units.systemd import SystemdService, SystemdUnit

ETC = Path("/etc/systemd/system")
VENDOR = Path("/var/units")
NASTY = {
    "CUDA_VISIBLE_DEVICES": "GPU-1",
    "SPACES": "a b",
    "QUOTES": "say \"hi\" 'there'",
    "DOLLAR": "$HOME `id` %h ${PATH}",
    "BACK": "a\\b\\",
    "LINES": "one\ntwo\tthree",
}


def write_unit(folder: Path, name: str, program: str, *more: str) -> SystemdService:
    lines = ("[Unit]", "StartLimitBurst=3", "[Service]", f"ExecStart=/bin/sh -c '{program}'", *more)
    (folder / f"{name}.service").write_text("\n".join(lines) + "\n")
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    return SystemdService(name, SystemdUnit(name=f"{name}.service", stop_grace_s=5))


def environment_of(pid: int | None) -> dict[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_text().rstrip("\0")
    return dict(item.split("=", 1) for item in raw.split("\0"))


async def refusal(unit: SystemdService) -> str:
    try:
        await unit.start()
    except UnitError as error:
        return str(error)
    return ""


async def until(condition: Any) -> None:
    deadline = time.monotonic() + 15
    while not await condition():
        assert time.monotonic() < deadline, condition
        await asyncio.sleep(0.05)


def raw_start(name: str) -> int:
    """Run systemctl as an impatient colleague would."""
    return subprocess.run(
        ["systemctl", "start", f"{name}.service"], capture_output=True, check=False
    ).returncode


async def tier(seen: dict[str, Any]) -> None:
    Path("/run/tier.env").write_text("CUDA_VISIBLE_DEVICES=0,1\nFROM_FILE=yes\n")
    unit = write_unit(
        *(ETC, "tier", "sleep 300 & sleep 300"),
        "Environment=NCCL_P2P_DISABLE=1 KEPT=1",
        "EnvironmentFile=/run/tier.env",
        "Restart=always",
        "RestartSec=100ms",
    )
    await unit.start()
    first = await unit.state()
    seen["started"] = first.model_dump()
    seen["age_s"] = time.time() - (first.started_at_s or 0)
    await unit.start()
    seen["second_start_same"] = (await unit.state()).main_pid == first.main_pid
    seen["before_scope"] = environment_of(first.main_pid)
    await unit.set_scope(NASTY, unset=["NCCL_P2P_DISABLE"])
    seen["stopped"] = (await unit.stop()).model_dump()
    await unit.start()
    seen["after_scope"] = environment_of((await unit.state()).main_pid)

    main = (await unit.state()).main_pid or 0
    os.kill(main, signal.SIGKILL)

    async def restarted() -> bool:
        state = await unit.state()
        return state.active and state.main_pid != main

    await until(restarted)
    seen["restarts"] = (await unit.state()).restarts

    await unit.freeze("NVLink 3 is down")
    frozen = await unit.state()
    seen["frozen_running"] = (frozen.active, frozen.frozen, frozen.frozen_reason)
    os.kill(frozen.main_pid or 0, signal.SIGKILL)

    async def dead() -> bool:
        return not (await unit.state()).active

    await until(dead)
    await asyncio.sleep(0.5)  # five times RestartSec: nothing may happen in it
    seen["restarted_while_frozen"] = (await unit.state()).active
    seen["refused"] = await refusal(unit)
    seen["raw_start_while_frozen"] = raw_start("tier")
    await unit.unfreeze()
    await unit.set_scope({})
    await unit.start()
    seen["after_unfreeze"] = environment_of((await unit.state()).main_pid)
    await unit.stop()
    await unit.freeze("stopped one, unit file in /etc")
    seen["raw_start_of_stopped_frozen"] = raw_start("tier")
    await unit.unfreeze()


async def vendor(seen: dict[str, Any]) -> None:
    unit = write_unit(VENDOR, "vendor", "sleep 300")
    await unit.freeze("masked below /run")
    seen["vendor_mask"] = (await unit._show())["LoadState"]
    seen["vendor_raw_start"] = raw_start("vendor")
    await unit.unfreeze()
    await unit.start()
    seen["vendor_started"] = (await unit.state()).active
    await unit.stop()


async def stubborn(seen: dict[str, Any]) -> None:
    unit = write_unit(ETC, "stubborn", 'trap "" TERM; while :; do sleep 0.1; done')
    await unit.start()
    pids = (await unit.state()).pids
    report = await unit.stop(grace_s=0.5)
    seen["stubborn"] = report.model_dump()
    seen["stubborn_left"] = [pid for pid in pids if Path(f"/proc/{pid}").exists()]


async def crashing(seen: dict[str, Any]) -> None:
    unit = write_unit(
        *(ETC, "crashing", "test -e /run/well && exec sleep 300; exit 7"), "Restart=always", "RestartSec=10ms"
    )
    await refusal(unit)

    async def given_up() -> bool:
        return (await unit._show())["ActiveState"] == "failed"

    await until(given_up)
    seen["crash_result"] = (await unit._show())["Result"]
    Path("/run/well").touch()
    await unit.start()
    seen["started_after_crashes"] = (await unit.state()).active
    await unit.stop()


async def main() -> None:
    seen: dict[str, Any] = {}
    VENDOR.mkdir(exist_ok=True)
    for part in (tier, vendor, stubborn, crashing):
        await part(seen)
    print(json.dumps(seen))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
