"""A verdict as text for a terminal: verdict and cause, what to do, then the findings by component."""

from gpu_actions.models import Finding, Severity, Verdict, VerdictKind
from gpu_actions.snapshot.model import Snapshot, utc_text

WORDS = {
    VerdictKind.HEALTHY: "HEALTHY",
    VerdictKind.WATCH: "WATCH",
    VerdictKind.FALL_BACK: "FALL BACK",
    VerdictKind.UNKNOWN: "UNKNOWN",
}
MARKS = {
    Severity.OK: "ok",
    Severity.INFO: "info",
    Severity.WATCH: "watch",
    Severity.UNKNOWN: "unknown",
    Severity.CRITICAL: "CRITICAL",
}


def render_text(verdict: Verdict, snapshot: Snapshot) -> str:
    """Return the report. Its first line is the verdict and its cause, the second what to do."""
    cause = "" if verdict.cause in ("", "none") else f": {verdict.cause}"
    lines = [
        f"{WORDS[verdict.verdict]}{cause}",
        verdict.action
        or ("No action needed." if verdict.verdict is VerdictKind.HEALTHY else "Read the findings."),
        "",
        verdict.summary,
        f"{snapshot.host}, {utc_text(snapshot.taken_at)}, window {snapshot.window_s:g} s",
    ]
    if verdict.fallback_gpu is not None:
        gpu = verdict.fallback_gpu
        lines.append(f"fall back to GPU {gpu.index} ({gpu.uuid}): {gpu.reason}")
    for component, findings in by_component(verdict.findings).items():
        lines += ["", component]
        for finding in findings:
            about = f" [{finding.subject}]" if finding.subject else ""
            lines.append(f"  {MARKS[finding.severity]:<9}{finding.id}{about}: {finding.summary}")
            if finding.action and finding.severity not in (Severity.OK, Severity.INFO):
                lines.append(f"           -> {finding.action}")
    skipped = [
        f"{name} ({outcome.reason})"
        for name, outcome in snapshot.collectors.items()
        if outcome.status == "skipped"
    ]
    if skipped:
        lines += ["", "not checked: " + ", ".join(skipped)]
    return "\n".join(lines)


def by_component(findings: tuple[Finding, ...]) -> dict[str, list[Finding]]:
    """Group findings by component, in their order: the component with the worst finding first."""
    grouped: dict[str, list[Finding]] = {}
    for finding in findings:
        grouped.setdefault(finding.component, []).append(finding)
    return grouped
