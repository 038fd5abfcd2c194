"""Python stacks of the ranks, by py-spy: taken only while no token is generated (it costs CPU), never with local variables.

`--nonblocking` reads the process's memory without stopping it: it works on a stopped rank and does not disturb a running one.
A rank whose Python functions do not tell what it waits for (`.item()` of a tensor that a collective on the GPU holds back) is
also read with `--native`, which stops it for the moment of the reading; it generates nothing anyway.
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
from gpu_actions.system.proc import blocked_threads
from gpu_actions.system.processes import ProcessResult, run_process

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


IDLE = re.compile(
    r"^(?:select|poll|wait|_wait_for_tstate_lock|get|accept|(?:Popen\.)?_try_wait|_worker|run_forever|_run_once)$"
)
IDLE_FILES = re.compile(r"(?:selectors|threading|queue|socketserver|subprocess)\.py$|asyncio/|concurrent/")
"""Innermost functions of a thread that waits for work to come, not for the work itself."""

WAITS_FOR_GPU = re.compile(
    r"^(?:cu(?:da)?(?:Stream|Event|Device|Ctx)Synchronize|cu(?:da)?Memcpy|nccl[A-Z]|ncclGroup)|c10d::|gloo::|ProcessGroup"
)
"""Native functions in which a rank waits for its GPU or for other ranks: it is no culprit by its stack."""

MAX_NATIVE = 4


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
    native: tuple[str, ...] = Field(
        default=(), description="native functions, innermost first, where Python does not tell"
    )
    blocked: str | None = Field(
        default=None,
        description="kernel function in which a thread of it was blocked (state D) at both readings; empty = unknown function",
    )
    waits_for_gpu: bool | None = Field(
        default=None, description="it waits for its GPU or other ranks in native code; None = not read"
    )


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
    """Parse `py-spy dump --json`: the thread that is in a collective, else the deepest that does not wait for work."""
    try:
        threads = json.loads(text)
        stacks = [thread["frames"] for thread in threads if isinstance(thread["frames"], list)]
        busy = [frames for frames in stacks if frames and not _is_idle(frames[0])]
        deepest = max(busy or stacks or [[]], key=len)
        chosen = next((frames for frames in stacks if collective_of(frames)), deepest)
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
            "steady": _function(first) == _function(second),
        }
    )


def still_blocked(before: dict[int, tuple[int, str]], after: dict[int, tuple[int, str]]) -> str | None:
    """Return the kernel function of a thread that was blocked at both readings and did nothing in between, or None."""
    return next(
        (wchan for thread, (ticks, wchan) in after.items() if before.get(thread, (-1,))[0] == ticks), None
    )


def _function(stack: StackReading) -> str:
    """Return the innermost function and its file, without the line: a loop that spins is in another line each time."""
    return stack.frames[0].rpartition(":")[0] if stack.frames else ""


def _is_idle(frame: dict[str, Any]) -> bool:
    return bool(IDLE.match(str(frame.get("name", ""))) and IDLE_FILES.search(str(frame.get("filename", ""))))


def with_native(stack: StackReading, text: str) -> StackReading:
    """Return a reading with what `py-spy dump --native --json` shows of the thread that it chose."""
    try:
        threads = [thread["frames"] for thread in json.loads(text)]
        names = [[str(frame["name"])[:120] for frame in frames] for frames in threads]
    except (ValueError, KeyError, TypeError, RecursionError):
        return stack
    wanted = stack.frames[0].partition(" (")[0] if stack.frames else ""
    chosen = next((row for row in names if wanted in row), names[0] if names else [])
    waits = any(WAITS_FOR_GPU.search(name) for name in chosen[:TOP_FRAMES])
    return stack.model_copy(update={"native": tuple(chosen[:TOP_FRAMES]), "waits_for_gpu": waits})


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

    async def py_spy(process: RankProcess, how: str) -> ProcessResult:
        async with limit:
            argv = [program, "dump", how, "--json", "--pid", str(process.pid)]
            return await run_process(argv, timeout_s=timeout_s, kill_grace_s=0.1)

    async def dump(process: RankProcess) -> StackReading:
        result = await py_spy(process, "--nonblocking")
        if result.exit_code != 0 or result.timed_out:
            lines = result.stderr.strip().splitlines() or [""]
            detail = f"no answer within {timeout_s:g} s" if result.timed_out else lines[-1]
            return StackReading(pid=process.pid, rank=process.rank, outcome="failed", detail=detail[:200])
        return parse_dump(result.stdout, pid=process.pid, rank=process.rank)

    chosen = processes_to_dump(ranks)
    threads = [blocked_threads(process.pid) for process in chosen]
    first = await asyncio.gather(*[dump(process) for process in chosen])
    await asyncio.sleep(PAUSE_S)
    second = await asyncio.gather(*[dump(process) for process in chosen])
    stacks = [
        both(*pair).model_copy(update={"blocked": still_blocked(before, blocked_threads(process.pid))})
        for *pair, before, process in zip(first, second, threads, chosen, strict=True)
    ]
    if stacks and all(stack.outcome == "failed" for stack in stacks):
        raise CollectorFailed(f"py-spy failed for all {len(stacks)} processes: {stacks[0].detail}")
    if any(is_gpu_host(source.readings.get(name)) for name in ("nvml", "activity")):
        stacks = [
            with_native(stack, (await py_spy(process, "--native")).stdout)
            if needs_native(stack, process)
            else stack
            for stack, process in list(zip(stacks, chosen, strict=True))[:MAX_NATIVE]
        ] + stacks[MAX_NATIVE:]
    return StacksReading(stacks=tuple(stacks))


def is_gpu_host(reading: Any) -> bool:
    """Return True if a reading of NVML has GPUs."""
    return reading is not None and bool(reading.gpus)


def needs_native(stack: StackReading, process: RankProcess) -> bool:
    """Return True if Python does not tell what a rank waits for. A stopped one cannot be read so, and its state says enough."""
    return stack.outcome == "ok" and stack.collective is None and process.state_last in ("S", "R", "D")


STACKS = Collector(
    collect=collect_stacks,
    deadline_s=lambda source: (2 + MAX_NATIVE) * source.limits.stacks_timeout_s + PAUSE_S + 2,
    after=("engine", "completion", "ranks", "activity"),
)
