"""Rules: what a finding means, how bad it is, which verdict it leads to, and what to do about it."""

from typing import Any

from gpu_actions.models import Finding, Frozen, Severity, VerdictKind
from gpu_actions.snapshot.collectors.nvml import GpuReading

OK, INFO, WATCH, UNKNOWN, CRITICAL = (
    Severity.OK,
    Severity.INFO,
    Severity.WATCH,
    Severity.UNKNOWN,
    Severity.CRITICAL,
)

CAUSES: tuple[str, ...] = (
    "data_corruption",
    "gpu_lost",
    "gpu_reset_required",
    "ecc_uncorrected",
    "row_remap_failed",
    "nvlink_loss",
    "nvlink_partial",
    "driver_hang",
    "fabric_manager_down",
    "engine_paused",
    "nccl_hang",
    "crash_loop",
    "engine_down",
    "engine_stalled",
    "wrong_output",
    "pcie_only",
    "engine_crashed",
    "engine_errors",
    "router_down",
    "frozen_tier_runs",
    "row_remap_pending",
    "gpu_hogged",
    "serving_regression",
    "thermal",
    "throttling",
    "nvlink_errors",
    "pcie_degraded",
    "memory_held",
    "environment",
    "application_fault",
    "kernel_error",
    "unknown",
    "none",
)
"""All causes, root causes first: if several findings lead to the same verdict, the first of these is its cause."""

_ORDER = (VerdictKind.HEALTHY, VerdictKind.WATCH, VerdictKind.UNKNOWN, VerdictKind.FALL_BACK)

_LEADS_TO = {
    Severity.OK: (VerdictKind.HEALTHY, "none"),
    Severity.INFO: (VerdictKind.HEALTHY, "none"),
    Severity.WATCH: (VerdictKind.WATCH, ""),
    Severity.UNKNOWN: (VerdictKind.UNKNOWN, "unknown"),
    Severity.CRITICAL: (VerdictKind.FALL_BACK, ""),
}
"""The verdict and the cause of a rule that does not name them."""


def rank_of_verdict(kind: VerdictKind) -> int:
    """Return how far a verdict is from healthy: healthy 0, watch 1, unknown 2, fall_back 3."""
    return _ORDER.index(kind)


class Rule(Frozen):
    """One rule of a check.

    `verdict` is what the finding leads to by itself, `when_broken` what it leads to if the tier does not serve either: a
    suspect then becomes the likely cause. `threshold` is the setting that it is judged by.
    """

    id: str
    component: str
    severity: Severity
    verdict: VerdictKind
    cause: str
    finds: str
    action: str
    source: str
    when_broken: VerdictKind | None = None
    threshold: str | None = None


def rule(
    id: str,
    severity: Severity,
    finds: str,
    action: str = "",
    *,
    source: str,
    cause: str = "",
    verdict: VerdictKind | None = None,
    when_broken: VerdictKind | None = None,
    threshold: str | None = None,
) -> Rule:
    """Make a rule. The component is the first part of its id; verdict and cause default to those of its severity."""
    usual_verdict, usual_cause = _LEADS_TO[severity]
    return Rule(
        id=id,
        component=id.partition(".")[0],
        severity=severity,
        verdict=verdict or usual_verdict,
        cause=cause or usual_cause,
        finds=finds,
        action=action,
        source=source,
        when_broken=when_broken,
        threshold=threshold,
    )


class Rules(dict[str, Rule]):
    """The rules of one check by their ids, and the only way to make a finding of one."""

    def __init__(self, *rules: Rule) -> None:
        super().__init__((rule.id, rule) for rule in rules)

    def finding(
        self, rule_id: str, summary: str, /, *, subject: str | None = None, **evidence: Any
    ) -> Finding:
        """Make a finding of a rule. Raises KeyError for an unknown id."""
        rule = self[rule_id]
        return Finding(
            id=rule.id,
            component=rule.component,
            severity=rule.severity,
            summary=" ".join(summary.split())[:300] or rule.finds,
            evidence=evidence,
            action=rule.action,
            subject=subject,
        )

    def on_gpu(self, gpu: GpuReading, rule_id: str, text: str, /, **evidence: Any) -> Finding:
        """Make a finding about one GPU."""
        return self.finding(rule_id, f"{gpu.label}: {text}", subject=gpu.subject, **evidence)
