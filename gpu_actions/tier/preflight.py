"""Read-only checks before a fallback or a restore. Each problem is a sentence that names the cause and the fix.

`gather_facts` collects data (`Facts`); the functions below it judge that data and read nothing more.
"""

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from gpu_actions.config.host import HostConfig, TierConfig
from gpu_actions.host import Host, Tier
from gpu_actions.models import Frozen
from gpu_actions.serving.condition import Condition, TokenSample
from gpu_actions.serving.interfaces import RouterError, ServerState, UnitError, UnitState
from gpu_actions.system.listening import listener_of
from gpu_actions.system.urls import port_of
from gpu_actions.tier import standby
from gpu_actions.tier.condition import KnownHang, read_condition
from gpu_actions.tier.gpu_memory import GpuMemories, read_gpus

OWN_PREFIX = "gpu-oncall "
"""How the reason of our own freezes begins. Freezes with another reason are never lifted."""

OWN_FREEZE = f"{OWN_PREFIX}fallback"
"""Reason of a fallback's freeze; the run's id follows."""


class TierFacts(Frozen):
    """The state of one tier."""

    state: UnitState | None = None
    unit_error: str = ""
    command: str = ""
    condition: Condition = Condition.STOPPED
    flat_since: TokenSample | None = Field(
        default=None, description="of a hung tier: the sample since which nothing moved"
    )
    port_owner: str | None = Field(
        default=None, description="process that listens on its port although the tier is not active"
    )
    program_missing: str = Field(default="", description="what its unit needs and this machine does not have")
    server: ServerState | None = None
    asleep_on: str | None = Field(
        default=None,
        description="the GPU of a standby that sleeps, by UUID; empty on the CPU; None: it does not sleep",
    )
    asleep_note: str = Field(default="", description="since when it sleeps and what it costs")

    @property
    def active(self) -> bool:
        return self.state is not None and self.state.active


class Facts(Frozen):
    """Everything that the checks read."""

    tp: TierFacts
    fallback: TierFacts
    rungs: dict[str, TierFacts] = Field(
        default_factory=dict, description="of a ladder: all its rungs, that of `fallback` included"
    )
    router_error: str = ""
    router_obstacle: str = Field(default="", description="why a managed router that is down cannot start")
    free_disk_gib: float
    memories: GpuMemories = GpuMemories()
    process_names: dict[int, str] = Field(default_factory=dict, description="of those that hold GPU memory")

    @property
    def pids(self) -> frozenset[int]:
        """Return the processes of both tiers, and of every rung."""
        states = [tier.state for tier in (self.tp, self.fallback, *self.rungs.values())]
        return frozenset(pid for state in states if state is not None for pid in state.pids)

    def on_rung(self, name: str) -> "Facts":
        """Return these facts with another rung as the fallback."""
        return self.model_copy(update={"fallback": self.rungs.get(name, self.fallback)})


async def gather_facts(host: Host, *, known: KnownHang | None = None) -> Facts:
    """Read all tiers, the router, the disk and the GPUs concurrently. Changes nothing. A hung tier takes a few seconds,
    unless a verdict already says that it hangs."""
    needs_gpu = any(tier.config.gpus for tier in host.every_tier)
    read, memories = await asyncio.gather(
        asyncio.gather(
            *(_tier_facts(host, tier, known=known if tier is host.tp else None) for tier in host.every_tier)
        ),
        read_gpus() if needs_gpu else asyncio.sleep(0, GpuMemories()),
    )
    router_error, obstacle = "", ""
    facts = {tier.key: one for tier, one in zip(host.every_tier, read, strict=True)}
    try:
        lines = {tier.key: await host.router.server(tier.config.server) for tier in host.every_tier}
        facts = {key: one.model_copy(update={"server": lines[key]}) for key, one in facts.items()}
    except RouterError as error:
        router_error = str(error)
        obstacle = await host.router.obstacle()
    return Facts(
        tp=facts.pop(host.tp.key),
        fallback=facts[host.rung],
        rungs=facts if host.has_ladder else {},
        router_error=router_error,
        router_obstacle=obstacle,
        free_disk_gib=shutil.disk_usage(host.state_dir).free / 1024**3,
        memories=memories,
        process_names={pid: _process_name(pid) for gpu in memories.gpus for pid in gpu.held_mib},
    )


def _process_name(pid: int) -> str:
    """Return a process's name, or an empty string if it cannot be read, for example in another container."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


async def _tier_facts(host: Host, tier: Tier, *, known: KnownHang | None = None) -> TierFacts:
    try:
        state, command = await tier.unit.state(), tier.unit.describe_start()
    except UnitError as error:
        return TierFacts(unit_error=str(error))
    reading = await read_condition(tier, state, stall_s=host.config.fallback.drain_stall_s, known=known)
    asleep = reading.condition is Condition.ASLEEP
    return TierFacts(
        asleep_on=standby.gpu_of(state) if asleep else None,
        asleep_note=standby.asleep_for(standby.read_note(tier, state)) if asleep else "",
        state=state,
        command=command,
        condition=reading.condition,
        flat_since=reading.flat_since,
        port_owner=None if state.active else listener_of(port_of(tier.engine.url)),
        program_missing="" if state.active else tier.config.unit.obstacle(),
    )


def common_problems(config: HostConfig, facts: Facts) -> list[str]:
    """Return what prevents a fallback and a restore alike."""
    problems = [*unit_problems("tp", facts.tp), *unit_problems("fallback", facts.fallback)]
    if facts.router_error and not config.router.managed:
        problems.append(f"the router does not answer: {facts.router_error}")
    if facts.router_obstacle:
        problems.append(f"the router does not run and cannot be started: {facts.router_obstacle}")
    if facts.free_disk_gib < config.fallback.min_free_disk_gib:
        problems.append(
            f"the disk of the state folder has {facts.free_disk_gib:.1f} GiB free, but "
            f"{config.fallback.min_free_disk_gib:g} are needed (fallback.min_free_disk_gib): delete old runs there"
        )
    return problems


def unit_problems(name: str, tier: TierFacts) -> list[str]:
    """Return what prevents the control of a tier's unit."""
    problems = []
    if tier.unit_error:
        problems.append(f"the unit of the {name} tier cannot be described: {tier.unit_error}")
    state = tier.state
    if state is not None and state.frozen and not state.frozen_reason.startswith(OWN_PREFIX):
        problems.append(
            f"the {name} tier is frozen by another operator ({state.frozen_reason or 'no reason given'}): "
            "ask them, unfreeze it, and try again"
        )
    return problems


def start_problems(tiers: Mapping[str, TierConfig], name: str, facts: TierFacts) -> list[str]:
    """Return what prevents the start of a tier that does not run."""
    problems = []
    if facts.port_owner is not None:
        port = port_of(tiers[name].engine.url)
        problems.append(
            f"port {port} of the {name} tier is taken by {facts.port_owner}: end it, or change the port"
        )
    if facts.program_missing:
        problems.append(
            f"the {name} tier cannot be started: {facts.program_missing}; correct tiers.{name}.unit"
        )
    return problems
