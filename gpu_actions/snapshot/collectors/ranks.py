"""The tier's processes as the kernel sees them: state, wait channel, and CPU time used within the window.

Read from /proc (proc(5)): a stopped or dead rank is visible there within milliseconds, long before a collective's watchdog
fires (300-600 s).
"""

import asyncio
import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.serving.registry import is_core_title
from gpu_actions.snapshot.collector import Collector, CollectorFailed, CollectorSkipped, Source
from gpu_actions.snapshot.collectors.nvml import collect_nvml
from gpu_actions.snapshot.rank_numbers import may_be_rank, numbered, others_of_job, rank_of, titles_of
from gpu_actions.snapshot.target import TriageTarget, listener_of_url
from gpu_actions.system.cgroups import is_frozen_by_cgroup, read_membership
from gpu_actions.system.proc import (
    TICKS_PER_S,
    ProcessRow,
    namespace_pid,
    process_table,
    read_command,
    read_environment,
    read_file,
    read_process,
    tree_of,
)

MAX_PROCESSES = 256
SUSPECT_STATES = "TtDZX"
"""States that mean something only if they last."""
NVML_WAIT_S = 2.0
"""How long the list of NVML's processes is waited for after the window. A driver that hangs must not hide the states."""
GPU_PAUSE_S = 0.2
"""Between the two readings of a rank that was found by its GPU after the window."""


class RankProcess(Frozen):
    """One process of the tier. States are the kernel's letters (R, S, D, T, t, Z, X, I); `gone` = it ended."""

    pid: int
    parent: int | None = None
    name: str = ""
    rank: int | None = Field(default=None, description="its rank, if command line or environment name it")
    coordinates: dict[str, int] = Field(
        default_factory=dict, description="DP, PP, TP, EP, as its process title names them"
    )
    root: bool = False
    gpu: int | None = Field(default=None, description="the GPU whose memory it holds, as NVML lists it")
    found_by: Literal["unit", "listener", "title", "job", "gpu"] = Field(
        default="unit",
        description="how it was found: by its unit, as the listener on the engine's port, by its title, as a numbered rank of "
        "the same job, or by its GPU",
    )
    container_pid: int | None = Field(
        default=None, description="its pid in its own pid namespace, if it has one"
    )
    container: str = Field(
        default="", description="the container it runs in, with its runtime and pod, if any"
    )
    paused: bool = Field(
        default=False, description="a freezer holds its control group (docker pause, podman pause)"
    )
    state_first: str | None = None
    state_last: str | None = None
    wchan: str | None = None
    cpu_s: float | None = Field(default=None, description="CPU time used within the window")
    age_s: float | None = None

    @property
    def is_alive(self) -> bool:
        """True unless it ended, or is a zombie, at the end of the window."""
        return self.state_last not in ("Z", "X", "gone", None)


class RanksReading(Frozen):
    """The tier's process tree over the window."""

    roots: tuple[int, ...] = ()
    missing_roots: tuple[int, ...] = Field(default=(), description="main processes that do not exist")
    processes: tuple[RankProcess, ...] = ()
    more_processes: int = 0
    unclaimed: int = Field(
        default=0,
        description="processes that may be ranks that were not found: workers by title, or on a GPU without a known rank",
    )
    unit_active: bool | None = None


