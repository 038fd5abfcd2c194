"""The target of triage, built from a configured host: what the bot's step and the monitors look at."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_actions.config.host import HostConfig, TierName
from gpu_actions.serving.interfaces import UnitError, UnitState
from gpu_actions.serving.units.frozen import runs_although_frozen
from gpu_actions.snapshot.target import TriageTarget

if TYPE_CHECKING:
    from gpu_actions.host import Host


async def target_of_host(
    host: "Host", *, tier: TierName | None = None, since: datetime | None = None
) -> TriageTarget:
    """Look at the tier that should serve: `tier`, or the one whose unit runs and is not frozen (the full one first).

    The unit's driver tells its process ids; a driver that fails leaves them out, and their checks become unknown. A kernel log
    file that the settings name stands for the kernel's own log, so as much of it counts: an Xid of last week is history.
    """
    if since is None and host.config.kernel_log is not None:
        since = datetime.now(UTC) - timedelta(seconds=host.thresholds.since_s)
    states: dict[str, UnitState | None] = {}
    for name, one in host.tiers.items():
        try:
            states[name] = await one.unit.state()
        except UnitError:
            states[name] = None
    chosen: TierName = tier or serving_tier(states)
    state = states.get(chosen)
    others = [one.pids for name, one in states.items() if name != chosen and one is not None and one.active]
    socket = host.config.router.socket or getattr(getattr(host.router, "admin", None), "path", None)
    target = target_of_config(
        host.config,
        tier=chosen,
        state=state,
        router_socket=socket if isinstance(socket, Path) else None,
        since=since,
    )
    unwanted = []
    for name, one in host.tiers.items():
        known = states[name]
        if known is not None and (who := await runs_although_frozen(known, one.engine.url)):
            unwanted.append(f"{name} ({who})")
    return target.model_copy(
        update={"other_pids": tuple(pid for pids in others for pid in pids), "unwanted": tuple(unwanted)}
    )


def serving_tier(states: dict[str, UnitState | None]) -> TierName:
    """The tier that triage looks at: the full one unless only the fallback runs."""
    full, fallback = states.get("tp"), states.get("fallback")
    full_runs = full is None or (full.active and not full.frozen)
    return "fallback" if not full_runs and fallback is not None and fallback.active else "tp"


def target_of_config(
    config: HostConfig,
    *,
    tier: TierName,
    state: UnitState | None,
    router_socket: Path | None,
    since: datetime | None = None,
) -> TriageTarget:
    """The target of one tier of a host whose unit is in `state` (None: its driver did not say)."""
    chosen = config.tiers[tier]
    fallback = config.tiers["fallback"]
    stopped = state is not None and state.frozen and not state.active
    return TriageTarget(
        host=config.name,
        tier=tier,
        tier_expected=not stopped,
        expect_gpus=config.gpus,
        expect_links=config.nvlinks,
        engine_url=chosen.engine.url,
        model=chosen.engine.model,
        api_key=chosen.engine.api_key,
        pids=() if state is None or state.main_pid is None else (state.main_pid,),
        ranks=chosen.ranks,
        unit_active=None if state is None else state.active,
        router_socket=router_socket,
        router_backend=config.router.backend,
        router_server=chosen.server,
        ras=config.ras_address,
        kernel_log=config.kernel_log,
        since=since,
        fallback_memory_gib=fallback.memory_gib_per_gpu,
    )
