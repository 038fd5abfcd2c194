"""What every check gets, and the one way to make a finding."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Finding
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.triage.baselines import TriageBaseline
from gpu_actions.triage.rules import RULES


@dataclass(frozen=True, kw_only=True)
class CheckContext:
    """A snapshot with what it is judged by."""

    snapshot: Snapshot
    thresholds: TriageThresholds
    baseline: TriageBaseline = field(default_factory=TriageBaseline)

    @property
    def has_gpus(self) -> bool:
        """Whether GPU checks apply at all: not on a host that declares none, nor on one without an NVIDIA driver."""
        return self.snapshot.expected.gpus != 0 and not self.snapshot.skipped("nvml")


def make_finding(
    rule_id: str,
    summary: str,
    *,
    evidence: Mapping[str, Any] | None = None,
    subject: str | None = None,
    action: str | None = None,
) -> Finding:
    """Make a finding of a rule. Raises KeyError for an id that is not in the table."""
    rule = RULES[rule_id]
    return Finding(
        id=rule.id,
        component=rule.component,
        severity=rule.severity,
        summary=" ".join(summary.split())[:300] or rule.check,
        evidence=dict(evidence or {}),
        action=rule.action if action is None else action,
        subject=subject,
    )


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
