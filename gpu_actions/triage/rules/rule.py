"""What a rule is, and the order of causes and verdicts."""

from gpu_actions.models import Frozen, Severity, VerdictKind

CAUSES: tuple[str, ...] = (
    "gpu_lost",
    "gpu_reset_required",
    "ecc_uncorrected",
    "row_remap_failed",
    "nvlink_loss",
    "nvlink_partial",
    "driver_hang",
    "fabric_manager_down",
    "nccl_hang",
    "engine_down",
    "engine_stalled",
    "pcie_only",
    "engine_errors",
    "router_down",
    "frozen_tier_runs",
    "row_remap_pending",
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
"""All causes, the root first: where several findings give the same verdict, the first of these names its cause."""

_ORDER = (VerdictKind.HEALTHY, VerdictKind.WATCH, VerdictKind.UNKNOWN, VerdictKind.FALL_BACK)


def rank_of_verdict(kind: VerdictKind) -> int:
    """How far from healthy a verdict is: healthy 0, watch 1, unknown 2, fall_back 3."""
    return _ORDER.index(kind)


class Rule(Frozen):
    """One row of the table.

    `verdict` is what the finding leads to by itself; `when_broken` what it leads to when the tier makes no progress
    either, since a suspect then becomes the likely cause. `threshold` names the setting that it is judged by.
    """

    id: str
    component: str
    severity: Severity
    verdict: VerdictKind
    cause: str
    check: str
    action: str
    source: str
    when_broken: VerdictKind | None = None
    threshold: str | None = None


def rule(
    id: str,
    severity: Severity,
    verdict: VerdictKind,
    cause: str,
    check: str,
    action: str,
    source: str,
    *,
    when_broken: VerdictKind | None = None,
    threshold: str | None = None,
    component: str | None = None,
) -> Rule:
    """Make a row; the component is the first part of the id unless it is given."""
    return Rule(
        id=id,
        component=component or id.partition(".")[0],
        severity=severity,
        verdict=verdict,
        cause=cause,
        check=check,
        action=action,
        source=source,
        when_broken=when_broken,
        threshold=threshold,
    )
