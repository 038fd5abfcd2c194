"""The rules table: complete, in step with its document, and used."""

import re
from pathlib import Path

import pytest

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Severity, VerdictKind
from gpu_actions.triage.rules import CAUSES, RULES
from gpu_actions.triage.rules.document import TITLES, rules_markdown
from gpu_actions.triage.rules.kernel import APPLICATION_XIDS

ROOT = Path(__file__).resolve().parents[3]
CODE = ROOT / "gpu_actions" / "triage"


def test_the_document_is_what_the_table_says() -> None:
    assert (ROOT / "docs" / "triage-rules.md").read_text() == rules_markdown(), "run make docs"


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_a_rule_has_a_known_cause_component_threshold_and_a_way_on(rule: object) -> None:
    assert rule.cause in CAUSES and rule.component in TITLES  # type: ignore[attr-defined]
    assert rule.threshold is None or rule.threshold in TriageThresholds.model_fields  # type: ignore[attr-defined]
    calm = rule.severity in (Severity.OK, Severity.INFO)  # type: ignore[attr-defined]
    assert calm or rule.action, "whoever reads it at 3 a.m. must know what to do"  # type: ignore[attr-defined]


def test_only_critical_findings_lead_to_a_fallback_by_themselves() -> None:
    for rule in RULES.values():
        if rule.verdict is VerdictKind.FALL_BACK:
            assert rule.severity is Severity.CRITICAL, rule.id


def test_no_application_fault_can_ever_lead_to_a_fallback() -> None:
    rule = RULES["kernel_log.application"]
    assert frozenset({13, 31, 43, 45}) == APPLICATION_XIDS
    assert rule.verdict is VerdictKind.WATCH and rule.when_broken is None


def test_every_rule_is_used_by_a_check_and_every_check_uses_a_rule() -> None:
    text = "\n".join(path.read_text() for path in (CODE / "checks").glob("*.py"))
    named = set(
        re.findall(
            r'"((?:gpu|nvlink|fabric|pcie|deep|kernel_log|collective|serving|router)\.[a-z0-9_]+)"', text
        )
    )
    assert named == set(RULES)
