"""The rules table as a document, so that people read what the code judges by."""

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import VerdictKind
from gpu_actions.triage.rules import CAUSES, RULES
from gpu_actions.triage.rules.rule import Rule

TITLES = {
    "gpu": "GPUs",
    "nvlink": "NVLinks",
    "fabric": "NVSwitch fabric",
    "pcie": "PCIe and P2P",
    "deep": "Deep probe",
    "kernel_log": "Kernel log",
    "collective": "Collectives",
    "serving": "Engine",
    "router": "Router",
}


def rules_markdown() -> str:
    """The whole of docs/triage-rules.md."""
    lines = [
        "# Rules of triage",
        "",
        "Generated from the table in `gpu_actions/triage/rules/` by `make docs`; a test keeps it in step.",
        "",
        "The verdict of a host is the worst that any finding leads to: healthy, watch, unknown, fall back. "
        '"If broken" is what a finding leads to when the tier makes no progress either. A rule named in the setting '
        "`triage.accept_unknown` does not make the verdict unknown on that host.",
        "",
        f"Causes, the root first: {', '.join(f'`{cause}`' for cause in CAUSES)}.",
    ]
    for component, title in TITLES.items():
        rows = [rule for rule in RULES.values() if rule.component == component]
        lines += ["", f"## {title}", ""]
        lines += [
            "| rule | severity | leads to | cause | what it finds | what to do | source |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_row(rule) for rule in rows]
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
    check = rule.check + (f" (`{rule.threshold}`)" if rule.threshold else "")
    cells = (f"`{rule.id}`", rule.severity.value, leads, rule.cause, check, rule.action or "-", rule.source)
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
