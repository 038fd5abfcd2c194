"""A snapshot of a host taken now, with its verdict, for actions that need triage as one of their steps."""

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.host import Host
from gpu_actions.models import Verdict
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.target import target_of_host
from gpu_actions.triage.baselines import TriageBaseline, load_baseline
from gpu_actions.triage.judge import judge


def baseline_of(host: Host) -> TriageBaseline:
    """Return what the host measured on a good day. A broken file counts as none here; `/triage` names it."""
    try:
        return load_baseline(None if host.triage_baseline is None else str(host.triage_baseline))
    except (OSError, ValueError):
        return TriageBaseline()


async def judge_host(
    host: Host,
    *,
    window_s: float | None = None,
    deep: bool = False,
    thresholds: TriageThresholds | None = None,
) -> tuple[Snapshot, Verdict]:
    """Take a snapshot of the host and of its tp tier (where that is meant to run), and judge it."""
    limits = thresholds or host.thresholds
    target = await target_of_host(host, tier="tp")
    snapshot = await collect(target, limits, window_s=window_s, deep=deep)
    return snapshot, judge(snapshot, limits, baseline_of(host))
