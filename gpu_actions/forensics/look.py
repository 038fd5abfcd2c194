"""Triage of a host as the actions here need it: a snapshot taken now, and its verdict.

The fallback's capture saves both; the restore asks whether the host is healthy.
"""

from gpu_actions.host import Host
from gpu_actions.models import Verdict
from gpu_actions.triage.collect import collect
from gpu_actions.triage.judge import judge
from gpu_actions.triage.snapshot import Snapshot
from gpu_actions.triage.target import TriageTarget
from gpu_actions.triage.thresholds import TriageThresholds


async def target_of(host: Host, *, tier_expected: bool) -> TriageTarget:
    """Where triage looks on this host: at the tp tier, where it is meant to be running."""
    tp = host.tp
    state = await tp.unit.state()
    socket = host.config.router.socket or host.state_dir / "router" / "admin.sock"
    return TriageTarget(
        host=host.name,
        tier="tp",
        tier_expected=tier_expected,
        expect_gpus=host.config.gpus,
        expect_links=host.config.nvlinks,
        engine_url=tp.engine.url,
        model=tp.engine.model,
        api_key=tp.config.engine.api_key,
        pids=() if state.main_pid is None else (state.main_pid,),
        ranks=tp.config.ranks,
        unit_active=state.active,
        router_socket=socket,
        router_backend=host.config.router.backend,
        router_server=tp.config.server,
        ras=host.config.ras_address or None,
        kernel_log=host.config.kernel_log,
        fallback_memory_gib=host.fallback.config.memory_gib_per_gpu,
    )


async def look(
    host: Host,
    *,
    tier_expected: bool = True,
    window_s: float | None = None,
    deep: bool = False,
    thresholds: TriageThresholds | None = None,
) -> tuple[Snapshot, Verdict]:
    """Take a snapshot and judge it."""
    limits = thresholds or TriageThresholds()
    target = await target_of(host, tier_expected=tier_expected)
    snapshot = await collect(target, limits, window_s=window_s, deep=deep)
    return snapshot, judge(snapshot, limits)
