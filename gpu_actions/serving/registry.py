"""The one table of kinds: engines, unit drivers and routers. Building a driver starts nothing and touches no file.

A kind is one file that declares everything the program needs to know of it, and one line here. Code elsewhere asks:

- `ENGINES[kind]`: the class of an engine; its attributes are described on `HttpEngine` in `engines/base.py`.
- `engine_of_page(text)`: the engine whose metric names a /metrics page uses, `metric_names(figure)`: every engine's names.
- `rank_in_title(title)`: the rank in a worker's process title of any engine.
- `PROCESS_WORDS`, `PACKAGES`, `PROMPT_LINES`: of all engines together.
- `UNITS`, `ROUTERS`: the settings of each kind of unit and router. `config.tiers[name].unit.build(...)` and
  `config.router.build(...)` return their drivers, `.setup_checks(...)` checks them for `doctor`. The first router is
  the default.
- `router_reader(kind, address, backend=...)`: a driver for reading a router without a host's settings.
- `build_engine(config)`: the adapter of an engine.
"""

from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from gpu_actions.serving.engines.base import EngineSettings, HttpEngine, dialect_of
from gpu_actions.serving.engines.openai import OpenAiEngine
from gpu_actions.serving.engines.reference import ReferenceEngine
from gpu_actions.serving.engines.sglang import SglangEngine
from gpu_actions.serving.engines.vllm import VllmEngine
from gpu_actions.serving.interfaces import Router
from gpu_actions.serving.kinds import check_kind
from gpu_actions.serving.routers.base import RouterConfig
from gpu_actions.serving.routers.haproxy import HaproxyConfig
from gpu_actions.serving.units.base import UnitConfig
from gpu_actions.serving.units.commands import CommandsUnit
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


def rank_in_title(title: str) -> int | None:
    """Return the rank that a worker's process title carries, or None."""
    for engine in ENGINES.values():
        if engine.rank_title is not None and (found := engine.rank_title.search(title)):
            return int(found.group(1))
    return None


def build_engine(config: EngineSettings) -> HttpEngine:
    """Return the adapter of the engine's kind."""
    return ENGINES[config.kind](config, dialects=tuple(ENGINES.values()))
