"""Which rank a process is, from its command line, its title or torchrun's variables. Pure, but for `rank_in_job`."""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from gpu_actions.serving.registry import PROCESS_WORDS, coordinates_in_title, rank_in_title
from gpu_actions.system.proc import ProcessRow, read_command, read_environment

RANK_WORDS = ("python", "pt_main", *PROCESS_WORDS)


class RankInJob(NamedTuple):
    """A rank, and the job whose ranks it belongs to: their common command line, or torchrun's world size and rendezvous."""

    job: tuple[str, ...]
    rank: int


def rank_of(name: str, command: list[str], environment: Mapping[str, str]) -> int | None:
    """Return a process's rank: from `--rank N`, else from the worker's title, else from torchrun's RANK."""
    if (flagged := _by_flag(command)) is not None:
        return flagged.rank
    if (rank := rank_in_title(command[0] if command else name)) is not None:
        return rank
    launched = _by_torchrun(environment)
    return None if launched is None else launched.rank


def _by_flag(command: Sequence[str]) -> RankInJob | None:
    for position, part in enumerate(command):
        words = command[position : position + 2] if part == "--rank" else part.split("=", 1)
        if len(words) == 2 and words[0] == "--rank" and words[1].isdigit():
            end = position + (2 if part == "--rank" else 1)
            return RankInJob((*command[:position], *command[end:]), int(words[1]))
    return None


def _by_torchrun(environment: Mapping[str, str]) -> RankInJob | None:
    if "WORLD_SIZE" not in environment or not environment.get("RANK", "").isdigit():
        return None
    job = (environment.get(name, "") for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return RankInJob(tuple(job), int(environment["RANK"]))


def rank_in_job(row: ProcessRow) -> RankInJob | None:
    """Return the job and rank of a process of Python or an engine that is numbered by a flag or by torchrun, or None."""
    command = read_command(row.pid)
    if row.zombie or not may_be_rank(row.name, command):
        return None
    if (flagged := _by_flag(command)) is not None:
        return flagged
    with contextlib.suppress(OSError):  # another user's process, or one that ended
        return _by_torchrun(read_environment(row.pid))
    return None


def may_be_rank(name: str, command: Sequence[str]) -> bool:
    """Return True for a process of Python or of an engine."""
    words = f"{name} {' '.join(command[:2])}".lower()
    return any(word in words for word in RANK_WORDS)


def others_of_job(
    table: Mapping[int, ProcessRow],
    *,
    known: Collection[int],
    inside: Collection[ProcessRow],
    expected: int,
) -> list[ProcessRow]:
    """Return the numbered ranks outside the unit (in another container) that are of the same job as those inside.

    Two jobs may look alike, for example with torchrun's usual rendezvous in two containers. Ranks that repeat one inside, or
    each other, are therefore another job's. Without a numbered rank inside nothing ties a job to the tier: a stranger's job
    of the same size, when it ends, must not look like the death of the tier's ranks.
    """
    own = [found for row in inside if (found := rank_in_job(row)) is not None]
    if not own:
        return []
    own_jobs = {found.job for found in own}
    same = [
        (found.rank, row)
        for pid, row in table.items()
        if pid not in known and (found := rank_in_job(row)) is not None and found.job in own_jobs
    ]
    ranks = [rank for rank, _ in same] + [found.rank for found in own]
    if len(set(ranks)) < len(ranks) or any(rank >= expected for rank in ranks):
        return []
    return [row for _, row in sorted(same, key=lambda one: one[0])]


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
