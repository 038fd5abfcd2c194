"""Python stacks of the ranks, by py-spy: taken only while no token is generated (it costs CPU), never with local variables.

`--nonblocking` reads the process's memory without stopping it: it works on a stopped rank and does not disturb a running one.
"""

import asyncio
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.serving.registry import PROCESS_WORDS
from gpu_actions.snapshot.collector import Collector, CollectorFailed, CollectorSkipped, Source
from gpu_actions.snapshot.collectors.ranks import RankProcess, RanksReading
from gpu_actions.system.processes import run_process

MAX_DUMPS = 16
AT_ONCE = 4
TOP_FRAMES = 12
PAUSE_S = 0.2
"""Between two readings: a rank that works leaves a collective within milliseconds."""
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


class StackReading(Frozen):
    """Python frames of a process, innermost first, and the collective among them."""

    pid: int
    rank: int | None = None
    outcome: Literal["ok", "failed"] = "ok"
    detail: str = ""
    collective: str | None = Field(
        default=None, description="function name of the collective it is in, both times"
    )
    steady: bool = Field(default=True, description="it was in the same function at both readings")
    frames: tuple[str, ...] = ()


class StacksReading(Frozen):
    """Stacks of the ranks; taken only while no token is generated."""

    stacks: tuple[StackReading, ...] = ()


def find_py_spy() -> str | None:
    """Return the path of py-spy: beside the interpreter, else on PATH."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else shutil.which("py-spy")


def collective_of(frames: list[dict[str, Any]]) -> str | None:
    """Find the collective among the innermost frames, by name and file: `gather` alone may be anything."""
    for frame in frames[:INNERMOST]:
        name, file = str(frame.get("name", "")), str(frame.get("filename", ""))
        if COLLECTIVE.match(name) and DISTRIBUTED.search(file):
            return name
    return None


def parse_dump(text: str, *, pid: int, rank: int | None) -> StackReading:
    """Parse `py-spy dump --json`: the thread that is in a collective, else the main thread."""
    try:
        threads = json.loads(text)
        stacks = [thread["frames"] for thread in threads if isinstance(thread["frames"], list)]
        chosen = next((frames for frames in stacks if collective_of(frames)), stacks[0] if stacks else [])
        return StackReading(
            pid=pid,
            rank=rank,
            collective=collective_of(chosen),
            frames=tuple(_frame_text(frame)[:160] for frame in chosen[:TOP_FRAMES]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return StackReading(
            pid=pid, rank=rank, outcome="failed", detail=f"py-spy wrote no stacks: {type(error).__name__}"
        )


def both(first: StackReading, second: StackReading) -> StackReading:
    """Return the second of two readings of a process. A stack that was half read, or was on its way, is in no collective."""
    if "failed" in (first.outcome, second.outcome):
        return second if second.outcome == "failed" else first
    return second.model_copy(
        update={
            "collective": second.collective if first.collective is not None else None,
            "steady": first.frames[:1] == second.frames[:1],
        }
    )


def _frame_text(frame: dict[str, Any]) -> str:
    file = Path(str(frame.get("short_filename") or frame["filename"])).name
    return f"{frame['name']} ({file}:{frame.get('line', 0)})"


def processes_to_dump(ranks: RanksReading) -> list[RankProcess]:
    """Return the ranks, by number or by the GPU they hold; if there are none, every process that may be Python."""
    alive = [process for process in ranks.processes if process.is_alive]
    known = [process for process in alive if process.rank is not None or process.gpu is not None]
    if known:
        roots = [process for process in alive if process.root and process.rank is None]
        lowest = min(process.rank or 0 for process in known)
        return ([*roots, *known] if lowest > 0 else known)[:MAX_DUMPS]
    words = ("python", "ray", "pt_main", *PROCESS_WORDS)
    return [process for process in alive if any(word in process.name.lower() for word in words)][:MAX_DUMPS]


async def collect_stacks(source: Source) -> StacksReading:
    """Dump the ranks' stacks. Raises CollectorSkipped while tokens are generated, CollectorFailed if no dump succeeds."""
    ranks: RanksReading | None = source.readings.get("ranks")
    timeout_s = source.limits.stacks_timeout_s
    if not source.is_stuck():
        raise CollectorSkipped("requests are not stuck")
    if ranks is None or not ranks.processes:
        raise CollectorSkipped("no process of the tier is known")
    program = find_py_spy()
    if program is None:
        raise CollectorFailed("py-spy is not installed (neither beside this interpreter nor on PATH)")
    limit = asyncio.Semaphore(AT_ONCE)

    async def dump(process: RankProcess) -> StackReading:
        async with limit:
            argv = [program, "dump", "--nonblocking", "--json", "--pid", str(process.pid)]
            result = await run_process(argv, timeout_s=timeout_s, kill_grace_s=0.1)
        if result.exit_code != 0 or result.timed_out:
            lines = result.stderr.strip().splitlines() or [""]
            detail = f"no answer within {timeout_s:g} s" if result.timed_out else lines[-1]
            return StackReading(pid=process.pid, rank=process.rank, outcome="failed", detail=detail[:200])
        return parse_dump(result.stdout, pid=process.pid, rank=process.rank)

    chosen = processes_to_dump(ranks)
    first = await asyncio.gather(*[dump(process) for process in chosen])
    await asyncio.sleep(PAUSE_S)
    second = await asyncio.gather(*[dump(process) for process in chosen])
    stacks = [both(*pair) for pair in zip(first, second, strict=True)]
    if stacks and all(stack.outcome == "failed" for stack in stacks):
        raise CollectorFailed(f"py-spy failed for all {len(stacks)} processes: {stacks[0].detail}")
    return StacksReading(stacks=tuple(stacks))


STACKS = Collector(
    collect=collect_stacks,
    deadline_s=lambda source: 2 * source.limits.stacks_timeout_s + PAUSE_S + 2,
    after=("engine", "completion", "ranks", "activity"),
)
