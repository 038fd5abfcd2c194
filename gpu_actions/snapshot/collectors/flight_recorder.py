"""PyTorch's flight recorder: which collective each rank entered last, from the dumps that its watchdog writes.

Read only while no token is generated, and only dumps of the running processes. A dump is written at a timeout
(TORCH_NCCL_DUMP_ON_TIMEOUT) or on request (TORCH_NCCL_DEBUG_INFO_PIPE_FILE); nothing is asked for here.
Source: https://docs.pytorch.org/tutorials/unstable/flight_recorder_tutorial.html.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from pydantic import Field, ValidationError

from gpu_actions.models import Frozen
from gpu_actions.snapshot.collector import Collector, CollectorFailed, CollectorSkipped, Source
from gpu_actions.snapshot.collectors.ranks import RankProcess, RanksReading
from gpu_actions.system.contained import FileRefused, copy_contained
from gpu_actions.system.proc import read_environment
from gpu_actions.system.processes import run_process

CHILD = "gpu_actions.snapshot.collectors.flight_recorder_child"
PREFIX_VARIABLES = ("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_FR_DUMP_TEMP_FILE")
DEFAULT_PREFIX = "/tmp/nccl_trace_rank_"  # noqa: S108  (PyTorch's own default)
MAX_DUMP_BYTES = 64 * 1024 * 1024
MAX_DUMPS = 64
PARSE_TIMEOUT_S = 5.0


class RecordedCollective(Frozen):
    """The newest collective of a process group in a rank's dump."""

    group: str
    sequence: int
    operation: str
    sizes: str = ""
    state: str = Field(default="", description="scheduled, started or completed")


class FlightDump(Frozen):
    """One rank's dump. `problem` is set if it could not be read."""

    rank: int
    pid: int
    age_s: float
    entries: tuple[RecordedCollective, ...] = ()
    problem: str = ""


class FlightReading(Frozen):
    """The dumps of a tier's ranks."""

    dumps: tuple[FlightDump, ...] = ()


def dump_file(process: RankProcess) -> Path | None:
    """Return where a rank's dump would be, as seen from this machine, or None if its environment cannot be read."""
    try:
        environment = read_environment(process.pid)
    except OSError:
        return None
    prefix = next((environment[name] for name in PREFIX_VARIABLES if environment.get(name)), DEFAULT_PREFIX)
    return Path(f"/proc/{process.pid}/root{prefix}{process.rank}") if prefix.startswith("/") else None


Copies = list[tuple[RankProcess, Path, float]]
"""Ranks with copies of their dumps, and the dumps' ages in seconds."""


async def collect_flight_recorder(source: Source) -> FlightReading:
    """Read the dumps of the ranks. Raises CollectorSkipped if no token is missing or no rank has a dump."""
    ranks: RanksReading | None = source.readings.get("ranks")
    if not source.is_stuck():
        raise CollectorSkipped("requests are not stuck")
    with tempfile.TemporaryDirectory(prefix="gpu-oncall-flight-") as folder:
        copies, problems = copy_dumps(ranks, Path(folder))
        if not copies and not problems:
            raise CollectorSkipped("no rank has written a flight recorder dump")
        dumps = await _parse(copies)
    return FlightReading(dumps=tuple(sorted((*dumps, *problems), key=lambda dump: dump.rank)))


def copy_dumps(ranks: RanksReading | None, folder: Path) -> tuple[Copies, list[FlightDump]]:
    """Copy the dumps that the running ranks wrote. Return the copies, and the dumps that are refused with the reason."""
    copies: Copies = []
    problems = []
    rows = ranks.processes if ranks is not None else ()
    # Helpers of a rank have its environment: the first process of each counts.
    by_rank = {row.rank: row for row in reversed(rows) if row.rank is not None}
    for _, process in sorted(by_rank.items())[:MAX_DUMPS]:
        file = dump_file(process)
        if file is None or not file.exists():
            continue
        copy = folder / str(process.rank)
        began_s = time.time() - (process.age_s or 0)
        try:
            found = file.stat()
            owner = Path(f"/proc/{process.pid}").stat().st_uid
            copy_contained(
                file, copy, folder=file.parent, owner_uid=owner, max_bytes=MAX_DUMP_BYTES, since_s=began_s
            )
            copies.append((process, copy, max(0.0, time.time() - found.st_mtime)))
        except (FileRefused, OSError) as error:
            problems.append(
                FlightDump(rank=process.rank or 0, pid=process.pid, age_s=0, problem=str(error)[:200])
            )
    return copies, problems


async def whole_dumps(copies: Copies) -> str:
    """Return everything that the dumps say, one JSON object a line for each rank, parsed in the child."""
    argv = [sys.executable, "-m", CHILD, "--whole", *(str(copy) for _, copy, _ in copies)]
    result = await run_process(argv, timeout_s=PARSE_TIMEOUT_S)
    lines = result.stdout.splitlines()
    rows = []
    for position, (process, _, age_s) in enumerate(copies):
        about = {"rank": process.rank, "pid": process.pid, "age_s": round(age_s, 1)}
        try:
            rows.append({**about, **json.loads(lines[position])})
        except (IndexError, ValueError):
            rows.append({**about, "problem": "it could not be parsed"})
    return "".join(f"{json.dumps(row)}\n" for row in rows)


async def _parse(copies: Copies) -> list[FlightDump]:
    if not copies:
        return []
    argv = [sys.executable, "-m", CHILD, *(str(copy) for _, copy, _ in copies)]
    result = await run_process(argv, timeout_s=PARSE_TIMEOUT_S)
    lines = result.stdout.splitlines()
    dumps = []
    for position, (process, _, age_s) in enumerate(copies):
        about = {"rank": process.rank, "pid": process.pid, "age_s": round(age_s, 1)}
        try:
            dumps.append(FlightDump.model_validate({**about, **json.loads(lines[position])}))
        except (IndexError, ValueError, ValidationError):
            dumps.append(FlightDump.model_validate({**about, "problem": "it could not be parsed"}))
    if all(dump.problem for dump in dumps):
        raise CollectorFailed(f"no dump could be parsed: {dumps[0].problem}")
    return dumps


FLIGHT_RECORDER = Collector(
    collect=collect_flight_recorder,
    deadline_s=lambda source: PARSE_TIMEOUT_S + 2,
    after=("engine", "completion", "ranks", "activity"),
)
