"""Which rank do the others wait for, and why? Pure: from process states, RAS counts, flight recorder dumps and stacks.

A rank that is stopped, dead, behind or elsewhere is the culprit; ranks inside the same collective are its victims. Where the
evidence does not single one out, the candidates are listed.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from gpu_actions.snapshot.collectors.flight_recorder import FlightReading, RecordedCollective
from gpu_actions.snapshot.collectors.ranks import RankProcess
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
)
"""Kernel functions in which a process waits for a disk, a network file system or memory."""


class Kind(StrEnum):
    """Why the others wait for a rank."""

    DEAD = "dead"
    STOPPED = "stopped"
    KERNEL = "stuck in the kernel"
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
    for source in (
        _by_state(processes),
        recorded_culprits(snapshot.flight_recorder),
        _by_stacks(snapshot.stacks.stacks if snapshot.stacks is not None else ()),
    ):
        if found := tuple(source):
            return found
    return ()


def elsewhere_of(snapshot: Snapshot) -> tuple[Culprit, ...]:
    """Return the culprits that only flight recorder dumps or stacks name: a second source of their own for a hang."""
    stacks = snapshot.stacks.stacks if snapshot.stacks is not None else ()
    return tuple(recorded_culprits(snapshot.flight_recorder)) or tuple(_by_stacks(stacks))


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
            wait = process.wchan or "unknown function"
            on_host = any(word in wait for word in HOST_WAITS)
            todo = ""
            if on_host:
                todo = "Look at the host's disks and network file systems."
            elif wait.startswith(DRIVER_WAITS):
                todo = "Look at its GPU and its links."
            kind = Kind.HOST if on_host else Kind.KERNEL
            yield Culprit(process.rank, kind, f"{wait}, pid {process.pid}", todo)


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


def _by_stacks(stacks: Sequence[StackReading]) -> Iterator[Culprit]:
    """Find the ranks whose stacks stay outside the collective that the others are in."""
    taken = [stack for stack in stacks if stack.outcome == "ok" and stack.rank is not None]
    inside = [stack for stack in taken if stack.collective is not None]
    outside = [stack for stack in taken if stack.collective is None and stack.steady]
    if not inside or not outside or len(outside) >= len(inside) or len(inside) + len(outside) < len(taken):
        return
    for stack in outside:
        assert stack.rank is not None  # noqa: S101
        yield Culprit(stack.rank, Kind.OUTSIDE, stack.frames[0] if stack.frames else "no frame")
