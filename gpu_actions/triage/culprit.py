"""Which rank do the others wait for, and why? Pure: from process states, RAS counts, flight recorder dumps and stacks.

A rank that is stopped, dead, behind or elsewhere is the culprit; ranks inside the same collective are its victims. Where the
evidence does not single one out, the candidates are listed.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from gpu_actions.snapshot.activity import SPINNING_PERCENT
from gpu_actions.snapshot.collectors.flight_recorder import FlightReading, RecordedCollective
from gpu_actions.snapshot.collectors.ranks import RankProcess
from gpu_actions.snapshot.collectors.ras import RasCommunicator, RasReading
from gpu_actions.snapshot.collectors.stacks import StackReading
from gpu_actions.snapshot.model import Snapshot

DRIVER_WAITS = ("nv", "uvm", "os_", "rm_")
"""Beginnings of the kernel functions of NVIDIA's driver, in which a process blocks on its GPU or a link."""
HOST_WAITS = (
    "io_schedule",
    "folio_wait",
    "rpc_wait",
    "nfs",
    "lustre",
    "ceph",
    "fuse",
    "jbd2",
    "xfs",
    "ext4",
    "throttle",
    "mem_cgroup",
    "shrink_",
    "swap",
    "blk_",
    "wait_on_page",
)
"""Kernel functions in which a process waits for a disk, a network file system or memory."""


MAX_LISTED = 16
"""Ranks of a list in evidence; a summary names the first."""


class Kind(StrEnum):
    """Why the others wait for a rank."""

    DEAD = "dead"
    STOPPED = "stopped"
    KERNEL = "stuck in the kernel"
    LINK = "stuck in the kernel (GPU or link)"
    HOST = "waiting for the host"
    OTHER_COLLECTIVE = "in another collective"
    BEHIND = "behind"
    OUTSIDE = "outside the collective"
    STRAGGLER = "slow"


class Culprit(NamedTuple):
    """A rank that the others wait for: why, where it is, what to do about it."""

    rank: int
    kind: Kind
    where: str
    todo: str = ""

    @property
    def text(self) -> str:
        return f"rank {self.rank} is {self.kind}{f' ({self.where})' if self.where else ''}"

    def evidence(self) -> dict[str, Any]:
        return {"rank": self.rank, "kind": self.kind.value, "where": self.where}


def culprits_of(snapshot: Snapshot) -> tuple[Culprit, ...]:
    """Return the culprits by the most telling source that names any; empty if no source singles one out."""
    processes = snapshot.ranks.processes if snapshot.ranks is not None else ()
    return tuple(_by_state(processes)) or elsewhere_of(snapshot)


def elsewhere_of(snapshot: Snapshot) -> tuple[Culprit, ...]:
    """Return the culprits that flight recorder dumps, NCCL's counts, stacks or GPUs name: a second source for a hang.

    A rank that is behind and whose stack is outside any collective is told with the place.
    """
    stacks = snapshot.stacks.stacks if snapshot.stacks is not None else ()
    placed = {stack.rank: stack for stack in stacks if _is_outside(stack)}
    for source in (
        recorded_culprits(snapshot.flight_recorder),
        counted_culprits(snapshot.ras),
        _by_threads(stacks, expected=snapshot.expected.ranks),
        _by_stacks(stacks, spinning=_gpu_states(snapshot)[0], expected=snapshot.expected.ranks),
        _by_gpus(snapshot),
    ):
        if found := tuple(source):
            return tuple(_with_place(one, placed.get(one.rank)) for one in found)
    return ()


def _with_place(culprit: Culprit, stack: StackReading | None) -> Culprit:
    """Return a culprit that is only known to be behind with what its stack, which is outside the collective, says."""
    if culprit.kind is not Kind.BEHIND or stack is None:
        return culprit
    if stack.blocked is not None:
        return _blocked(culprit.rank, stack.blocked, f"{_place(stack)}; {culprit.where}")
    return culprit._replace(kind=Kind.OUTSIDE, where=f"{stack.frames[0]}; {culprit.where}")


def candidates_of(snapshot: Snapshot) -> tuple[int, ...]:
    """Return the ranks among which the culprit must be, if nothing singles one out."""
    processes = snapshot.ranks.processes if snapshot.ranks is not None else ()
    return tuple(sorted({process.rank for process in processes if process.rank is not None}))


def _by_state(processes: Sequence[RankProcess]) -> Iterator[Culprit]:
    ranked = [process for process in processes if process.rank is not None]
    for process in ranked:
        assert process.rank is not None  # noqa: S101
        state = process.state_last
        if not process.is_alive:
            yield Culprit(
                process.rank,
                Kind.DEAD,
                f"pid {process.pid}",
                "Restart the tier: a rank does not come back alone.",
            )
        elif process.paused:
            todo = f"Resume {process.container or 'its control group'} (docker unpause, podman unpause)."
            yield Culprit(process.rank, Kind.STOPPED, f"paused, pid {process.pid}", todo)
        elif state in ("T", "t") and process.state_first in ("T", "t"):
            todo = f"kill -CONT {process.pid} lets it go on."
            if state == "t":
                todo = f"Detach the debugger of pid {process.pid} (TracerPid in /proc/{process.pid}/status)."
            yield Culprit(process.rank, Kind.STOPPED, f"pid {process.pid}", todo)
        elif state == process.state_first == "D" and not process.cpu_s:
            yield _blocked(process.rank, process.wchan, f"pid {process.pid}")


