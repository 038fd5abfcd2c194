"""The rules: complete, in step with their document, and used. The checks: they read what they declare."""

import re
from pathlib import Path

import pytest

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Severity, VerdictKind
from gpu_actions.snapshot.kernel_log_lines import APPLICATION_XIDS
from gpu_actions.snapshot.model import COLLECTORS, Snapshot
from gpu_actions.triage.check import Check, CheckContext
from gpu_actions.triage.checks.kernel_log import XIDS
from gpu_actions.triage.document import rules_markdown
from gpu_actions.triage.registry import CHECKS, RULES
from gpu_actions.triage.rule import CAUSES, Rule
from tests.gpu_actions.triage.cases import CASES
from tests.gpu_actions.triage.table import PATH, render, rows

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "gpu_actions" / "triage" / "checks"


def test_the_document_matches_the_rules() -> None:
    assert (ROOT / "docs" / "triage-rules.md").read_text() == rules_markdown(), "run make docs"


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_a_rule_has_a_known_cause_and_threshold_and_an_action(rule: Rule) -> None:
    assert rule.cause in CAUSES
    assert rule.threshold is None or rule.threshold in TriageThresholds.model_fields
    calm = rule.severity in (Severity.OK, Severity.INFO)
    assert calm or rule.action, "whoever reads it at 3 a.m. must know what to do"


def test_only_critical_findings_lead_to_a_fallback_by_themselves() -> None:
    for rule in RULES.values():
        if rule.verdict is VerdictKind.FALL_BACK:
            assert rule.severity is Severity.CRITICAL, rule.id


def test_no_application_fault_can_ever_lead_to_a_fallback() -> None:
    rule = RULES["kernel_log.application"]
    assert frozenset({13, 31, 43, 45}) == APPLICATION_XIDS
    assert {code for code, (kind, _) in XIDS.items() if kind == "application"} == APPLICATION_XIDS
    assert rule.verdict is VerdictKind.WATCH and rule.when_broken is None


def test_every_rule_is_used_by_its_check_and_every_check_uses_only_its_rules() -> None:
    for path in FOLDER.glob("[a-z]*.py"):
        text = path.read_text()
        declaration, _, code = text.partition("# fmt: skip")
        prefixes = "|".join({rule.component for rule in RULES.values()})
        declared = set(re.findall(rf'"((?:{prefixes})\.[a-z0-9_]+)"', declaration))
        named = set(re.findall(rf'"((?:{prefixes})\.[a-z0-9_]+)"', code))
        if path.stem == "kernel_log":
            named |= {f"kernel_log.{kind}" for kind, _ in XIDS.values()}
            named |= {f"kernel_log.{kind}" for kind in re.findall(r'kind = "(\w+)"', code)}
            named |= {f"kernel_log.{kind}" for kind in re.findall(r'\("(other)"', code)}
        assert named == declared, path.name


def test_every_check_file_is_in_the_registry() -> None:
    assert {check.judge.__module__.rpartition(".")[2] for check in CHECKS} == {
        path.stem for path in FOLDER.glob("[a-z]*.py")
    }


class ReadFields(Snapshot):
    """A snapshot that notes which of its readings are read."""

    def __getattribute__(self, name: str) -> object:
        if name in COLLECTORS:
            object.__getattribute__(self, "__dict__").setdefault("_seen", set()).add(name)
        return super().__getattribute__(name)


@pytest.fixture(scope="module")
def snapshots() -> list[ReadFields]:
    return [ReadFields.model_validate(build().model_dump()) for build, *_ in CASES.values()]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.title)
def test_a_check_reads_exactly_the_readings_that_it_declares(
    check: Check, snapshots: list[ReadFields]
) -> None:
    seen: set[str] = set()
    for snapshot in snapshots:
        snapshot.__dict__["_seen"] = set()
        list(check.judge(CheckContext(snapshot=snapshot, thresholds=TriageThresholds())))
        seen |= snapshot.__dict__["_seen"]
    assert seen == check.reads


def test_the_document_of_cases_matches_the_cases_and_is_large_enough() -> None:
    assert render() == PATH.read_text(encoding="utf-8"), "run make docs"
    assert len(list(rows())) >= 150
