"""Where the ranks stand, by py-spy: taken only while tokens stand still, since it costs CPU, and never with local variables.

`--nonblocking` reads the other process's memory without stopping it, so it works on a rank that is stopped and harms none that
is not.
"""

import asyncio
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from gpu_actions.serving.registry import PROCESS_WORDS
from gpu_actions.snapshot.collectors import CollectorFailed, CollectorSkipped
from gpu_actions.snapshot.host_model import RankProcess, RanksReading, StackReading, StacksReading
from gpu_actions.system.processes import run_process

MAX_DUMPS = 16
AT_ONCE = 4
TOP_FRAMES = 12
INNERMOST = 8
"""A collective further out than this is the caller of something else."""

COLLECTIVE = re.compile(
    r"^_?(?:tensor_model_parallel_|custom_|monitored_)?"
    r"(?:all_?reduce|all_?gather|reduce_?scatter|broadcast|barrier|all_?to_?all|reduce|gather|scatter|isend|irecv|send|recv)"
    r"(?:_into_tensor|_tensor|_coalesced|_base|_single|_object_list|_out_place|_in_place)?_?$"
)
DISTRIBUTED = re.compile(
    r"(?:torch/distributed/|distributed_c10d|parallel_state|pynccl|communication_op|device_communicators)"
)


def find_py_spy() -> str | None:
    """py-spy beside our interpreter, else on PATH."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else shutil.which("py-spy")


def collective_of(frames: list[dict[str, Any]]) -> str | None:
    """The collective among the innermost frames: by name and by file, since `gather` alone may be anything."""
    for frame in frames[:INNERMOST]:
        name, file = str(frame.get("name", "")), str(frame.get("filename", ""))
        if COLLECTIVE.match(name) and DISTRIBUTED.search(file):
            return name
    return None


def parse_dump(text: str, *, pid: int, rank: int | None) -> StackReading:
    """Parse `py-spy dump --json`: the thread that stands in a collective, else the main thread."""
    try:
        threads = json.loads(text)
        stacks = [thread["frames"] for thread in threads if isinstance(thread["frames"], list)]
        chosen = next((frames for frames in stacks if collective_of(frames)), stacks[0] if stacks else [])
        return StackReading(
            pid=pid,
            rank=rank,
            collective=collective_of(chosen),
            frames=tuple(
                f"{frame['name']} ({Path(str(frame.get('short_filename') or frame['filename'])).name}:{frame.get('line', 0)})"[
                    :160
                ]
                for frame in chosen[:TOP_FRAMES]
            ),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return StackReading(
            pid=pid, rank=rank, outcome="failed", detail=f"py-spy wrote no stacks: {type(error).__name__}"
        )


def worth_dumping(ranks: RanksReading) -> list[RankProcess]:
    """The ranks, or where no process tells its rank, everything in the tree that may be Python."""
    alive = [process for process in ranks.processes if process.state_last not in ("Z", "X", "gone", None)]
    known = [process for process in alive if process.rank is not None]
    if known:
        roots = [process for process in alive if process.root and process.rank is None]
        lowest = min(process.rank or 0 for process in known)
        return ([*roots, *known] if lowest > 0 else known)[:MAX_DUMPS]
    words = ("python", "ray", "pt_main", *PROCESS_WORDS)
    return [process for process in alive if any(word in process.name.lower() for word in words)][:MAX_DUMPS]


async def collect_stacks(ranks: RanksReading | None, *, stuck: bool, timeout_s: float) -> StacksReading:
    """Dump the ranks' stacks. Raises CollectorSkipped while tokens flow, CollectorFailed when not one could be taken."""
    if not stuck:
        raise CollectorSkipped("tokens flow, or nothing runs")
    if ranks is None or not ranks.processes:
        raise CollectorSkipped("no process of the tier is known")
    program = find_py_spy()
    if program is None:
        raise CollectorFailed("py-spy is not installed beside this interpreter nor on PATH")
    limit = asyncio.Semaphore(AT_ONCE)

    async def dump(process: RankProcess) -> StackReading:
        async with limit:
            argv = [program, "dump", "--nonblocking", "--json", "--pid", str(process.pid)]
            result = await run_process(argv, timeout_s=timeout_s, kill_grace_s=0.1)
        if result.exit_code != 0 or result.timed_out:
            why = (
                f"no end within {timeout_s:g} s"
                if result.timed_out
                else result.stderr.strip().splitlines()[-1:]
            )
            detail = why if isinstance(why, str) else "".join(why)
            return StackReading(pid=process.pid, rank=process.rank, outcome="failed", detail=detail[:200])
        return parse_dump(result.stdout, pid=process.pid, rank=process.rank)

    stacks = await asyncio.gather(*[dump(process) for process in worth_dumping(ranks)])
    if stacks and all(stack.outcome == "failed" for stack in stacks):
        raise CollectorFailed(
            f"py-spy could not look into any of {len(stacks)} processes: {stacks[0].detail}"
        )
    return StacksReading(stacks=tuple(stacks))
