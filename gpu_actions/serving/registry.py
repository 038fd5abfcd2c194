"""The one table of kinds: engines, unit drivers and routers. Building a driver starts nothing and touches no file.

A kind is one file that declares everything the program needs to know of it, and one line here. Code elsewhere asks:

- `ENGINES[kind]`: the class of an engine; its attributes are described on `HttpEngine` in `engines/base.py`.
- `engine_of_page(text)`: the engine whose metric names a /metrics page uses, `metric_names(figure)`: every engine's names.
- `rank_in_title(title)`: the rank in a worker's process title of any engine.
- `PROCESS_WORDS`, `PACKAGES`: of all engines together.
- `build_engine`, `build_unit`, `build_router`: the driver for a part of the settings.
"""

from pathlib import Path

from gpu_actions.config.host import EngineConfig, HostConfig, ProcessUnit, SystemdUnit, UnitConfig
from gpu_actions.serving.engines.base import HttpEngine, dialect_of
from gpu_actions.serving.engines.openai import OpenAiEngine
from gpu_actions.serving.engines.reference import ReferenceEngine
from gpu_actions.serving.engines.sglang import SglangEngine
from gpu_actions.serving.engines.vllm import VllmEngine
from gpu_actions.serving.interfaces import Engine, Router, Unit
from gpu_actions.serving.routers.haproxy import ExistingRouter
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from gpu_actions.serving.units.commands import CommandUnit
from gpu_actions.serving.units.process import SupervisedProcess
from gpu_actions.serving.units.systemd import SystemdService

ENGINES: dict[str, type[HttpEngine]] = {
    engine.kind: engine for engine in (ReferenceEngine, VllmEngine, SglangEngine, OpenAiEngine)
}

PROCESS_WORDS = tuple(word for engine in ENGINES.values() for word in engine.process_words)
PACKAGES = tuple(package for engine in ENGINES.values() for package in engine.packages)


def engine_of_page(text: str) -> type[HttpEngine] | None:
    """Return the engine whose metric names a /metrics page uses, or None if no engine exports them."""
    return dialect_of(text, tuple(ENGINES.values()))


def metric_names(figure: str) -> tuple[str, ...]:
    """Return the metric names under which any engine exports a figure of `EngineMetrics`."""
    return tuple(
        dict.fromkeys(
            name
            for engine in ENGINES.values()
            if figure in engine.metric_names
            for name in engine.metric_names[figure].names
        )
    )


def rank_in_title(title: str) -> int | None:
    """Return the rank that a worker's process title carries, or None."""
    for engine in ENGINES.values():
        if engine.rank_title is not None and (found := engine.rank_title.search(title)):
            return int(found.group(1))
    return None


def build_unit(name: str, config: UnitConfig, *, state_dir: Path) -> Unit:
    """Return the unit `name`; a process unit keeps its files in `state_dir/name`."""
    if isinstance(config, ProcessUnit):
        return SupervisedProcess(name, config, state_dir=state_dir)
    if isinstance(config, SystemdUnit):
        return SystemdService(name, config)
    return CommandUnit(name, config, state_dir=state_dir)


def build_engine(config: EngineConfig) -> Engine:
    """Return the adapter of the engine's kind."""
    return ENGINES[config.kind](config, dialects=tuple(ENGINES.values()))


def build_router(config: HostConfig, *, state_dir: Path) -> Router:
    """Return the host's router: ours with its files below `state_dir`, or an existing one by its admin socket."""
    if config.router.managed:
        return ManagedRouter(config, state_dir=state_dir)
    return ExistingRouter(config, state_dir=state_dir)
