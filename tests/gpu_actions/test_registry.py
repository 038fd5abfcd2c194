"""Every action is declared in its own folder, completely and without contradictions."""

import pytest

from gpu_actions.action import ActionSpec
from gpu_actions.registry import ACTION_NAMES, actions

SPECS = list(actions().values())


def test_the_registry_holds_each_action_under_its_own_name_and_prefix() -> None:
    assert tuple(actions()) == ACTION_NAMES
    assert len({spec.prefix for spec in SPECS}) == len(SPECS)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_an_action_declares_its_command_completely(spec: ActionSpec) -> None:
    assert spec.usages
    assert spec.summary.endswith(".")
    fields = spec.arguments.model_fields
    assert all(field.description for field in fields.values())
    assert all(fields[flag].annotation is bool for flag in spec.flags)
    first_words = {usage.split()[0] for usage, _ in spec.usages}
    assert first_words - {"[host]"} <= set(spec.subcommands)
    assert ("[host]" in first_words) == spec.starts_by_name


def test_an_action_without_a_title_is_called_by_its_name() -> None:
    assert actions()["loadtest"].label == "Load test"
    assert actions()["fallback"].label == "Fallback"
    assert actions()["triage"].start_words("a") == "a"
    assert actions()["restore"].start_words("a") == "start a"
