"""A tier's processes: command, state and wait channel of each thread, and the variables that matter to a collective."""

import asyncio
from pathlib import Path

from gpu_actions.forensics.item import Collected, Missing, Scope, evidence, while_active
from gpu_actions.snapshot.collector import CollectorFailed, CollectorSkipped
from gpu_actions.snapshot.collectors.environment import collect_environment

PROCESS_FILES = ("status", "wchan", "syscall", "stack")
MAX_PROCESSES = 32


@evidence("{tier}/processes.txt", source="/proc of each process", when=while_active)
async def processes(scope: Scope) -> Collected:
    pids = scope.known_state.pids
    text = await asyncio.to_thread(lambda: "\n".join(map(_process, pids[:MAX_PROCESSES])) + "\n")
    return Collected(text=text, truncated=len(pids) > MAX_PROCESSES)


@evidence(
    "{tier}/environment.json",
    source="/proc/PID/environ: names of NCCL_* and CUDA_*, values of allow-listed ones",
    when=while_active,
)
async def environment(scope: Scope) -> Collected:
    main_pid = scope.known_state.main_pid
    try:
        reading = await collect_environment(() if main_pid is None else (main_pid,))
    except (CollectorFailed, CollectorSkipped) as error:
        raise Missing(str(error)) from error
    return Collected(text=reading.model_dump_json(indent=1))


def _process(pid: int) -> str:
    folder = Path(f"/proc/{pid}")
    parts = [f"== process {pid}"]
    try:
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError as error:
        return f"{parts[0]}\ngone or not readable: {error}"
    parts.append(f"command: {command.strip()}")
    parts += [f"-- {name}\n{_text(folder / name)}" for name in PROCESS_FILES]
    # A stuck kernel call shows in the state or the wait channel of one thread.
    parts.append("-- threads: id, state, wchan")
    try:
        for task in sorted((folder / "task").iterdir()):
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            parts.append(f"{task.name} {state} {_text(task / 'wchan')}")
    except OSError as error:
        parts.append(f"not readable: {error}")
    return "\n".join(parts)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError as error:
        return f"not readable: {error.strerror}"
