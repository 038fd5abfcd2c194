"""What an earlier demonstration of the same folder left running after a kill, and who holds the ports."""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import psutil

from gpu_actions.system.listening import listening_process

LOCK_NAME = "demo.lock"
END_GRACE_S = 5.0
PROGRAMS = {
    "bot": "bot.cli",
    "workspace": "demo.workspace",
    "engine": "demo.engine",
    "router": "haproxy",
    "supervisor": "gpu_actions.system.supervisor",
}
"""Processes of a demonstration: the name of each and the word of its command line that identifies it."""


class AlreadyRunning(Exception):
    """Raised when another demonstration runs on the folder."""


@contextlib.contextmanager
def only_demonstration_of(state_dir: Path) -> Iterator[None]:
    """Hold the folder for the length of the block. Raises AlreadyRunning with the process id of the other one."""
    handle = os.open(state_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(handle, 32).decode(errors="replace").strip()
            raise AlreadyRunning(
                f"a demonstration already runs on {state_dir} (process {pid}): use that one, or stop it with Ctrl-C "
                f"or `kill {pid}`, or start a second one with --free-ports and another --state folder"
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


def processes_of(state_dir: Path, *, programs: Iterable[str] = PROGRAMS) -> list[psutil.Process]:
    """Return the processes of a demonstration in `state_dir`, by command line and working directory.

    Process ids in files are not needed for it, so a damaged file or a deleted folder hides nothing.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            words = _words(process)
            if not any(PROGRAMS[program] in words for program in programs):
                continue
            places = [*process.cmdline(), f"{process.cwd()}/"]  # the router is known by its working directory
            if any(place.startswith(f"{state_dir}/") for place in places):
                found.append(process)
    return found


def _words(process: psutil.Process) -> set[str]:
    return {Path(word).name for word in process.cmdline()}


def is_supervisor(process: psutil.Process) -> bool:
    """Return True for the supervisor of a unit, which starts its program again when it ends."""
    with contextlib.suppress(psutil.Error):
        return PROGRAMS["supervisor"] in _words(process)
    return False


def end_processes(processes: Iterable[psutil.Process]) -> None:
    """End processes: supervisors at once, or they would start their programs again; the others after a grace."""
    processes = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if is_supervisor(process):
                process.kill()
            else:
                process.terminate()
                process.resume()
    _, left = psutil.wait_procs(processes, timeout=END_GRACE_S)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=END_GRACE_S)


def ports_of_strangers(ports: Mapping[str, int], own: set[int]) -> dict[str, str]:
    """Return who holds each taken port, and what to type, in one sentence. Skip ports of the processes `own`."""
    found = {}
    for name, port in ports.items():
        owner = listening_process(port)
        if owner is None:
            found[name] = (
                f"port {port} ({name}) is taken by a process of another user: start with --free-ports"
            )
        elif owner.pid not in own:
            found[name] = f"port {port} ({name}) is taken by {_described(owner)}, or start with --free-ports"
    return found


def _described(owner: psutil.Process) -> str:
    """Say who a process is and how to end it."""
    with contextlib.suppress(psutil.Error):
        who = f"{owner.name()} (process {owner.pid})"
        if _words(owner).isdisjoint(PROGRAMS.values()):
            return f"{who}: end it with `kill {owner.pid}`"
        family = [process.pid for process in owner.parents() if is_supervisor(process)]
        kill = " ".join(map(str, [*family, owner.pid]))
        return f"{who} of another demonstration: stop that one, or end what it left with `kill -9 {kill}`"
    return f"process {owner.pid}: end it with `kill {owner.pid}`"
