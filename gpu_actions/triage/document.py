"""The rules of all checks as a document: docs/triage-rules.md."""

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import VerdictKind
from gpu_actions.triage.registry import CHECKS
from gpu_actions.triage.rule import CAUSES, Rule


def rules_markdown() -> str:
    """Return the text of docs/triage-rules.md."""
    lines = [
        "# Rules of triage",
        "",
        "Generated from the checks in `gpu_actions/triage/checks/` by `make docs`; a test keeps it up to date.",
        "",
        "The verdict of a host is the worst that any finding leads to: healthy, watch, unknown, fall back. "
        '"If broken" is what a finding leads to if the tier makes no progress either. A rule listed in the setting '
        "`triage.accept_unknown` does not make the verdict unknown on that host.",
        "",
        f"Causes, root causes first: {', '.join(f'`{cause}`' for cause in CAUSES)}.",
    ]
    for check in CHECKS:
        lines += ["", f"## {check.title}", ""]
        lines += [
            "| rule | severity | leads to | cause | what it finds | what to do | source |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_row(rule) for rule in check.rules.values()]
    lines += ["", "## Thresholds", "", "| setting | default | meaning |", "|---|---|---|"]
    for name, field in TriageThresholds.model_fields.items():
        default = "none" if field.default == () else field.default
        lines.append(f"| `triage.{name}` | {default} | {_cell(field.description or '')} |")
    return "\n".join(lines) + "\n"


def _row(rule: Rule) -> str:
    leads = rule.verdict.value.replace("_", " ")
    if rule.when_broken is not None:
        leads += f"; if broken: {rule.when_broken.value.replace('_', ' ')}"
    if rule.verdict is VerdictKind.HEALTHY:
        leads = "-"
    finds = rule.finds + (f" (`{rule.threshold}`)" if rule.threshold else "")
    cells = (f"`{rule.id}`", rule.severity.value, leads, rule.cause, finds, rule.action or "-", rule.source)
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
