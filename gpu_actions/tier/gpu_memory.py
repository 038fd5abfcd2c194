"""GPU memory and the processes that hold it, as NVML reports them.

A child process (`gpu_memory_child.py`) reads them, so that a sick driver can hang the child and nothing else.
"""

import asyncio
import sys

from pydantic import Field, ValidationError

from gpu_actions.models import Frozen
from gpu_actions.system.processes import child_environment, run_process
from gpu_actions.system.redact import redacted_tail
from gpu_actions.system.wedged import too_many, wedged_processes

READ_TIMEOUT_S = 10.0
"""Reading 8 GPUs takes 0.3 s on a healthy host (30 ms a GPU were measured); on a sick one a call can hang for minutes."""


class GpuMemory(Frozen):
    """One GPU at one moment. `pids` hold memory on it; None where NVML does not list them."""

    index: int
    uuid: str
    name: str = ""
    total_mib: float
    free_mib: float
    pids: tuple[int, ...] | None = None
    held_mib: dict[int, float] = Field(
        default_factory=dict, description="by process, where NVML reports a figure"
    )

    @property
    def used_percent(self) -> float:
        return 100 * (1 - self.free_mib / self.total_mib) if self.total_mib else 0.0


class GpuMemories(Frozen):
    """All GPUs that could be read. `error` says what could not be read; empty when everything was."""

    gpus: tuple[GpuMemory, ...] = ()
    error: str = ""

    def by_uuid(self, uuid: str) -> GpuMemory | None:
        return next((gpu for gpu in self.gpus if gpu.uuid == uuid), None)


async def read_gpus(*, timeout_s: float = READ_TIMEOUT_S) -> GpuMemories:
    """Read all GPUs of this machine. Never raises for a missing or sick driver; `error` says what is wrong."""
    if stuck := too_many(await asyncio.to_thread(wedged_processes)):
        return GpuMemories(error=stuck)
    result = await run_process(
        [sys.executable, "-m", "gpu_actions.tier.gpu_memory_child"],
        timeout_s=timeout_s,
        env=child_environment(),
    )
    if result.timed_out:
        return GpuMemories(error=f"NVML did not answer within {timeout_s:g} s: the driver may be sick")
    try:
        return GpuMemories.model_validate_json(result.stdout)
    except ValidationError:
        stderr = redacted_tail(" ".join(result.stderr.split()), 200)
        return GpuMemories(error=f"NVML could not be read: exit code {result.exit_code}: {stderr}")
