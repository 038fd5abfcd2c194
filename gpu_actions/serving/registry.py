"""The one table of kinds: engines, unit drivers and routers. Building a driver starts nothing and touches no file.

A kind is one file that declares everything the program needs to know of it, and one line here. Code elsewhere asks:

- `ENGINES[kind]`: the class of an engine; its attributes are described on `HttpEngine` in `engines/base.py`.
- `engine_of_page(text)`: the engine whose metric names a /metrics page uses, `metric_names(figure)`: every engine's names.
- `coordinates_in_title(title)`, `rank_in_title(title)`: where a worker of any engine is in its tier, by its process title.
- `PROCESS_WORDS`, `PACKAGES`, `PROMPT_LINES`: of all engines together.
- `UNITS`, `ROUTERS`: the settings of each kind of unit and router. `config.tiers[name].unit.build(...)` and
  `config.router.build(...)` return their drivers, `.setup_checks(...)` checks them for `doctor`. The first router is
  the default.
- `router_reader(kind, address, backend=...)`: a driver for reading a router without a host's settings.
- `build_engine(config)`: the adapter of an engine.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from gpu_actions.serving.engines.base import HttpEngine, dialect_of
from gpu_actions.serving.engines.openai import OpenAiEngine
from gpu_actions.serving.engines.reference import ReferenceEngine
from gpu_actions.serving.engines.settings import EngineSettings
from gpu_actions.serving.engines.sglang import SglangEngine
from gpu_actions.serving.engines.vllm import VllmEngine
from gpu_actions.serving.interfaces import Router
from gpu_actions.serving.kinds import check_kind
from gpu_actions.serving.routers.base import RouterConfig
from gpu_actions.serving.routers.haproxy import HaproxyConfig
from gpu_actions.serving.units.base import UnitConfig
from gpu_actions.serving.units.commands import CommandsUnit
from gpu_actions.serving.units.container import ContainerUnit
from gpu_actions.serving.units.process import ProcessUnit
from gpu_actions.serving.units.systemd import SystemdUnit

ENGINE_CLASSES: tuple[type[HttpEngine], ...] = (
    ReferenceEngine,
    VllmEngine,
    SglangEngine,
    OpenAiEngine,
)
ENGINES = {engine.kind: engine for engine in ENGINE_CLASSES}

UNITS: tuple[type[UnitConfig], ...] = (
    ProcessUnit,
    SystemdUnit,
    ContainerUnit,
    CommandsUnit,
)

ROUTERS: tuple[type[RouterConfig], ...] = (HaproxyConfig,)

DEFAULT_ENGINE = OpenAiEngine.kind

EngineKind = Annotated[
    str,
    AfterValidator(lambda kind: check_kind(kind, ENGINES)),
    WithJsonSchema({"type": "string", "enum": list(ENGINES)}),
]
"""The name of an engine in the settings."""

_COORDINATE = re.compile(r"_([A-Z]+?)_?(\d+)", re.IGNORECASE)
PROCESS_WORDS = tuple(word for engine in ENGINES.values() for word in engine.process_words)
PROMPT_LINES = tuple(pattern for engine in ENGINES.values() for pattern in engine.prompt_lines)
PACKAGES = tuple(package for engine in ENGINES.values() for package in engine.packages)


def router_reader(kind: str, address: str, *, backend: str) -> Router:
    """Return a driver for reading the router of `kind` (empty: the default) that is controlled at `address`."""
    kinds = {router.model_fields["kind"].default: router for router in ROUTERS}
    return kinds.get(kind, ROUTERS[0]).reader(address, backend=backend)


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


def coordinates_in_title(title: str, *, core: bool = False) -> dict[str, int]:
    """Return the coordinates (DP, PP, TP, EP) that a worker's process title carries; with `core` those of an engine's core."""
    for engine in ENGINES.values():
        pattern = engine.core_title if core else engine.rank_title
        if pattern is not None and (found := pattern.search(title)):
            return {axis.upper(): int(number) for axis, number in _COORDINATE.findall(found.group(1))}
    return {}


def is_core_title(title: str) -> bool:
    """Return True if a title is that of the process of an engine that is its only rank, if it has no workers."""
    return any(
        engine.core_title is not None and engine.core_title.search(title) for engine in ENGINES.values()
    )


def rank_in_title(title: str) -> int | None:
    """Return the tensor-parallel rank that a worker's process title carries, or None."""
    return coordinates_in_title(title).get("TP")


def build_engine(config: EngineSettings) -> HttpEngine:
    """Return the adapter of the engine's kind."""
    return ENGINES[config.kind](config, dialects=tuple(ENGINES.values()))
