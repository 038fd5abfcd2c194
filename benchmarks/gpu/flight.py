"""Real dumps of PyTorch's flight recorder: two NCCL ranks, one of which stays one collective behind; our child reads both."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_actions.snapshot.collectors.flight_recorder import CHILD, FlightDump, FlightReading
from gpu_actions.triage.culprit import recorded_culprits

RANK = """
import os, sys, time, torch, torch.distributed as dist
rank, out = int(sys.argv[1]), sys.argv[2]
torch.cuda.set_device(rank)
dist.init_process_group("nccl", init_method=f"file://{out}/store", rank=rank, world_size=2)
tensor = torch.ones(1024, device="cuda")
for _ in range(5 - rank):
    dist.all_reduce(tensor)
    if rank == 0 and _ == 3:
        torch.cuda.synchronize()
from torch._C._distributed_c10d import _dump_nccl_trace
open(f"{out}/dump_{rank}", "wb").write(_dump_nccl_trace())
os._exit(0)
"""


async def flight_recorder(validation: Any) -> dict[str, Any]:
    """Run the ranks, parse their dumps in the child, and name the rank that is behind."""
    return await asyncio.to_thread(_flight_recorder, validation)


def _flight_recorder(validation: Any) -> dict[str, Any]:
    if validation.gpus < 2:
        return {"skipped": "needs two GPUs"}
    folder = Path(validation.work) / "flight"
    folder.mkdir()
    environment = {**os.environ, "TORCH_NCCL_TRACE_BUFFER_SIZE": "100"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(folder)], env=environment)
        for rank in range(2)
    ]
    codes = [process.wait(timeout=90) for process in ranks]
    files = [folder / f"dump_{rank}" for rank in range(2)]
    done = subprocess.run(
        [sys.executable, "-m", CHILD, *map(str, files)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    parsed = [json.loads(line) for line in done.stdout.splitlines()]
    dumps = tuple(
        FlightDump.model_validate({"rank": rank, "pid": ranks[rank].pid, "age_s": 0, **found})
        for rank, found in enumerate(parsed)
    )
    culprits = [culprit.text for culprit in recorded_culprits(FlightReading(dumps=dumps))]
    assert culprits and culprits[0].startswith("rank 1 is behind"), (culprits, parsed)
    return {
        "exit_codes": codes,
        "bytes": [file.stat().st_size for file in files],
        "parsed": parsed,
        "culprits": culprits,
    }
