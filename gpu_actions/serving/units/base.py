"""What every kind of unit shares: the base of its settings, and the search for a frozen tier that runs anyway."""

import asyncio
import shutil
import sys
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import Unit, UnitState
from gpu_actions.serving.setup_checks import SetupCheck
from gpu_actions.system.listening import listener_of, listens
from gpu_actions.system.urls import port_of


class UnitConfig(Frozen):
    """The settings of what starts and stops a tier.

    A kind of unit is a subclass with `driver` set to its name, in one file with its driver, and a line in
    `serving/registry.py`.
    """

    driver: str
    stop_grace_s: float = Field(default=90, ge=0)

    @abstractmethod
    def build(self, name: str, *, state_dir: Path) -> Unit:
        """Return the driver of the unit `name`, which may keep files in `state_dir/name`. Starts nothing."""

    def obstacle(self) -> str:
        """Return why a start must fail here (a missing program or folder), or an empty string."""
        return ""

    @abstractmethod
    async def setup_checks(self, name: str, *, group_stop_hazard: str) -> list[SetupCheck]:
        """Check the unit for `doctor`. `group_stop_hazard` says what breaks in its engine if a stop signals all its
        processes at once; empty if nothing does."""


async def runs_although_frozen(state: UnitState, url: str) -> str:
    """Return what runs a tier whose unit is frozen: its process, or the listener on the engine's port.

    A cron job, another service manager or a colleague may have started it. A port that a container publishes may have no
    listener on this machine: then it counts if a connection is accepted. Empty if nothing runs or it is not frozen.
    """
    if not state.frozen:
        return ""
    if state.active:
        return f"process {state.main_pid}" if state.main_pid else "its unit is active"
    port = port_of(url)
    owner = await asyncio.to_thread(listener_of, port)
    if owner is not None:
        return f"{owner} listens on its port {port}"
    return f"something accepts connections at {url}" if await listens(url) else ""


def check_reason(reason: str) -> str:
    """Return the reason of a freeze, stripped. Raises ValueError for an empty one."""
    if not reason.strip():
        raise ValueError("a freeze needs a reason: the next person reads it")
    return reason.strip()


def missing_program(program: str, environment: Mapping[str, str]) -> str:
    """Return a sentence if the program of a unit is not on this machine, else an empty string."""
    found = shutil.which(program.replace("{python}", sys.executable), path=environment.get("PATH"))
    return "" if found else f"its program {program} is not on this machine"
