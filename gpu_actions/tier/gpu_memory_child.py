"""The child process of `read_gpus`: print the memory of all GPUs and its holders as one JSON object.

It imports only the standard library and nvidia-ml-py, so that it starts in 50 ms: planning a fallback waits for it.
"""

import json
import sys
from typing import Any

import pynvml

MIB = 1024**2


def read_all() -> dict[str, Any]:
    """Return the fields of `GpuMemories`."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {"error": f"NVML: {error}"}
    gpus, errors = [], []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            uuid, name = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
        except pynvml.NVMLError as error:
            errors.append(f"GPU {index}: {error}")
            continue
        try:
            rows = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
            pids = sorted(row.pid for row in rows)
            held = {row.pid: row.usedGpuMemory / MIB for row in rows if row.usedGpuMemory is not None}
        except pynvml.NVMLError:
            pids, held = None, {}  # unknown, which the reader must not take for "no process"
        gpus.append({
            "index": index, "uuid": uuid, "name": name, "total_mib": memory.total / MIB,
            "free_mib": memory.free / MIB, "pids": pids, "held_mib": held,
        })  # fmt: skip
    return {"gpus": gpus, "error": "; ".join(errors)}


if __name__ == "__main__":
    json.dump(read_all(), sys.stdout)
