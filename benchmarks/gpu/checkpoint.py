"""NVIDIA's checkpoint of a process (`cuda-checkpoint`; here its driver calls, CUDA 12.8): is it solid enough for a standby?

A locked and checkpointed process keeps in host memory what it had on the GPU, and holds no GPU: any engine could sleep so.
CRIU is not needed for that. Source: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__CHECKPOINT.html
"""

import asyncio
import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.standby import SIZES, gpu_gib
from gpu_actions.serving.interfaces import Engine, EngineError, Unit
from gpu_actions.system.proc import resident_gib

if TYPE_CHECKING:
    from benchmarks.gpu.validate import Record, Validation

CYCLES = 5
LIMIT_S = 60.0

CALL = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1"); cuda.cuInit(0)
call, pid = sys.argv[1], int(sys.argv[2])
if call == "GetState":
    state = ctypes.c_int(-1); code = cuda.cuCheckpointProcessGetState(pid, ctypes.byref(state))
    print("state", state.value)
else:
    arguments = (ctypes.c_uint * 16)(); arguments[0] = 10_000 if call == "Lock" else 0
    code = getattr(cuda, "cuCheckpointProcess" + call)(pid, ctypes.byref(arguments))
name = ctypes.c_char_p(); cuda.cuGetErrorName(code, ctypes.byref(name)); print((name.value or b"").decode(), code)
sys.exit(code != 0)
"""

HOG = """
import torch
free, _ = torch.cuda.mem_get_info(0)
held = torch.empty(int(free - 2 * 1024**3), dtype=torch.uint8, device="cuda:0"); torch.cuda.synchronize()
print("held", flush=True); input()
"""


async def checkpoint(v: "Validation") -> "Record":
    """Cycles of one process, with a request in flight, with a GPU that filled up meanwhile, and of two ranks over NCCL."""
    if not v.gpus:
        return {"not_run": "needs a GPU"}
    hidden, layers, heads = SIZES["8 GiB"]
    flags = ("--hidden-size", hidden, "--num-layers", layers, "--num-heads", heads, "--max-model-len", "512")
    record: dict[str, Any] = {}
    async with v.engine(1, *flags) as (unit, engine, _):
        pids = await _cuda_pids(unit)
        record["processes"] = len(pids)
        record["one_process"] = [await _cycle(unit, engine, pids) for _ in range(CYCLES)]
        record["request_in_flight"] = await _in_flight(engine, pids)
        record["gpu_filled_meanwhile"] = await _filled(engine, pids)
    if v.gpus > 1:
        async with v.engine(2) as (unit, engine, _):
            record["two_ranks_nccl"] = await _cycle(unit, engine, await _cuda_pids(unit))
    return record


async def _call(call: str, pid: int) -> tuple[bool, str, float]:
    """Run one call of the driver in a child. Return whether it succeeded, the driver's name of the result, and the seconds."""
    began = time.monotonic()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CALL, call, str(pid), stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await asyncio.wait_for(child.communicate(), LIMIT_S)
    except TimeoutError:
        child.kill()
        return False, f"no answer within {LIMIT_S:.0f} s", LIMIT_S
    return child.returncode == 0, out.decode().strip(), round(time.monotonic() - began, 3)


async def _cuda_pids(unit: Unit) -> list[int]:
    """Return the processes of the unit that hold CUDA state."""
    return [pid for pid in (await unit.state()).pids if (await _call("GetState", pid))[0]]


async def _all(pids: list[int], *calls: str) -> dict[str, Any]:
    """Make each call on all processes at once, in order. Stop at the first that fails."""
    record: dict[str, Any] = {}
    for call in calls:
        results = await asyncio.gather(*(_call(call, pid) for pid in pids))
        record[call] = {"s": max(seconds for _, _, seconds in results)}
        if failed := [said for good, said, _ in results if not good]:
            record[call]["failed"] = failed
            break
    return record


async def _token(engine: Engine, limit_s: float = 20) -> dict[str, Any]:
    began = time.monotonic()
    try:
        answer = await asyncio.wait_for(
            engine.complete("hello", max_tokens=8, timeout_s=limit_s), limit_s + 5
        )
    except (EngineError, TimeoutError) as error:
        return {"failed": f"{type(error).__name__}: {error}"[:200]}
    return {"s": round(time.monotonic() - began, 3), "text": answer.text}


async def _cycle(unit: Unit, engine: Engine, pids: list[int]) -> dict[str, Any]:
    before = await _token(engine)
    down = await _all(pids, "Lock", "Checkpoint")
    kept, host = await gpu_gib(), round(resident_gib((await unit.state()).pids), 2)
    asked = time.monotonic()
    up = await _all(pids, "Restore", "Unlock")
    after = await _token(engine)
    return {
        **down,
        "gpu_gib_kept": kept,
        "host_gib": host,
        **up,
        "first_answer_s": round(time.monotonic() - asked, 3),
        "same_text": before.get("text") == after.get("text"),
        "after": after,
    }


async def _in_flight(engine: Engine, pids: list[int]) -> dict[str, Any]:
    long = asyncio.create_task(engine.complete("a long story", max_tokens=400, timeout_s=60))
    await asyncio.sleep(0.5)
    down = await _all(pids, "Lock", "Checkpoint")
    await asyncio.sleep(3)
    up = await _all(pids, "Restore", "Unlock")
    finished: Any = None
    with contextlib.suppress(EngineError, TimeoutError):
        finished = (await long).completion_tokens
    return {**down, **up, "tokens_of_the_long_answer": finished, "after": await _token(engine)}


async def _filled(engine: Engine, pids: list[int]) -> dict[str, Any]:
    """Another process takes the GPU's memory while the engine sleeps; then it leaves again."""
    down = await _all(pids, "Lock", "Checkpoint")
    hog = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOG, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert hog.stdout is not None
    held = (await hog.stdout.readline()).decode().strip()
    full = await _all(pids, "Restore", "Unlock")
    hog.kill()
    await hog.wait()
    await asyncio.sleep(1)
    again = await _all(pids, "Restore", "Unlock") if "failed" in full.get("Restore", {}) else None
    return {**down, "hog": held, "while_full": full, "afterwards": again, "after": await _token(engine)}
