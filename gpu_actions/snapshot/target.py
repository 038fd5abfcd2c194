"""What triage reads: one host and the tier that should be serving there, from the settings or from the shell's flags."""

import asyncio
import contextlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil
from pydantic import Field, SecretStr

from gpu_actions.config.host import HostConfig, TierConfig, TierName
from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import Unit, UnitError, UnitState
from gpu_actions.serving.units.base import runs_although_frozen
from gpu_actions.system.listening import listening_process
from gpu_actions.system.urls import port_of

if TYPE_CHECKING:
    from gpu_actions.host import Host


LOG_ERROR = re.compile(
    r"CUDA out of memory|torch\.(?:cuda\.)?OutOfMemoryError|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|illegal memory access|CUDA_ERROR_ILLEGAL_ADDRESS|cudaErrorIllegalAddress"
    r"|killed by the OOM killer|result 'oom-kill'"
    r"|\brank \d+ \(pid \d+\) died: [^;]{1,60}|Worker\S*-\d+ died unexpectedly",
    re.IGNORECASE,
)
"""Errors in a unit's log that say why its process ended."""

LOG_ERRORS_KEPT = 5

FORWARDERS = frozenset({"docker-proxy", "rootlessport", "slirp4netns", "pasta", "conmon", "socat"})
"""Processes that listen for a container and are no part of its engine."""


class UnitFacts(Frozen):
    """What the driver of the tier's unit knows of its restarts, its end and its pause."""

    restarts: int = 0
    restarted_at_s: tuple[float, ...] = Field(
        default=(), description="Unix times of the latest, if they are known"
    )
    started_at_s: float | None = None
    paused: bool = False
    resume: str = Field(default="", description="the command that lets a paused unit go on")
    exit_code: int | None = Field(default=None, description="of its main process, if it ended")
    oom_killed: bool = False
    log_errors: tuple[str, ...] = Field(default=(), description="the part of a line that matches `LOG_ERROR`")


class Expectation(Frozen):
    """What the host should have and run. It is kept in the snapshot, so that a recorded file is judged the same way."""

    gpus: int | None = Field(default=None, ge=0, le=64)
    links: int | None = Field(default=None, ge=0, le=64)
    ranks: int | None = Field(default=None, ge=1, le=64)
    tier: str = "tp"
    tier_expected: bool = True
    other_pids: tuple[int, ...] = ()
    unwanted: tuple[str, ...] = Field(default=(), description="tiers that run although they are frozen")
    unit_error: str = Field(default="", description="why the driver of the tier's unit reported no state")
    unit: UnitFacts | None = Field(
        default=None, description="of the tier's unit, once it restarted or is down"
    )
    router_server: str | None = None
    fallback_memory_gib: float | None = Field(default=None, gt=0)


class TriageTarget(Frozen):
    """The sources of a snapshot. A source that is None is skipped, and so are its checks: they do not apply."""

    host: str = "localhost"
    tier: str = Field(default="tp", description="tier that the engine flags name; only `tp` can fall back")
    tier_expected: bool = Field(default=True, description="False if the tier is stopped on purpose")
    expect_gpus: int | None = Field(
        default=None, ge=0, le=64, description="0 = a CPU host, None = not configured"
    )
    expect_links: int | None = Field(
        default=None, ge=0, le=64, description="NVLinks per GPU, None = by its model"
    )
    engine_url: str | None = None
    replica_urls: tuple[str, ...] = Field(
        default=(), description="base URLs of the tier's replicas, if each has a port of its own"
    )
    model: str | None = Field(
        default=None, description="model of the synthetic completion, None = the first that the engine lists"
    )
    api_key: SecretStr | None = Field(default=None, exclude=True)
    engine_kind: str = Field(default="", description="kind of engine, needed for its golden prompts")
    golden: Path | None = Field(default=None, description="file of the tier's golden prompts")
    completion: bool = Field(default=True, description="send one synthetic completion to the engine")
    pids: tuple[int, ...] = Field(default=(), description="main processes of the tier's unit")
    members: tuple[int, ...] = Field(
        default=(), description="all processes of the tier's unit, also those outside the main process's tree"
    )
    listener: int | None = Field(
        default=None, description="process on the engine's port, where the unit's driver knows no process"
    )
    pid_file: Path | None = None
    other_pids: tuple[int, ...] = Field(
        default=(),
        description="processes of the other tier, which may hold GPU memory while this one is stopped",
    )
    unwanted: tuple[str, ...] = Field(
        default=(), description="tiers that run although they are frozen, each with the process that runs it"
    )
    ranks: int | None = Field(default=None, ge=1, le=64, description="processes in the tier's collectives")
    unit_active: bool | None = Field(default=None, description="from the unit's driver, None = not known")
    unit_error: str = Field(default="", description="why the driver of the unit reported no state")
    unit: UnitFacts | None = Field(default=None, description="what the driver knows of restarts")
    router_address: str | None = Field(
        default=None, description="where the router is controlled: a socket or a URL"
    )
    router_kind: str = Field(default="", description="kind of router, empty = the default one")
    router_backend: str = "serve"
    router_server: str | None = Field(default=None, description="the tier's server line in that backend")
    ras: str | None = Field(default=None, description="NCCL RAS host:port")
    kernel_log: Path | None = Field(
        default=None, description="a file to read instead of the kernel's own log (needed on a CPU host)"
    )
    since: datetime | None = Field(default=None, description="older kernel messages do not count")
    fabric_manager_unit: str = "nvidia-fabricmanager.service"
    fallback_memory_gib: float | None = Field(
        default=None, gt=0, description="GPU memory that the fallback tier needs"
    )

    def expectation(self) -> Expectation:
        """Return the part that the snapshot keeps."""
        same = set(Expectation.model_fields) - {"gpus", "links"}
        return Expectation(
            gpus=self.expect_gpus, links=self.expect_links, **{name: getattr(self, name) for name in same}
        )