def _blocked(rank: int, wchan: str | None, where: str) -> Culprit:
    """Return the culprit that waits in a function of the kernel, by what the function waits for."""
    wait = wchan or "unknown function"
    if any(word in wait for word in HOST_WAITS):
        return Culprit(
            rank, Kind.HOST, f"{wait}, {where}", "Look at the host's disks, network file systems and memory."
        )
    if wait.startswith(DRIVER_WAITS):
        return Culprit(rank, Kind.LINK, f"{wait}, {where}", "Look at its GPU and its links.")
    return Culprit(rank, Kind.KERNEL, f"{wait}, {where}")


def _by_threads(stacks: Sequence[StackReading], *, expected: int | None) -> Iterator[Culprit]:
    """Find the ranks of which the kernel blocks a thread, if these are the fewer ones.

    A thread that waits for the host, or for something unknown, may be any (one that writes a log). Then the rank's stack must
    be outside the collective too.
    """
    taken = {
        stack.rank: stack for stack in reversed(stacks) if stack.rank is not None and stack.outcome == "ok"
    }
    blocked = [
        stack
        for _, stack in sorted(taken.items())
        if stack.blocked is not None and (_is_outside(stack) or _is_telling(stack.blocked))
    ]
    if len(blocked) * 2 < len(taken) or (expected == len(taken) == 2 and len(blocked) == 1):
        for stack in blocked:
            yield _blocked(stack.rank or 0, stack.blocked, _place(stack))


def _is_telling(wchan: str) -> bool:
    return bool(wchan) and not any(word in wchan for word in HOST_WAITS)


def _place(stack: StackReading) -> str:
    return f"pid {stack.pid}" + (f"; {stack.frames[0]}" if stack.frames and stack.collective is None else "")


def recorded_culprits(reading: FlightReading | None) -> Iterator[Culprit]:
    """Find the ranks whose newest collective is older, or differs from that of most ranks."""
    if reading is None:
        return
    by_group: dict[str, dict[int, RecordedCollective]] = {}
    for dump in reading.dumps:
        for entry in dump.entries:
            by_group.setdefault(entry.group, {})[dump.rank] = entry
    for entries in by_group.values():
        if len(entries) < 2:
            continue
        newest = max(entry.sequence for entry in entries.values())
        behind = {rank: entry for rank, entry in entries.items() if entry.sequence < newest}
        if behind and len(behind) < len(entries):
            for rank, entry in sorted(behind.items()):
                yield Culprit(
                    rank, Kind.BEHIND, f"collective {entry.sequence} of {newest}: {entry.operation}"
                )
            return
        shapes = Counter((entry.operation, entry.sizes) for entry in entries.values())
        (usual, most), *others = shapes.most_common()
        if others and most > sum(number for _, number in others):
            for rank, entry in sorted(entries.items()):
                if (entry.operation, entry.sizes) != usual:
                    where = f"{entry.operation} {entry.sizes} instead of {usual[0]} {usual[1]}"
                    yield Culprit(rank, Kind.OTHER_COLLECTIVE, where)
            return


def unmoved_mismatch(reading: RasReading | None) -> RasCommunicator | None:
    """Return the first communicator, at the last poll, whose counts differ between ranks and did not move since the first."""
    polls = [poll for poll in reading.polls if poll.outcome == "ok"] if reading is not None else []
    if len(polls) < 2:
        return None
    later = {communicator.id: communicator for communicator in polls[-1].communicators}
    for before in polls[0].communicators:
        after = later.get(before.id)
        if after is not None and is_unmoved_mismatch(before, after):
            return after
    return None


def is_unmoved_mismatch(before: RasCommunicator, after: RasCommunicator) -> bool:
    """Return True if RAS reports a mismatch in both polls and no count moved between them."""
    return before.mismatch and after.mismatch and counts_of(before) == counts_of(after)


def odd_ranks(communicator: RasCommunicator) -> tuple[list[int], str]:
    """Return the ranks whose counts differ from the others', and a text: those behind, or those ahead if they are fewer.

    The others wait for a rank that is behind. The text protocol names only the ranks that differ; groups have negative numbers.
    """
    names = sorted({name for rank in communicator.ranks for name in rank.counts})
    totals = {rank.rank: tuple(rank.counts.get(name, 0) for name in names) for rank in communicator.ranks}
    behind = [rank for rank, counts in totals.items() if counts == min(totals.values())]
    ahead = [rank for rank in totals if rank not in behind]
    unnamed = any(rank < 0 for rank in behind)
    odd, where = (
        (ahead, "ahead") if unnamed or (len(behind) > len(ahead) and min(ahead) >= 0) else (behind, "behind")
    )
    odd = sorted(rank for rank in odd if rank >= 0)[:MAX_LISTED]
    if not odd:
        return [], "ranks differ"
    verb = "is" if len(odd) == 1 else "are"
    return odd, f"rank{'' if len(odd) == 1 else 's'} {', '.join(map(str, odd))} {verb} {where}"


