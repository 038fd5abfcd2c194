"""The judgement: from a snapshot to one verdict with its cause and all findings. It is pure: a recorded file judges the same.

The verdict is the worst that any finding leads to (healthy < watch < unknown < fall_back). Its cause is the first in `CAUSES`
among the findings that lead there. A suspect alone means watch; if the tier makes no progress either, it is the likely cause
(`Rule.when_broken`).
"""

from collections.abc import Collection, Iterable

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Finding, Severity, Verdict, VerdictKind
from gpu_actions.snapshot.activity import gpus_of_tier
from gpu_actions.snapshot.kernel_log_lines import normal_pci
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.triage.baselines import TriageBaseline
from gpu_actions.triage.check import CheckContext
from gpu_actions.triage.fallback_gpu import choose_fallback_gpu
from gpu_actions.triage.gpu_health import LINK_CAUSES, LINK_COMPONENTS, gpu_health
from gpu_actions.triage.registry import CHECKS, RULES
from gpu_actions.triage.rule import CAUSES, rank_of_verdict

_WORST_FIRST = (Severity.CRITICAL, Severity.UNKNOWN, Severity.WATCH, Severity.INFO, Severity.OK)

GPU_COMPONENTS = ("gpu", "kernel_log", *LINK_COMPONENTS)
OF_ONE_GPU = ("kernel_log.off_bus", "kernel_log.reset", "kernel_log.ecc", "kernel_log.recovery_open")
"""Errors of the kernel log that concern the GPU of their bus id only; one of a link or a switch concerns its peers."""

PERMANENT = ("not_supported", "function_not_found", "no_permission")
"""NVML's reasons for a field that this host does not have, or that this user may not read."""


def judge(
    snapshot: Snapshot, thresholds: TriageThresholds | None = None, baseline: TriageBaseline | None = None
) -> Verdict:
    """Judge a snapshot. Never raises for a valid snapshot."""
    context = CheckContext(
        snapshot=snapshot, thresholds=thresholds or TriageThresholds(), baseline=baseline or TriageBaseline()
    )
    findings = [finding for check in CHECKS for finding in check.judge(context)]
    findings.sort(key=lambda finding: _WORST_FIRST.index(finding.severity))
    if not findings:
        return Verdict(
            verdict=VerdictKind.UNKNOWN,
            cause="unknown",
            summary="nothing was checked: no engine, no process and no GPU is configured",
            action="Name what to check, for example --engine-url URL.",
        )
    findings = [_of_another_gpu(finding, context) for finding in findings]
    verdicts = [verdict_of_finding(finding, context) for finding in findings]
    kind = max(verdicts, key=rank_of_verdict)
    leading = [finding for finding, verdict in zip(findings, verdicts, strict=True) if verdict is kind]
    cause = "none" if kind is VerdictKind.HEALTHY else cause_of(leading)
    main = next((row for row in leading if RULES[row.id].cause == cause), leading[0])
    counting = [
        finding
        for finding, verdict in zip(findings, verdicts, strict=True)
        if verdict is not VerdictKind.HEALTHY
    ]
    others = len(leading) - 1
    more = f" (and {others} more finding{'s' if others > 1 else ''})" if others else ""
    return Verdict(
        verdict=kind,
        cause=cause,
        summary=summary_of_healthy(findings) if kind is VerdictKind.HEALTHY else main.summary + more,
        findings=tuple(findings),
        fallback_gpu=choose_fallback_gpu(snapshot, findings),
        gpus=gpu_health(snapshot, findings),
        action="" if kind is VerdictKind.HEALTHY else main.action,
        causes=tuple(dict.fromkeys(RULES[finding.id].cause for finding in counting)),
        unread=tuple(dict.fromkeys(row.component for row in counting if row.severity is Severity.UNKNOWN)),
    )


