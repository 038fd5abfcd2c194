"""Processes of ours that a sick GPU driver does not let go: blocked in the kernel, they survive SIGKILL until it answers.

Nothing can end them, so their number is bounded: where `MAX_WEDGED` are stuck, no further one is started. They are found
in /proc, so those of other processes of gpu-oncall and of earlier ones count too.
"""

import re
import signal

from gpu_actions.system.proc import process_table, read_command, read_file

MAX_WEDGED = 4
"""Each holds 20 to 60 MB and a process id. One triage may need three: it goes around a GPU that hangs."""

DRIVER_PROGRAMS = (
    "gpu_actions.snapshot.collectors.nvml_child",
    "gpu_actions.tier.gpu_memory_child",
    "nvidia-smi",
)
_PENDING = re.compile(rb"^S(?:ig|hd)Pnd:\s*([0-9a-f]+)", re.MULTILINE)


def wedged_processes() -> tuple[int, ...]:
    """Return the processes that read the driver for us, were killed and do not end."""
    return tuple(
        row.pid
        for row in process_table().values()
        if not row.zombie
        and row.state == "D"
        and _is_ours(row.pid)
        and was_killed(read_file(row.pid, "status"))
    )


def was_killed(status: bytes) -> bool:
    """Return True if a SIGKILL waits for a process, by its /proc/PID/status."""
    bit = 1 << (signal.SIGKILL - 1)
    return any(int(mask, 16) & bit for mask in _PENDING.findall(status))


def _is_ours(pid: int) -> bool:
    words = {part.rpartition("/")[2] for part in read_command(pid)[:4]}
    return bool(words.intersection(DRIVER_PROGRAMS))


def too_many(pids: tuple[int, ...]) -> str:
    """Return a sentence if no further process may be started, else an empty string."""
    if len(pids) < MAX_WEDGED:
        return ""
    named = ", ".join(map(str, pids[:8]))
    return (
        f"{len(pids)} processes that read the driver were killed and do not end (pid {named}): it blocks them in the kernel, "
        "and no further one is started until one ends"
    )
