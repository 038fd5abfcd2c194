"""What the looks look at, kept for a few looks: to ask both units each time costs two process tables, or two systemctl.

A target is kept while its main process is the same living one. A unit that is down is asked at each look.
"""

import time
from typing import TYPE_CHECKING

from gpu_actions.snapshot.collectors.ranks import read_stat
from gpu_actions.snapshot.target import TriageTarget, target_of_host

if TYPE_CHECKING:
    from gpu_actions.host import Host

KEPT_S = 30.0


class Targets:
    """The targets of hosts, by their names."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, tuple[int, ...], TriageTarget]] = {}

    async def of(self, host: "Host") -> TriageTarget:
        """The target of a host as of now, or as of at most half a minute ago while its main process lives on."""
        kept = self._kept.get(host.name)
        if kept is not None and time.monotonic() - kept[0] < KEPT_S and _starts(kept[2]) == kept[1]:
            return kept[2]
        asked_s, target = time.monotonic(), await target_of_host(host)
        self.forget(host.name)
        if target.pids and target.unit_active:
            self._kept[host.name] = (asked_s, _starts(target), target)
        return target

    def forget(self, host: str) -> None:
        """A run changes the host: nothing that was known of it holds."""
        self._kept.pop(host, None)


def _starts(target: TriageTarget) -> tuple[int, ...]:
    """When the main processes were started, in clock ticks: with its number that names a process for good. 0: not alive."""
    rows = [read_stat(pid) for pid in target.pids]
    return tuple(0 if row is None or row.state in "ZX" else row.start_ticks for row in rows)
