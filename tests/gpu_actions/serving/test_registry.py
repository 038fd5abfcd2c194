"""The registry of kinds: settings select a kind by name, and an unknown name gets a suggestion."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from bot.settings.reference import settings_markdown
from gpu_actions.config.host import EngineConfig, HostConfig
from gpu_actions.serving.kinds import OneOf
from gpu_actions.serving.registry import (
    ENGINES,
    PACKAGES,
    PROCESS_WORDS,
    ROUTERS,
    UNITS,
    engine_of_page,
    metric_names,
    rank_in_title,
)

ROOT = Path(__file__).parents[3]


def host(**unit: Any) -> dict[str, Any]:
    def tier(server: str) -> dict[str, Any]:
        return {
            "engine": {"kind": "vllm", "url": "http://127.0.0.1:1", "model": "m"},
            "unit": unit or {"driver": "systemd", "name": "a.service"},
            "server": server,
        }

    return {"name": "h", "tiers": {"tp": tier("tp"), "fallback": tier("fb")}}


def test_a_unit_and_a_router_are_of_the_kind_that_the_settings_name() -> None:
    config = HostConfig.model_validate(host())
    assert type(config.tiers["tp"].unit) is UNITS[1]
    assert type(config.router) is ROUTERS[0]
    assert config.router.kind == "haproxy"
    assert HostConfig.model_validate({**host(), "router": {"managed": True}}) == config
    assert HostConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"driver": "systmd"}, r"'systmd' is not known; did you mean 'systemd'\? known: process, systemd"),
        ({"argv": ["true"]}, "driver is missing; set it to one of: process, systemd, container, commands"),
        ({"driver": "process"}, "argv"),
        ({"driver": 7}, "7 is not known"),
    ],
)
def test_a_wrong_unit_names_what_is_allowed(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        HostConfig.model_validate(host(**changes))


def test_a_misspelt_engine_gets_a_suggestion() -> None:
    with pytest.raises(ValidationError, match=r"'vlm' is not known; did you mean 'vllm'\?"):
        EngineConfig(kind="vlm", url="http://127.0.0.1:1", model="m")


def test_an_unknown_router_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"'haprox' is not known; did you mean 'haproxy'\?"):
        HostConfig.model_validate({**host(), "router": {"kind": "haprox"}})


def test_the_schema_and_the_settings_reference_list_every_kind() -> None:
    schema = TypeAdapter(HostConfig).json_schema()
    reference = settings_markdown()
    assert set(schema["$defs"]["EngineConfig"]["properties"]["kind"]["enum"]) == set(ENGINES)
    for model in (*UNITS, *ROUTERS):
        assert model.__name__ in schema["$defs"]
        assert f"## {model.__name__}" in reference
    for kind in ENGINES:
        assert kind in reference.split("## EngineConfig")[1].split("##")[0]


def test_docs_describe_every_kind_and_the_batch_flag_of_each_engine() -> None:
    text = (ROOT / "docs/serving.md").read_text()
    drivers = [unit.model_fields["driver"].default for unit in UNITS]
    routers = [router.model_fields["kind"].default for router in ROUTERS]
    for name in (*ENGINES, *drivers, *routers):
        assert f"`{name}`" in text, name
    for engine in ENGINES.values():
        assert engine.batch_flag in text


def test_the_registry_recognises_pages_and_titles_and_lists_packages() -> None:
    assert rank_in_title("VLLM::Worker_TP3") == 3
    assert rank_in_title("sglang::scheduler_TP0") == 0
    assert rank_in_title("python -m http.server") is None
    found = [engine_of_page(f"{name} 1") for name in metric_names("running")]
    kinds = [engine.kind for engine in found if engine]
    assert len(kinds) == len(set(kinds)), "each engine has metric names of its own"
    assert {"vllm", "sglang"} <= set(kinds) and "reference" not in kinds
    assert engine_of_page("up 1") is None
    assert {"vllm", "sglang"} <= set(PACKAGES) & set(PROCESS_WORDS)


def test_a_table_of_one_kind_still_selects_by_name() -> None:
    class Only(BaseModel):
        kind: str = "only"
        size: int = 0

    adapter = TypeAdapter(Annotated[Only, OneOf("kind", [Only], default=Only)])
    assert adapter.validate_python({"size": 3}) == Only(size=3)
    with pytest.raises(ValidationError, match="known: only"):
        adapter.validate_python({"kind": "other"})
