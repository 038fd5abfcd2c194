"""The tier's processes as the kernel sees them: state, wait channel, and CPU time used within the window.

Read from /proc (proc(5)): a stopped or dead rank is visible there within milliseconds, long before a collective's watchdog
fires (300-600 s).
"""

import contextlib
import time
from collections.abc import Collection, Mapping
from typing import Literal

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.serving.registry import coordinates_in_title, rank_in_title
from gpu_actions.snapshot.collector import Collector, CollectorFailed, CollectorSkipped, Source
from gpu_actions.snapshot.target import TriageTarget
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
    found_by: Literal["unit", "listener", "title"] = Field(
        default="unit",
        description="how it was found: by its unit, as the listener on the engine's port, or by its title",
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
    unit_active: bool | None = None


def rank_of(name: str, command: list[str], environment: dict[str, str]) -> int | None:
    """Return a process's rank: from `--rank N`, else from the worker's title, else from torchrun's RANK."""
    for position, part in enumerate(command):
        value = command[position + 1] if part == "--rank" and position + 1 < len(command) else None
        if part.startswith("--rank="):
            value = part.partition("=")[2]
        if value is not None and value.isdigit():
            return int(value)
    title = command[0] if command else name
    if (rank := rank_in_title(title)) is not None:
        return rank
    if "WORLD_SIZE" in environment and environment.get("RANK", "").isdigit():
        return int(environment["RANK"])
    return None


def numbered(titles: Mapping[int, dict[str, int]]) -> dict[int, int]:
    """Return the ranks of processes, by pid, from the coordinates in their titles.

    Ranks are numbered as engines do: data-parallel replicas outermost, then pipeline stages, then tensor-parallel ranks. A
    tensor-parallel number that never repeats is the rank itself (SGLang's data-parallel attention).
    """
    axes = ("DP", "PP", "TP")
    inner = [where.get("TP") for where in titles.values()]
    if None not in inner and len(set(inner)) == len(inner):
        return {pid: where["TP"] for pid, where in titles.items()}
    sizes = {axis: 1 + max((where.get(axis, 0) for where in titles.values()), default=0) for axis in axes}
    ranks = {}
    for pid, where in titles.items():
        rank = 0
        for axis in axes:
            rank = rank * sizes[axis] + where.get(axis, 0)
        ranks[pid] = rank
    return ranks


def titles_of(titles: Mapping[int, str]) -> dict[int, dict[str, int]]:
    """Return the coordinates of the workers, by pid; those of the engines' cores if there are no workers."""
    for core in (False, True):
        found = {
            pid: where for pid, title in titles.items() if (where := coordinates_in_title(title, core=core))
        }
        if found:
            return found
    return {}


def roots_of(target: TriageTarget) -> tuple[int, ...]:
    """Return the tier's main processes. Raises CollectorSkipped without any, CollectorFailed for an unreadable pid file
    or a unit whose driver fails."""
    if not target.tier_expected:
        raise CollectorSkipped("the tier is stopped on purpose")
    if target.pid_file is None:
        if target.pids or target.members:
            return target.pids
        if target.listener is not None:
            return (target.listener,)
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
    table: Mapping[int, ProcessRow], *, known: Collection[int], expected: int | None
) -> list[ProcessRow]:
    """Return the tier's workers outside its unit (another container, a scheduler such as Ray), by their titles.

    They count only if there are exactly as many as the tier has ranks: two tiers of one engine cannot be told apart by title.
    """
    if expected is None or expected < 2:
        return []
    titles = {
        pid: (read_command(pid) or [row.name])[0]
        for pid, row in table.items()
        if pid not in known and not row.zombie
    }
    found = titles_of(titles)
    distinct = {tuple(sorted(where.items())) for where in found.values()}
    return [table[pid] for pid in sorted(found)] if len(found) == len(distinct) == expected else []


async def collect_ranks(source: Source) -> RanksReading:
    """Read the process trees of the tier at both ends of the window. Raises as `roots_of`."""
    roots = roots_of(source.target)
    table = process_table()
    uptime_ticks = time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS_PER_S
    read_at = time.monotonic()
    target = source.target
    rows = tree_of([*roots, *target.members], table)
    details = {row.pid: _identify(row) for row in rows[:MAX_PROCESSES]}
    by_title: set[int] = set()
    if not any(rank is not None for rank, _, _ in details.values()):
        known = {row.pid for row in [*rows, *tree_of(target.other_pids, table)]}
        others = elsewhere(table, known=known, expected=target.ranks)
        by_title = {row.pid for row in others}
        rows += others
        details |= {row.pid: _identify(row) for row in others}
    found_by = "unit" if target.pids or target.members or target.pid_file else "listener"
    coordinates = titles_of({pid: title for pid, (_, _, title) in details.items()})
    ranks = numbered(coordinates)
    if not any(row.state in SUSPECT_STATES for row in rows):
        source.window.needs_no_more("ranks")
    await source.window_end()
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
                found_by="title" if row.pid in by_title else found_by,
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
        unit_active=source.target.unit_active,
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


RANKS = Collector(collect=collect_ranks, deadline_s=lambda source: source.window_s + 3, observes=True)
