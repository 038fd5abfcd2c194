"""The judgement: a snapshot in, one verdict with its cause and all findings out. Pure, so a recorded file judges the same.

The verdict is the worst that any finding leads to (healthy < watch < unknown < fall_back); its cause is the first in the
order of `CAUSES` among the findings that lead there. A suspect alone is worth a look; with a tier that makes no progress it is
the likely cause (`when_broken` in the table).
"""

from collections.abc import Iterable

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Finding, Severity, Verdict, VerdictKind
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.progress import Progress, progress_of
from gpu_actions.triage.baselines import TriageBaseline
from gpu_actions.triage.checks.collective import check_collective
from gpu_actions.triage.checks.context import CheckContext
from gpu_actions.triage.checks.deep import check_deep
from gpu_actions.triage.checks.fabric import check_fabric
from gpu_actions.triage.checks.gpus import check_gpus
from gpu_actions.triage.checks.kernel_log import check_kernel_log
from gpu_actions.triage.checks.nvlink import check_nvlink
from gpu_actions.triage.checks.pcie import check_pcie
from gpu_actions.triage.checks.router import check_router
from gpu_actions.triage.checks.serving import check_serving
from gpu_actions.triage.fallback_gpu import choose_fallback_gpu
from gpu_actions.triage.rules import CAUSES, RULES, Rule, rank_of_verdict

_SEVERITIES = (Severity.CRITICAL, Severity.UNKNOWN, Severity.WATCH, Severity.INFO, Severity.OK)


def judge(
    snapshot: Snapshot, thresholds: TriageThresholds | None = None, baseline: TriageBaseline | None = None
) -> Verdict:
    """Judge a snapshot. Never raises for any valid snapshot."""
    context = CheckContext(
        snapshot=snapshot,
        thresholds=thresholds or TriageThresholds(),
        baseline=baseline or TriageBaseline(),
    )
    progress = progress_of(snapshot)
    findings = sort_findings(_findings(context, progress))
    led = [(verdict_of_finding(finding, context, progress), finding) for finding in findings]
    kind = max((verdict for verdict, _ in led), key=rank_of_verdict, default=VerdictKind.UNKNOWN)
    if not findings:
        return Verdict(
            verdict=VerdictKind.UNKNOWN,
            cause="unknown",
            summary="nothing was looked at: name an engine, a process or a host with GPUs",
            action="Name what to look at, for example --engine-url URL.",
        )
    leading = [finding for verdict, finding in led if verdict is kind]
    cause = cause_of(leading) if kind is not VerdictKind.HEALTHY else "none"
    main = next((row for row in leading if RULES[row.id].cause == cause), leading[0])
    return Verdict(
        verdict=kind,
        cause=cause,
        summary=_summary(kind, main, leading),
        findings=tuple(findings),
        fallback_gpu=choose_fallback_gpu(snapshot, findings),
        action="" if kind is VerdictKind.HEALTHY else main.action,
    )


def _findings(context: CheckContext, progress: Progress) -> Iterable[Finding]:
    yield from check_serving(context, progress)
    yield from check_collective(context, progress)
    yield from check_router(context)
    yield from check_gpus(context)
    yield from check_nvlink(context)
    yield from check_fabric(context)
    yield from check_pcie(context)
    yield from check_kernel_log(context)
    yield from check_deep(context)


def verdict_of_finding(finding: Finding, context: CheckContext, progress: Progress) -> VerdictKind:
    """What one finding leads to here: by the table, the tier's progress, and the unknowns that this host accepts."""
    rule: Rule = RULES[finding.id]
    if finding.severity is Severity.UNKNOWN and finding.id in context.thresholds.accept_unknown:
        return VerdictKind.HEALTHY
    kind = rule.verdict
    if rule.when_broken is not None and progress.broken:
        kind = max(kind, rule.when_broken, key=rank_of_verdict)
    only_tp = rule.component in ("serving", "collective")
    if kind is VerdictKind.FALL_BACK and only_tp and context.snapshot.expected.tier != "tp":
        return VerdictKind.WATCH  # there is nothing below the fallback tier to fall back to
    return kind


def cause_of(findings: Iterable[Finding]) -> str:
    """The first cause, in the order of `CAUSES`, of these findings."""
    causes = {RULES[finding.id].cause for finding in findings}
    return next((cause for cause in CAUSES if cause in causes), "unknown")


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, then by the order in which the checks gave them."""
    return sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))


def _summary(kind: VerdictKind, main: Finding, leading: list[Finding]) -> str:
    if kind is VerdictKind.HEALTHY:
        return "all checks passed"
    more = len(leading) - 1
    return main.summary + (f" (and {more} more finding{'s' if more > 1 else ''})" if more else "")