async def target_of_host(
    host: "Host", *, tier: TierName | None = None, since: datetime | None = None
) -> TriageTarget:
    """Build the target of a configured host for `tier`, or for the tier that should serve (see `serving_tier`).

    If a unit's driver fails, its process ids are left out and their checks become unknown. A configured kernel log file
    replaces the kernel's own log, so only the last `since_s` seconds of it count.
    """
    if since is None and host.config.kernel_log is not None:
        since = datetime.now(UTC) - timedelta(seconds=host.thresholds.since_s)
    states: dict[str, UnitState | None] = {}
    unwanted = []
    errors: dict[str, str] = {}
    idle = {f"rung {key}": one for key, one in host.rungs.items() if key != host.rung}
    for name, one in (*host.tiers.items(), *idle.items()):
        try:
            state = states[name] = await one.unit.state()
            if runner := await runs_although_frozen(state, one.engine.url):
                unwanted.append(f"{name} ({runner})")
        except (
            UnitError,
            OSError,
            psutil.Error,
        ) as error:  # a driver's failure costs its unit, not the triage
            states.setdefault(name, None)
            errors[name] = " ".join(str(error).split())[:200] or type(error).__name__
    chosen: TierName = tier or serving_tier(states)
    others = [one.pids for name, one in states.items() if name != chosen and one is not None and one.active]
    target = target_of_config(
        host.config,
        tier=chosen,
        serving=host.tiers[chosen].config,
        state=states.get(chosen),
        router_address=host.router.address,
        since=since,
    )
    chosen_state = states.get(chosen)
    if chosen_state is not None and chosen_state.active and not (target.pids or target.members):
        target = target.model_copy(
            update={"listener": await asyncio.to_thread(listener_of_url, target.engine_url)}
        )
    return target.model_copy(
        update={
            "other_pids": tuple(pid for pids in others for pid in pids),
            "unwanted": tuple(unwanted),
            "golden": host.golden_path(chosen),
            "unit_error": errors.get(chosen, ""),
            "unit": await unit_facts(host.tiers[chosen].unit, states.get(chosen)),
        }
    )


def listener_of_url(url: str | None) -> int | None:
    """Return the process that listens on the engine's port of this machine, unless it only forwards the connection."""
    if url is None or urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
        return None
    owner = listening_process(port_of(url))
    with contextlib.suppress(psutil.Error):
        if owner is not None and owner.name() not in FORWARDERS:
            return owner.pid
    return None


async def unit_facts(unit: Unit, state: UnitState | None) -> UnitFacts | None:
    """Return the facts about a unit, with the errors at the end of its log; None for one that runs and never restarted."""
    if state is None or (state.active and not state.restarts and not state.paused):
        return None
    try:
        log = await unit.log_tail()
    except (UnitError, OSError):
        log = ""
    errors = [match.group(0) for line in log.splitlines() if (match := LOG_ERROR.search(line))]
    return UnitFacts(
        restarts=state.restarts,
        restarted_at_s=state.restarted_at_s,
        started_at_s=state.started_at_s,
        paused=state.paused,
        resume=state.resume,
        exit_code=state.exit_code,
        oom_killed=state.oom_killed,
        log_errors=tuple(errors[-LOG_ERRORS_KEPT:]),
    )


def serving_tier(states: dict[str, UnitState | None]) -> TierName:
    """Return the tier that should serve: the full one, unless it is down or frozen and the fallback runs."""
    full, fallback = states.get("tp"), states.get("fallback")
    full_runs = full is None or (full.active and not full.frozen)
    return "fallback" if not full_runs and fallback is not None and fallback.active else "tp"


def target_of_config(
    config: HostConfig,
    *,
    tier: TierName,
    serving: TierConfig | None = None,
    state: UnitState | None,
    router_address: str | None,
    since: datetime | None = None,
) -> TriageTarget:
    """Build the target of one tier whose unit is in `state` (None: its driver failed). `serving` are its settings, where the
    fallback is another rung than the last."""
    chosen = serving or config.tiers[tier]
    stopped = state is not None and state.frozen and not state.active
    return TriageTarget(
        host=config.name,
        tier=tier,
        tier_expected=not stopped,
        expect_gpus=config.gpus,
        expect_links=config.nvlinks,
        engine_url=chosen.engine.url,
        replica_urls=chosen.engine.replicas,
        engine_kind=chosen.engine.kind,
        model=chosen.engine.model,
        api_key=chosen.engine.api_key,
        pids=() if state is None or state.main_pid is None else (state.main_pid,),
        members=() if state is None else state.pids,
        ranks=chosen.ranks,
        unit_active=None if state is None else state.active,
        router_address=router_address,
        router_kind=config.router.kind,
        router_backend=config.router.backend,
        router_server=chosen.server,
        ras=config.ras_address,
        kernel_log=config.kernel_log,
        since=since,
        fallback_memory_gib=config.tiers["fallback"].memory_gib_per_gpu,
    )
