"""Words and signs that several messages share."""

from gpu_actions.models import Severity, VerdictKind
from gpu_actions.registry import actions


def action_name(action: str) -> str:
    """Return an action's name as the start of a sentence."""
    spec = actions().get(action)
    return spec.label if spec else action.replace("_", " ").capitalize()


def diagnoses(action: str) -> bool:
    """Return True if the action ends with a verdict that is shown as a card."""
    spec = actions().get(action)
    return spec is not None and spec.diagnoses


def count(number: int, noun: str) -> str:
    """Return `1 approval`, `2 approvals`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


VERDICT_WORDS = {
    VerdictKind.HEALTHY: "HEALTHY",
    VerdictKind.WATCH: "WATCH",
    VerdictKind.FALL_BACK: "FALL BACK",
    VerdictKind.UNKNOWN: "UNKNOWN",
}
VERDICT_SIGNS = {
    VerdictKind.HEALTHY: ":large_green_circle:",
    VerdictKind.WATCH: ":large_yellow_circle:",
    VerdictKind.FALL_BACK: ":red_circle:",
    VerdictKind.UNKNOWN: ":black_circle:",
}
SEVERITY_SIGNS = {
    Severity.CRITICAL: ":red_circle:",
    Severity.UNKNOWN: ":black_circle:",
    Severity.WATCH: ":large_yellow_circle:",
    Severity.INFO: ":large_blue_circle:",
    Severity.OK: ":large_green_circle:",
}
WORST_FIRST = (Severity.CRITICAL, Severity.UNKNOWN, Severity.WATCH, Severity.INFO, Severity.OK)
