"""Remember for half a minute what a host's checks read from: finding it out costs two process tables or two systemctl calls.

A target is reused only while its main processes live. A unit that is down is looked up every time.
"""

import time
from typing import TYPE_CHECKING

from gpu_actions.snapshot.target import TriageTarget, target_of_host
from gpu_actions.system.proc import read_process

if TYPE_CHECKING:
    from gpu_actions.host import Host

KEPT_S = 30.0


class TargetCache:
    """The triage targets of hosts, by host name."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, tuple[int, ...], TriageTarget]] = {}

    async def of(self, host: "Host") -> TriageTarget:
        """Return the target of a host, at most half a minute old and with its main processes alive."""
        kept = self._kept.get(host.name)
        if kept is not None and time.monotonic() - kept[0] < KEPT_S and _start_times(kept[2]) == kept[1]:
            return kept[2]
        asked_s, target = time.monotonic(), await target_of_host(host)
        self.forget(host.name)
        if target.pids and target.unit_active:
            self._kept[host.name] = (asked_s, _start_times(target), target)
        return target

    def forget(self, host: str) -> None:
        """Forget a host's target, because a run is changing the host."""
        self._kept.pop(host, None)


def _start_times(target: TriageTarget) -> tuple[int, ...]:
    """Return when the main processes started, in clock ticks; 0 for a dead one. With the pid that identifies a process."""
    rows = [read_process(pid) for pid in target.pids]
    return tuple(0 if row is None or row.state in "ZX" else row.started for row in rows)