def counts_of(communicator: RasCommunicator) -> dict[str, dict[str, int]]:
    """Return the operation counts of each rank, by its number as text."""
    return {str(rank.rank): dict(rank.counts) for rank in communicator.ranks[:MAX_LISTED]}


def counted_culprits(reading: RasReading | None) -> Iterator[Culprit]:
    """Find the ranks whose operation counts differ from the others' in two polls of NCCL RAS, and did not move."""
    mismatch = unmoved_mismatch(reading)
    if mismatch is None:
        return
    odd, words = odd_ranks(mismatch)
    kind = Kind.BEHIND if words.endswith("behind") else Kind.OTHER_COLLECTIVE
    if len(odd) < len(mismatch.ranks) or any(row.rank < 0 for row in mismatch.ranks):
        for rank in odd:
            yield Culprit(rank, kind, "by NCCL RAS" if kind is Kind.BEHIND else "ahead by NCCL RAS")


def _is_outside(stack: StackReading) -> bool:
    return (
        stack.outcome == "ok"
        and stack.rank is not None
        and stack.collective is None
        and stack.steady
        and not stack.waits_for_gpu
        and bool(stack.frames)
    )


def _by_stacks(
    stacks: Sequence[StackReading], *, spinning: Collection[int] = (), expected: int | None = None
) -> Iterator[Culprit]:
    """Find the ranks whose stacks stay outside the collective that the others are in, or are in another one.

    One against one counts only if the tier has two ranks. A rank whose GPU spins in a collective's kernel, or that waits
    for its GPU in native code, is inside in truth.
    """
    # A child between fork and exec looks like its rank: the first of each counts.
    by_rank = {stack.rank: stack for stack in reversed(stacks) if stack.outcome == "ok"}
    taken = [
        stack for rank, stack in sorted(by_rank.items(), key=lambda row: row[0] or 0) if rank is not None
    ]
    outside = [stack for stack in taken if _is_outside(stack) and stack.rank not in spinning]
    inside = [
        stack
        for stack in taken
        if stack.collective is not None
        or stack.waits_for_gpu
        or (stack.rank in spinning and stack not in outside)
    ]
    if len(inside) + len(outside) < len(taken):
        return
    if not outside:
        names = Counter(stack.collective for stack in inside if stack.collective is not None)
        if len(names) > 1 and sum(names.values()) == len(taken):
            (usual, most), *others = names.most_common()
            for stack in inside if most > sum(number for _, number in others) else ():
                if stack.collective != usual:
                    where = f"{stack.collective} instead of {usual}"
                    yield Culprit(stack.rank or 0, Kind.OTHER_COLLECTIVE, where)
    elif len(outside) < len(inside) or (expected == 2 and len(outside) == len(inside) == 1):
        for stack in outside:
            yield Culprit(stack.rank or 0, Kind.OUTSIDE, stack.frames[0])


def _gpu_states(snapshot: Snapshot) -> tuple[set[int], dict[int, str]]:
    """Return the ranks whose GPU is fully used, and the ranks whose GPU does nothing, with the GPU's name."""
    reading = snapshot.nvml if snapshot.nvml is not None else snapshot.activity
    processes = snapshot.ranks.processes if snapshot.ranks is not None else ()
    rank_of = {row.pid: row.rank for row in processes if row.rank is not None}
    spinning: set[int] = set()
    idle: dict[int, str] = {}
    for gpu in reading.gpus if reading is not None else ():
        ranks = {rank_of[row.pid] for row in gpu.processes if row.pid in rank_of}
        percent = gpu.latest.utilisation_percent
        if len(ranks) == 1 and len(gpu.processes) == 1 and percent is not None:
            if percent >= SPINNING_PERCENT:
                spinning |= ranks
            elif percent == 0:
                idle[ranks.pop()] = gpu.label
    return spinning, idle


def _by_gpus(snapshot: Snapshot) -> Iterator[Culprit]:
    """Find the ranks whose GPU does nothing while those of the others spin in a collective that waits for it."""
    spinning, idle = _gpu_states(snapshot)
    ranked = {
        row.rank for row in (snapshot.ranks.processes if snapshot.ranks else ()) if row.rank is not None
    }
    if spinning | set(idle) == ranked and spinning and (len(idle) < len(spinning) or len(idle) == 1):
        for rank, gpu in sorted(idle.items()):
            yield Culprit(rank, Kind.OUTSIDE, f"{gpu} does nothing while the others wait at 100 %")
