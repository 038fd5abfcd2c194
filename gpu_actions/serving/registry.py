"""Chooses the driver of a unit, an engine and a router from the settings. Building starts nothing and touches no file."""

from pathlib import Path

from gpu_actions.config.host import EngineConfig, HostConfig, ProcessUnit, SystemdUnit, UnitConfig
from gpu_actions.serving.engines.engines import build_http_engine
from gpu_actions.serving.interfaces import Engine, Router, Unit
from gpu_actions.serving.routers.haproxy import ExistingRouter
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from gpu_actions.serving.units.commands import CommandUnit
from gpu_actions.serving.units.process import SupervisedProcess
from gpu_actions.serving.units.systemd import SystemdService


def build_unit(name: str, config: UnitConfig, *, state_dir: Path) -> Unit:
    """Give the unit `name`; a process unit keeps its files in `state_dir/name`."""
    if isinstance(config, ProcessUnit):
        return SupervisedProcess(name, config, state_dir=state_dir)
    if isinstance(config, SystemdUnit):
        return SystemdService(name, config)
    return CommandUnit(name, config, state_dir=state_dir)


def build_engine(config: EngineConfig) -> Engine:
    """Give the adapter of the engine's kind."""
    return build_http_engine(config)


def build_router(config: HostConfig, *, state_dir: Path) -> Router:
    """Give the host's router: ours with its files below `state_dir`, or an existing one by its admin socket."""
    if config.router.managed:
        return ManagedRouter(config, state_dir=state_dir)
    return ExistingRouter(config, state_dir=state_dir)