def _of_another_gpu(finding: Finding, context: CheckContext) -> Finding:
    """Return a finding that calls for a fallback because of a GPU that the tier does not use, with what is true of it."""
    if not is_elsewhere(finding, context) or RULES[finding.id].verdict is not VerdictKind.FALL_BACK:
        return finding
    return finding.model_copy(
        update={
            "summary": f"{finding.summary} (the tier serves on other GPUs)"[:300],
            "action": "No fallback is needed. Keep this GPU out of the next start, and repair it at a quiet time.",
        }
    )


def is_elsewhere(finding: Finding, context: CheckContext) -> bool:
    """Return True if a finding is about a GPU that the tier provably does not use: it serves, and NVML lists a process of it on
    as many other GPUs as it has ranks."""
    snapshot = context.snapshot
    nvml, ranks, expected = snapshot.nvml, snapshot.ranks, snapshot.expected.ranks
    if (
        finding.component not in GPU_COMPONENTS
        or not context.progress.moves
        or None in (nvml, ranks, expected)
    ):
        return False
    assert nvml is not None and ranks is not None and expected is not None  # noqa: S101
    used = gpus_of_tier(nvml.gpus, {row.pid for row in ranks.processes if row.is_alive})
    if len(used) < expected:
        return False
    if finding.id in OF_ONE_GPU and finding.evidence.get("pci"):  # also of a GPU that NVML lists no more
        return normal_pci(finding.evidence["pci"]) not in {normal_pci(gpu.pci) for gpu in used}
    others = {gpu.subject for gpu in nvml.gpus} - {gpu.subject for gpu in used}
    return finding.subject in others or (finding.id == "gpu.lost" and finding.subject is None)


def verdict_of_finding(finding: Finding, context: CheckContext) -> VerdictKind:
    """Return what a finding leads to here: by its rule, the tier's progress, and the unknowns that this host accepts."""
    rule = RULES[finding.id]
    if is_accepted(finding, context.thresholds.accept_unknown):
        return VerdictKind.HEALTHY
    kind = rule.verdict
    if rule.when_broken is not None and context.progress.broken:
        kind = max(kind, rule.when_broken, key=rank_of_verdict)
    if kind is VerdictKind.FALL_BACK and is_elsewhere(finding, context):
        return VerdictKind.WATCH
    is_about_the_tier = rule.component in ("serving", "collective")
    if kind is VerdictKind.FALL_BACK and is_about_the_tier and context.snapshot.expected.tier != "tp":
        return VerdictKind.WATCH  # nothing is below the fallback tier to fall back to
    is_about_links = rule.component in LINK_COMPONENTS or rule.cause in LINK_CAUSES
    if is_about_links and context.snapshot.expected.tier != "tp" and rank_of_verdict(kind) > 0:
        return VerdictKind.WATCH  # the fallback tier runs on one GPU, which needs no links
    return kind


def is_accepted(finding: Finding, accepted: Collection[str]) -> bool:
    """Return True if the settings accept this missing evidence: `RULE`, or `RULE:FIELD` for a rule that covers many fields.

    `RULE:FIELD` accepts only the reasons in `PERMANENT`; any other must be named too (`RULE:FIELD:REASON`).
    """
    if finding.severity is not Severity.UNKNOWN:
        return False
    field, reason = finding.evidence.get("field"), finding.evidence.get("reason")
    if field is None:
        return finding.id in accepted
    covered = reason in PERMANENT and f"{finding.id}:{field}" in accepted
    return covered or f"{finding.id}:{field}:{reason}" in accepted


def summary_of_healthy(findings: Iterable[Finding]) -> str:
    """Return the summary of a healthy verdict, which names what could not be checked."""
    unread = [finding for finding in findings if finding.severity is Severity.UNKNOWN]
    if not unread:
        return "all checks passed"
    more = f" (and {len(unread) - 1} more)" if len(unread) > 1 else ""
    return f"no fault found, but not everything could be checked: {unread[0].id}: {unread[0].summary}{more}"


def cause_of(findings: Iterable[Finding]) -> str:
    """Return the first cause, in the order of `CAUSES`, of these findings."""
    causes = {RULES[finding.id].cause for finding in findings}
    return next((cause for cause in CAUSES if cause in causes), "unknown")
