"""Nsight Systems for a tier whose unit was launched under it, with its own commands: start, stop and export.

nsys cannot attach to a running process. A unit that starts with `nsys launch --session-new=NAME --trace=cuda,nvtx COMMAND`
costs little until a collection is started; the application survives the stop. nsys wants `env VAR=... COMMAND`, not
`VAR=... COMMAND`, and an output folder that exists.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from gpu_actions.host import Tier
from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import EngineError, UnitError
from gpu_actions.system.proc import read_command
from gpu_actions.system.processes import run_process
from gpu_actions.system.redact import redacted_tail

NSYS = "nsys"
PLACES = (
    "/usr/local/cuda*/bin/nsys",
    "/opt/nvidia/nsight-systems/*/bin/nsys",
    "/opt/nvidia/nsight-systems-cli/*/bin/nsys",
    "/opt/nvidia/nsight-compute/*/host/target-linux-*/nsys",
    "/usr/local/cuda*/nsight-*/**/nsys",
)
START_TIMEOUT_S = 60.0
"""CUPTI is loaded into every process of the session."""
EXPORT_TIMEOUT_S = 300.0
NAME_OPTION = "--session-new"
IMPORTER = "QdstrmImporter"


class Session(Frozen):
    """A session of `nsys launch` that a tier runs in. `program` is the nsys that launched it, or the one found here."""

    name: str
    program: str
    pid: int


def find_nsys() -> str | None:
    """Return nsys on PATH, or else the newest in the folders of CUDA and Nsight."""
    places = (path for place in PLACES for path in sorted(Path("/").glob(place.lstrip("/"))))
    found = [str(path) for path in places if os.access(path, os.X_OK)]
    return shutil.which(NSYS) or (found[-1] if found else None)


async def session_of(tier: Tier) -> Session | None:
    """Return the session that the tier's unit was launched in, or None if it was not launched under nsys.

    Raises EngineError, with what to change, if it was and the session cannot be used from here.
    """
    try:
        state = await tier.unit.state()
    except UnitError:
        return None
    for pid in state.pids:
        argv = read_command(pid)
        position = next((at for at, word in enumerate(argv[:3]) if Path(word).name == NSYS), None)
        if position is None or argv[position + 1 : position + 2] != ["launch"]:
            continue
        name = _option(argv[position + 2 :], NAME_OPTION)
        if not name:
            raise EngineError(
                f"the unit {tier.unit.name} runs under `nsys launch` without a name: start it with {NAME_OPTION}={tier.name}"
            )
        program = _program_of(pid, argv[position])
        if program is None:
            raise EngineError(
                f"the unit {tier.unit.name} runs under an nsys that is not on this host (in a container?): "
                "install nsight-systems in the same version on the host, on PATH"
            )
        return Session(name=name, program=program, pid=pid)
    return None


def _option(argv: Sequence[str], option: str) -> str:
    """Return the value of `--option=VALUE` or `--option VALUE`, or an empty string."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option:
            return following
    return ""


def _program_of(pid: int, written: str) -> str | None:
    """Return the nsys to command a session with: the one that runs it, as it was written, or the one found here."""
    try:
        running = str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        running = ""
    for path in (running, written):
        if Path(path).name == NSYS and Path(path).is_absolute() and os.access(path, os.X_OK):
            return path
    return find_nsys()


async def start(session: Session, output: Path) -> None:
    """Start a collection into `output`, without its suffix. Raises EngineError with nsys's own words."""
    output.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    argv = ("start", f"--session={session.name}", "-o", str(output), "-f", "true")
    await _run(session, *argv, "--sample=none", "--cpuctxsw=none", timeout_s=START_TIMEOUT_S)


async def stop(session: Session, *, timeout_s: float) -> None:
    """Stop the collection; the application goes on. Raises EngineError with nsys's own words."""
    await _run(session, "stop", f"--session={session.name}", timeout_s=timeout_s)


async def import_raw(session: Session, raw: Path, report: Path) -> None:
    """Make a report of what a collection wrote, which nsys does itself where its importer runs.

    Raises EngineError with what to install: on a host with Nsight Compute only, the importer lacks libdw.so.1.
    """
    beside = Path(session.program).resolve().parent.parent
    importer = next(iter(sorted(beside.glob(f"*/{IMPORTER}"))), None)
    if importer is None:
        raise EngineError(
            f"nsys wrote {raw} and no report: its importer is not installed beside {session.program}; "
            "install the whole nsight-systems package"
        )
    result = await run_process((str(importer), "-i", str(raw), "-o", str(report)), timeout_s=EXPORT_TIMEOUT_S)
    if not report.is_file():
        said = " ".join(f"{result.stderr} {result.stdout}".split())
        raise EngineError(
            f"nsys wrote {raw} and no report: its importer says: {redacted_tail(said, 300)}; "
            "install what it lacks (for libdw.so.1: the package libdw1)"
        )


async def export(session: Session, report: Path, sqlite: Path) -> None:
    """Export a report to SQLite. Raises EngineError with nsys's own words."""
    argv = ("export", "--type", "sqlite", "-o", str(sqlite), "--force-overwrite", "true", str(report))
    await _run(session, *argv, timeout_s=EXPORT_TIMEOUT_S)


async def _run(session: Session, *argv: str, timeout_s: float) -> None:
    try:
        result = await run_process((session.program, *argv), timeout_s=timeout_s)
    except OSError as error:
        raise EngineError(f"{session.program} does not run: {error.strerror}") from error
    if result.exit_code != 0:
        said = " ".join(f"{result.stdout} {result.stderr}".split())
        why = f"no end within {timeout_s:g} s" if result.timed_out else redacted_tail(said, 300)
        raise EngineError(
            f"nsys {argv[0]} of session {session.name} failed: {why or f'exit code {result.exit_code}'}; "
            f"see `{session.program} sessions list` as the user of the unit"
        )
