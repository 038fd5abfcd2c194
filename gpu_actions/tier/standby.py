"""A standby: an engine of the fallback tier that was started and proved beforehand, and sleeps until it is needed.

Asleep, its weights are in host memory and its GPU memory is released; it serves nothing until it has been woken and has
generated a token. An engine that does not say whether it sleeps is judged by the note of the step that put it to sleep.
"""

import json
import time
from contextlib import suppress

from pydantic import Field, ValidationError

from gpu_actions.host import Tier
from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import UnitState
from gpu_actions.system.clock import Moment
from gpu_actions.system.files import write_atomically
from gpu_actions.system.proc import read_environment

DEVICES = "CUDA_VISIBLE_DEVICES"
ASK_TIMEOUT_S = 1.0


class StandbyCost(Frozen):
    """What a standby costs: host memory, GPU memory, and so the headroom of whatever else runs on its GPU."""

    host_gib: float | None = Field(default=None, description="host memory of its processes")
    host_free_gib: float | None = Field(default=None, description="host memory that is still available")
    gpu_gib: float | None = Field(default=None, description="GPU memory that it keeps")
    gpu_index: int | None = None
    gpu_free_gib: float | None = Field(default=None, description="free on its GPU beside tp")

    @property
    def text(self) -> str:
        """Return the cost in one line; empty if nothing is known."""
        parts = []
        if self.host_gib is not None:
            free = "" if self.host_free_gib is None else f" ({self.host_free_gib:.0f} GiB still available)"
            parts.append(f"{self.host_gib:.1f} GiB of host memory{free}")
        if self.gpu_gib is not None:
            parts.append(f"{self.gpu_gib:.1f} GiB of GPU memory kept")
        if self.gpu_gib is not None and self.gpu_free_gib is not None:
            without = self.gpu_free_gib + self.gpu_gib
            parts.append(
                f"headroom on GPU {self.gpu_index} {self.gpu_free_gib:.1f} GiB instead of {without:.1f}"
            )
        return ", ".join(parts)


class SleepNote(StandbyCost):
    """What the standby costs, as measured when it was put to sleep."""

    pid: int
    slept: Moment
    sleep_s: float = Field(description="seconds from the request to sleep until the engine answered")


def keep_note(tier: Tier, note: SleepNote) -> None:
    """Keep the note of a tier that was put to sleep. A full disk loses the note, not the standby."""
    if tier.standby_note is not None:
        with suppress(OSError):
            write_atomically(tier.standby_note, note.model_dump_json())


def read_note(tier: Tier, state: UnitState) -> SleepNote | None:
    """Return the note of the process that runs now, or None."""
    if tier.standby_note is None:
        return None
    try:
        note = SleepNote.model_validate(json.loads(tier.standby_note.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None
    if note.pid != state.main_pid or note.slept.precedes_process(note.pid):
        return None
    return note


def forget_note(tier: Tier) -> None:
    """Remove the note: the tier is awake or gone."""
    if tier.standby_note is not None:
        tier.standby_note.unlink(missing_ok=True)


async def is_asleep(tier: Tier, state: UnitState) -> bool:
    """Return True if the tier is a standby that sleeps. Such an engine must not be asked for tokens."""
    if tier.config.standby != "sleep" or not state.active:
        return False
    said = await tier.engine.is_asleep(timeout_s=ASK_TIMEOUT_S)
    return said if said is not None else read_note(tier, state) is not None


def gpu_of(state: UnitState) -> str:
    """Return the GPU that a running tier was scoped to, by UUID; empty if it has no such scope or cannot be read."""
    if state.main_pid is None:
        return ""
    with suppress(OSError):
        return read_environment(state.main_pid).get(DEVICES, "")
    return ""


def asleep_for(note: SleepNote | None) -> str:
    """Describe since when a standby sleeps and what it costs."""
    if note is None:
        return "asleep"
    return ", ".join(
        filter(None, (f"asleep for {(time.time() - note.slept.wall_s) / 60:.0f} min", note.text))
    )