def roots_of(target: TriageTarget, listeners: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the tier's main processes. Raises CollectorSkipped without any, CollectorFailed for an unreadable pid file
    or a unit whose driver fails."""
    if not target.tier_expected:
        raise CollectorSkipped("the tier is stopped on purpose")
    if target.pid_file is None:
        if target.pids or target.members:
            return target.pids
        if target.listener is not None:
            return (target.listener,)
        if listeners:
            return tuple(dict.fromkeys(listeners))
        if target.unit_error:
            raise CollectorFailed(f"the unit's driver failed: {target.unit_error}")
        raise CollectorSkipped("no process of the tier is known")
    try:
        numbers = [int(word) for word in target.pid_file.read_text()[:4096].split()]
    except FileNotFoundError:
        raise CollectorFailed(f"the pid file {target.pid_file} does not exist") from None
    except (OSError, ValueError) as error:
        raise CollectorFailed(f"the pid file {target.pid_file} holds no process ids: {error}") from None
    return (*target.pids, *numbers)


def elsewhere(
    table: Mapping[int, ProcessRow],
    *,
    known: Collection[int],
    inside: Mapping[int, dict[str, int]],
    expected: int | None,
) -> tuple[list[ProcessRow], int]:
    """Return the tier's workers outside its unit (another container, a scheduler such as Ray) by their titles, and how many
    others may be some.

    They count only if they and those `inside` are exactly the tier's ranks: two tiers of one engine have the same titles.
    """
    if expected is None or expected < 2:
        return [], 0
    titles = {
        pid: (read_command(pid) or [row.name])[0]
        for pid, row in table.items()
        if pid not in known and not row.zombie
    }
    found = titles_of(titles)
    together = [tuple(sorted(where.items())) for where in (*inside.values(), *found.values())]
    axes = {tuple(axis for axis, _ in where) for where in together}
    if len(together) == len(set(together)) == expected and len(axes) == 1:
        return [table[pid] for pid in sorted(found)], 0
    missing = [pid for pid, where in found.items() if where not in inside.values()]
    return [], len(missing)


async def gpus_by_pid(source: Source, *, missing: int) -> dict[int, int]:
    """Return the GPU of each process that NVML lists; empty if NVML has not answered.

    A monitor's check does not read NVML. It does so here if ranks are missing while requests are stuck.
    """
    reading = None
    with contextlib.suppress(TimeoutError, CollectorFailed, CollectorSkipped):
        async with asyncio.timeout(NVML_WAIT_S):
            if source.reads_nvml and "nvml" in source.finished:
                await source.finished["nvml"].wait()
                reading = source.readings.get("nvml")
            elif missing > 0 and not source.reads_nvml and "engine" in source.finished:
                await source.finished["engine"].wait()
                if source.is_stuck():
                    reading = await collect_nvml(
                        expect_gpus=source.target.expect_gpus, window_s=0, stall_s=NVML_WAIT_S / 2
                    )
    return {
        row.pid: gpu.index for gpu in (reading.gpus if reading is not None else ()) for row in gpu.processes
    }


def by_gpu(
    gpus: Mapping[int, int], *, own: Collection[int], others: Collection[int], missing: int
) -> tuple[list[ProcessRow], int]:
    """Return the tier's ranks by the GPUs whose memory they hold, and how many processes may be some.

    These are processes of an engine or of Python, on GPUs of which no process of this or another tier holds memory. They count
    only if there are exactly as many as ranks are missing, each on a GPU of its own: a stranger must not be taken for a rank.
    """
    taken = {gpus[pid] for pid in (*own, *others) if pid in gpus}
    free = [pid for pid, gpu in gpus.items() if gpu not in taken and pid not in others]
    rows = [
        row
        for pid in free
        if (row := read_process(pid)) is not None
        and not row.zombie
        and may_be_rank(row.name, read_command(pid))
    ]
    if missing and len(rows) == missing == len({gpus[row.pid] for row in rows}):
        return rows, 0
    return [], len(rows) if missing else 0


async def collect_ranks(source: Source) -> RanksReading:
    """Read the process trees of the tier at both ends of the window. Raises as `roots_of`."""
    target = source.target
    listeners = await listeners_of(target)
    roots = roots_of(target, tuple(listeners))
    table = process_table()
    uptime_ticks = time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS_PER_S
    read_at = time.monotonic()
    rows = tree_of(dict.fromkeys((*roots, *target.members, *listeners)), table)
    details = {row.pid: _identify(row) for row in rows[:MAX_PROCESSES]}
    found_by: dict[int, Literal["title", "job", "gpu"]] = {}
    inside = titles_of(_titles(details))
    numbers = {rank for rank, _, _ in details.values() if rank is not None}
    other_tiers = {row.pid for row in tree_of(target.other_pids, table)}
    unclaimed, expected = 0, target.ranks or 0
    known = {*details, *(row.pid for row in rows), *other_tiers}
    if len(inside) < expected and (inside or not numbers) and not listeners:
        others, unclaimed = elsewhere(table, known=known, inside=inside, expected=expected)
        found_by |= {row.pid: "title" for row in others}
        rows += others
        details |= {row.pid: _identify(row) for row in others}
    # A main process without a number may be rank 0.
    if not inside and not found_by and len(numbers | {0}) < expected and not listeners:
        others = others_of_job(table, known=known, inside=rows, expected=expected)
        found_by |= {row.pid: "job" for row in others}
        rows += others
        details |= {row.pid: _identify(row) for row in others}
    default = "unit" if target.pids or target.members or target.pid_file else "listener"
    if not any(row.state in SUSPECT_STATES for row in rows):
        source.window.needs_no_more("ranks")
    await source.window_end()
    with_number = {pid for pid, (rank, _, _) in details.items() if rank is not None}
    with_number |= titles_of(_titles(details)).keys()
    gpus = await gpus_by_pid(source, missing=(target.ranks or 1) - len(with_number))
    known = {row.pid for row in rows}
    ranked = {pid for pid in known if pid in gpus or details.get(pid, (None,))[0] is not None}
    late, unclaimed_by_gpu = by_gpu(
        gpus, own=known, others=other_tiers, missing=max(0, (target.ranks or 1) - len(ranked))
    )
    if late:
        found_by |= {row.pid: "gpu" for row in late}
        rows += late
        details |= {row.pid: _identify(row) for row in late}
        await asyncio.sleep(GPU_PAUSE_S)
    titles = _titles(details)
    coordinates = in_replicas(titles_of(titles), listeners, table, titles)
    ranks = numbered(coordinates)
    first = _rank_0(roots, {pid: rank for pid, (rank, _, _) in details.items()}, target.ranks)
    if first is not None:
        ranks.setdefault(first, 0)
    processes = []
    for row in rows[:MAX_PROCESSES]:
        again = read_process(row.pid)
        same = again is not None and again.started == row.started
        rank, wchan, _ = details[row.pid]
        processes.append(
            RankProcess(
                pid=row.pid,
                parent=row.parent,
                name=row.name[:64],
                rank=ranks.get(row.pid, rank),
                coordinates=coordinates.get(row.pid, {}),
                root=row.pid in roots,
                gpu=gpus.get(row.pid),
                found_by=found_by.get(row.pid, default),
                container_pid=inner if (inner := namespace_pid(row.pid)) != row.pid else None,
                container=member.text if (member := read_membership(row.pid)).container else "",
                paused=is_frozen_by_cgroup(row.pid),
                state_first=row.state,
                state_last=again.state if again is not None and same else "gone",
                wchan=wchan,
                cpu_s=(again.cpu_ticks - row.cpu_ticks) / TICKS_PER_S if again is not None and same else None,
                age_s=max(0.0, (uptime_ticks - row.started) / TICKS_PER_S) + (time.monotonic() - read_at),
            )
        )
    return RanksReading(
        roots=roots,
        missing_roots=tuple(pid for pid in roots if pid not in table),
        processes=tuple(processes),
        more_processes=max(0, len(rows) - MAX_PROCESSES),
        unclaimed=0 if late else max(unclaimed, unclaimed_by_gpu),
        unit_active=source.target.unit_active,
    )


def _titles(details: Mapping[int, tuple[int | None, str | None, str]]) -> dict[int, str]:
    return {pid: title for pid, (_, _, title) in details.items()}


async def listeners_of(target: TriageTarget) -> dict[int, int]:
    """Return the processes that listen on the ports of the tier's replicas, with the number of the replica."""
    if not target.tier_expected:
        return {}
    owners = await asyncio.to_thread(lambda: [listener_of_url(url) for url in target.replica_urls])
    return {owner: number for number, owner in enumerate(owners) if owner is not None}


def in_replicas(
    coordinates: Mapping[int, dict[str, int]],
    listeners: Mapping[int, int],
    table: dict[int, ProcessRow],
    titles: Mapping[int, str],
) -> dict[int, dict[str, int]]:
    """Return the coordinates with the replica of each process as its DP, where replicas are servers of their own.

    A replica without workers has one rank: its engine's core, else its server.
    """
    found = dict(coordinates)
    for owner, number in listeners.items():
        tree = [row.pid for row in tree_of((owner,), table)]
        workers = [pid for pid in tree if pid in coordinates]
        cores = [pid for pid in tree if is_core_title(titles.get(pid, ""))]
        for pid in workers or cores[:1] or [owner]:
            found[pid] = {
                "DP": number,
                **{axis: at for axis, at in coordinates.get(pid, {}).items() if axis != "DP"},
            }
    return found


def _rank_0(roots: Sequence[int], ranks: Mapping[int, int | None], expected: int | None) -> int | None:
    """Return the main process if it is rank 0: only the ranks from 1 up say which they are, as children of one that needs no
    number."""
    known = {rank for rank in ranks.values() if rank is not None}
    is_alone = len(roots) == 1 and ranks.get(roots[0], 0) is None
    return (
        roots[0] if is_alone and expected is not None and known == set(range(1, expected)) and known else None
    )


def _identify(row: ProcessRow) -> tuple[int | None, str | None, str]:
    """Return a process's rank, the kernel function that it waits in, and its title, if they can be read."""
    command = read_command(row.pid)
    rank = rank_of(row.name, command, {})
    if rank is None:  # torchrun's ranks are numbered in the environment only
        with contextlib.suppress(OSError):  # another user's process, or a zombie
            rank = rank_of(row.name, command, read_environment(row.pid))
    wchan = read_file(row.pid, "wchan").decode(errors="replace").strip("\0\n ")
    return rank, wchan if wchan not in ("", "0") else None, command[0] if command else row.name


RANKS = Collector(collect=collect_ranks, deadline_s=lambda source: source.window_s + 4, observes=True)
