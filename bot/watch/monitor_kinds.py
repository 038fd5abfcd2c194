"""The kinds of monitors: what each reads, how often, and on which hosts.

A new monitor is one entry in `MONITOR_KINDS`, and its period, a field of `MonitorSettings`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bot.settings.watch import MonitorSettings
from gpu_actions.config.host import HostConfig
from gpu_actions.loadtest.mirror import SKIPPED, mirror
from gpu_actions.models import Verdict

if TYPE_CHECKING:
    from gpu_actions.host import Host


class NothingRead(Exception):
    """Raised if a host has nothing for the monitor to read now. This is no failure; the message says why."""


@dataclass(frozen=True, kw_only=True)
class MonitorKind:
    """One kind of monitor: a partial triage that runs `collectors` over at most `window_s` seconds, or a `read` of its own.

    `title` is its name in messages. Without a result from its `main` collector a reading counts as failed; on hosts where
    that collector does not apply, the monitor does nothing. Collectors `in_doubt` run only if engine and router contradict
    each other. `read` takes the host and a function that returns True once it must stop, and raises NothingRead; its first
    reading comes after one period, since it loads the service.
    """

    name: str
    title: str
    main: str = ""
    collectors: frozenset[str] = frozenset()
    period_s: Callable[[MonitorSettings], float]
    window_s: float = 0
    in_doubt: frozenset[str] = frozenset()
    read: "Callable[[Host, Callable[[], bool]], Awaitable[Verdict]] | None" = None
    applies: Callable[[HostConfig], bool] = lambda host: True


async def _mirrored(host: "Host", must_stop: Callable[[], bool]) -> Verdict:
    try:
        return (await mirror(host, must_stop=must_stop)).verdict
    except SKIPPED as reason:
        raise NothingRead(str(reason)) from reason


MONITOR_KINDS = (
    MonitorKind(
        name="topology",
        title="the link and topology poll",
        main="nvml",
        collectors=frozenset({"nvml", "fabric_manager"}),
        period_s=lambda settings: settings.topology_period_s,
        window_s=3,
        applies=lambda host: host.gpus != 0,
    ),
    MonitorKind(
        name="kernel_log",
        title="the kernel log",
        main="kernel_log",
        collectors=frozenset({"kernel_log"}),
        period_s=lambda settings: settings.kernel_log_period_s,
        window_s=1,
        applies=lambda host: host.gpus != 0 or host.kernel_log is not None,
    ),
    MonitorKind(
        name="hang",
        title="the hang watch",
        main="engine",
        collectors=frozenset({"engine", "ranks", "ras", "router", "activity", "stacks", "flight_recorder"}),
        in_doubt=frozenset({"completion"}),
        period_s=lambda settings: settings.hang_period_s,
        window_s=3,
    ),
    MonitorKind(
        name="probe",
        title="the synthetic probe",
        main="completion",
        collectors=frozenset(
            {"completion", "engine", "ranks", "router", "activity", "stacks", "flight_recorder"}
        ),
        period_s=lambda settings: settings.probe_period_s,
        window_s=3,
    ),
    MonitorKind(
        name="regression",
        title="the regression watch",
        main="engine",
        collectors=frozenset({"engine"}),
        period_s=lambda settings: settings.regression_period_s,
        window_s=10,
    ),
    MonitorKind(
        name="mirror",
        title="the mirrored load",
        period_s=lambda settings: settings.mirror_period_s,
        read=_mirrored,
    ),
)


def monitors_for(host: HostConfig, settings: MonitorSettings) -> tuple[MonitorKind, ...]:
    """Return the monitors that are switched on and apply to a host."""
    return tuple(kind for kind in MONITOR_KINDS if kind.period_s(settings) > 0 and kind.applies(host))
