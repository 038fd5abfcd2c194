"""The child of `read_gpus`: reads the memory of all GPUs and who holds it, prints one JSON object, and ends.

Standard library and nvidia-ml-py only, so that it is up in 50 ms: a fallback waits for it before anything else.
"""

import json
import sys
from typing import Any

import pynvml

MIB = 1024**2


def sweep() -> dict[str, Any]:
    """Everything that NVML tells, in the fields of `GpuMemories`."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {"error": f"NVML: {error}"}
    gpus, trouble = [], []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            uuid, name = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
        except pynvml.NVMLError as error:
            trouble.append(f"GPU {index}: {error}")
            continue
        try:
            holders = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
            pids = sorted(process.pid for process in holders)
        except pynvml.NVMLError:
            pids = None  # unknown, which the reader must not take for "nobody"
        gpus.append({
            "index": index, "uuid": uuid, "name": name, "total_mib": memory.total / MIB,
            "free_mib": memory.free / MIB, "pids": pids,
        })  # fmt: skip
    return {"gpus": gpus, "error": "; ".join(trouble)}


if __name__ == "__main__":
    json.dump(sweep(), sys.stdout)
