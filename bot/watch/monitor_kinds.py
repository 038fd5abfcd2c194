"""The kinds of look that monitors make: what each reads, how often, and on which hosts it makes sense."""

from collections.abc import Callable
from dataclasses import dataclass

from bot.settings.model import MonitorSettings
from gpu_actions.config.host import HostConfig
from gpu_actions.triage.monitor_state import MonitorPolicy


@dataclass(frozen=True, kw_only=True)
class Look:
    """One kind of look: which collectors it runs, over at most how many seconds, and how people call it.

    `main` is the collector without which nothing was seen; where it does not apply, the look does not.
    """

    name: str
    title: str
    main: str
    collectors: frozenset[str]
    period_s: Callable[[MonitorSettings], float]
    window_s: float
    needs_gpus: bool = False


LOOKS = (
    Look(
        name="topology",
        title="the link and topology poll",
        main="nvml",
        collectors=frozenset({"nvml", "fabric_manager"}),
        period_s=lambda settings: settings.topology_period_s,
        window_s=3,
        needs_gpus=True,
    ),
    Look(
        name="kernel_log",
        title="the kernel log",
        main="kernel_log",
        collectors=frozenset({"kernel_log"}),
        period_s=lambda settings: settings.kernel_log_period_s,
        window_s=1,
        needs_gpus=True,
    ),
    Look(
        name="hang",
        title="the hang watch",
        main="engine",
        collectors=frozenset({"engine", "ranks", "ras", "router", "stacks"}),
        period_s=lambda settings: settings.hang_period_s,
        window_s=3,
    ),
    Look(
        name="probe",
        title="the synthetic probe",
        main="completion",
        collectors=frozenset({"completion", "engine", "ranks", "stacks"}),
        period_s=lambda settings: settings.probe_period_s,
        window_s=3,
    ),
    Look(
        name="regression",
        title="the regression watch",
        main="engine",
        collectors=frozenset({"engine"}),
        period_s=lambda settings: settings.regression_period_s,
        window_s=10,
    ),
)


def policy_of(settings: MonitorSettings, *, stalled_s: float) -> MonitorPolicy:
    """How sure the looks of these settings must be."""
    return MonitorPolicy(
        needed=settings.confirm_n,
        of=settings.confirm_m,
        clear_after=settings.clear_after,
        stalled_s=stalled_s,
        hold_s=settings.hold_s,
        burst_s=settings.burst_s,
        quiet_s=settings.quiet_s,
    )


def looks_of(host: HostConfig, settings: MonitorSettings) -> tuple[Look, ...]:
    """The looks that make sense on a host: no GPU poll without GPUs, and its kernel log only where a file is named."""
    return tuple(
        look
        for look in LOOKS
        if look.period_s(settings) > 0
        and not (
            look.needs_gpus
            and host.gpus == 0
            and not (look.name == "kernel_log" and host.kernel_log is not None)
        )
    )
