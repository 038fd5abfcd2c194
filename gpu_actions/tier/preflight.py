"""What a fallback needs before it may begin: read-only probes, each problem a sentence with the thing and the fix.

Gathered as data (`Facts`), judged by `problems_of`, so that the rules can be tested as a table.
"""

import asyncio
import shutil
import sys

from pydantic import Field

from gpu_actions.config.host import HostConfig, ProcessUnit, SystemdUnit, TierName, UnitConfig
from gpu_actions.host import Host, Tier
from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import RouterError, ServerState, UnitError, UnitState
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from gpu_actions.system.listening import listener_of
from gpu_actions.system.urls import port_of
from gpu_actions.tier.condition import Condition, KnownHang, Look, TokenSample, generates, look_at
from gpu_actions.tier.gpu_memory import GpuMemories, read_gpus

OWN_PREFIX = "gpu-oncall "
"""How a freeze of ours begins. Another reason is somebody else's, and stays."""

OWN_FREEZE = f"{OWN_PREFIX}fallback"
"""A fallback's freeze; the run's id follows."""

LIVE_PROBE_S = 5.0


class TierFacts(Frozen):
    """One tier as it stands."""

    state: UnitState | None = None
    unit_error: str = ""
    command: str = ""
    condition: Condition = Condition.STOPPED
    flat_since: TokenSample | None = Field(default=None, description="of a hung tier: its counters then")
    port_owner: str | None = Field(
        default=None, description="who listens on its port though it is not active"
    )
    program_missing: str = Field(
        default="", description="what its unit would run and this machine does not have"
    )
    server: ServerState | None = None

    @property
    def active(self) -> bool:
        return self.state is not None and self.state.active


class Facts(Frozen):
    """Everything preflight read."""

    tp: TierFacts
    fallback: TierFacts
    router_error: str = ""
    router_obstacle: str = Field(default="", description="why a managed router that is down cannot start")
    free_disk_gib: float
    memories: GpuMemories = GpuMemories()


async def gather_facts(host: Host, *, known: KnownHang | None = None) -> Facts:
    """Read both tiers, the router, the disk and the GPUs at once. Changes nothing; takes a few seconds on a hung tier, but
    for one that a verdict calls hung already."""
    needs_gpu = any(tier.config.gpus for tier in host.tiers.values())
    tp, fallback, memories = await asyncio.gather(
        _tier_facts(host, host.tp, known=known),
        _tier_facts(host, host.fallback),
        read_gpus() if needs_gpu else asyncio.sleep(0, GpuMemories()),
    )
    router_error, obstacle = "", ""
    try:
        lines = {tier.name: await host.router.server(tier.config.server) for tier in host.tiers.values()}
        tp = tp.model_copy(update={"server": lines["tp"]})
        fallback = fallback.model_copy(update={"server": lines["fallback"]})
    except RouterError as error:
        router_error = str(error)
        own = host.router.unit if isinstance(host.router, ManagedRouter) else None
        if (
            own is not None and not (await own.state()).active
        ):  # one that runs without its socket is started again
            obstacle = await asyncio.to_thread(_router_obstacle, host.config)
    return Facts(
        tp=tp,
        fallback=fallback,
        router_error=router_error,
        router_obstacle=obstacle,
        free_disk_gib=shutil.disk_usage(host.state_dir).free / 1024**3,
        memories=memories,
    )


async def _tier_facts(host: Host, tier: Tier, *, known: KnownHang | None = None) -> TierFacts:
    try:
        state, command = await tier.unit.state(), tier.unit.describe_start()
    except UnitError as error:
        return TierFacts(unit_error=str(error))
    if not state.active:
        seen = Look(condition=Condition.STOPPED)
    elif tier.name == "tp":
        seen = await look_at(tier, state, stall_s=host.config.fallback.drain_stall_s, known=known)
    else:
        serves = await generates(tier, timeout_s=LIVE_PROBE_S)
        seen = Look(condition=Condition.SERVING if serves else Condition.SILENT)
    return TierFacts(
        state=state,
        command=command,
        condition=seen.condition,
        flat_since=seen.flat_since,
        port_owner=None if state.active else listener_of(port_of(tier.engine.url)),
        program_missing="" if state.active else missing_program(tier.config.unit),
    )


def missing_program(unit: UnitConfig) -> str:
    """What a unit of ours would run and cannot: its program or its folder; empty for systemd, which checks that itself."""
    if isinstance(unit, SystemdUnit):
        return ""
    argv = unit.argv if isinstance(unit, ProcessUnit) else unit.start
    program = argv[0].replace("{python}", sys.executable)
    if isinstance(unit, ProcessUnit) and unit.cwd is not None and not unit.cwd.is_dir():
        return f"its folder {unit.cwd} (unit.cwd) is not there"
    path = unit.env.get("PATH")
    return "" if shutil.which(program, path=path) else f"its program {program} is not on this machine"


def _router_obstacle(config: HostConfig) -> str:
    """Why a router of ours that does not run cannot be started; empty when nothing stands in its way."""
    if shutil.which(config.router.binary) is None:
        return f"{config.router.binary} is not on this machine: install it, or set router.binary"
    port = port_of(config.router.url)
    owner = listener_of(port)
    return (
        ""
        if owner is None
        else f"port {port} of the router is taken by {owner}: end it, or change router.url"
    )


def common_problems(config: HostConfig, facts: Facts) -> list[str]:
    """What stands in the way of a fallback and of a restore alike."""
    problems = []
    for name, tier in _both(facts):
        if tier.unit_error:
            problems.append(f"the unit of the {name} tier cannot be described: {tier.unit_error}")
    for name, tier in _both(facts):
        state = tier.state
        if state is not None and state.frozen and not state.frozen_reason.startswith(OWN_PREFIX):
            problems.append(
                f"the {name} tier is frozen by somebody else ({state.frozen_reason or 'no reason given'}): "
                "ask them, unfreeze it, and try again"
            )
    if facts.router_error and not config.router.managed:
        problems.append(f"the router is away: {facts.router_error}")
    if facts.router_obstacle:
        problems.append(f"the router does not run and cannot be started: {facts.router_obstacle}")
    if facts.free_disk_gib < config.fallback.min_free_disk_gib:
        problems.append(
            f"the disk of the state folder has {facts.free_disk_gib:.1f} GiB free, "
            f"{config.fallback.min_free_disk_gib:g} are needed (fallback.min_free_disk_gib): delete old runs there"
        )
    return problems


def problems_of(config: HostConfig, facts: Facts) -> list[str]:
    """Why a fallback cannot work now; empty when it can."""
    problems = common_problems(config, facts)
    if facts.fallback.port_owner is not None:
        port = port_of(config.tiers["fallback"].engine.url)
        problems.append(
            f"port {port} of the fallback tier is taken by {facts.fallback.port_owner}: end it, or change the port"
        )
    if facts.fallback.program_missing:
        problems.append(
            f"the fallback tier cannot be started: {facts.fallback.program_missing}; correct tiers.fallback.unit"
        )
    server = facts.fallback.server
    serving = facts.fallback.condition is Condition.SERVING and server is not None
    if serving and server is not None and server.weight > 0 and not facts.tp.active:
        problems.append(
            f"the fallback tier already serves (weight {server.weight}) and tp is stopped: nothing to do; "
            f"to return to tp: /restore plan {config.name}"
        )
    return problems


def _both(facts: Facts) -> tuple[tuple[TierName, TierFacts], tuple[TierName, TierFacts]]:
    return ("tp", facts.tp), ("fallback", facts.fallback)
